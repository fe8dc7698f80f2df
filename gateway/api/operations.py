"""An operation of the REST API as a value: what the desk checks, what the document says and what is done."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from broker.agents import Agents

from ..auth import Claims
from ..settings import Settings
from .answers import INVALID_REQUEST, Problem

MAX_BYTES = 1024 * 1024


class NoQuery(msgspec.Struct, frozen=True):
    """An operation that asks for nothing in the query."""


class Call(NamedTuple):
    """One request, as far as it has been understood. Without a token: no `claims`; without an id in the path: ''."""

    agents: Agents
    settings: Settings
    claims: Claims | None
    agent_id: str
    query: Any
    body: Any

    @property
    def workspaces(self) -> frozenset[str]:
        return self.claims.workspaces if self.claims else frozenset()

    @property
    def by(self) -> str | None:
        """Who asks, as events say it."""
        return self.claims.subject or None if self.claims else None


class Operation(NamedTuple):
    """`body` and `answer` are the types of what comes and goes, None for nothing; `example` is a body.

    `scope` is what the token must have; None: whoever comes may, and is counted by address. `fault` is what a wrong
    body is called where its path does not tell; `root` is where the body stands in an agent, as the registry says it.
    """

    method: str
    path: str
    perform: Callable[[Call], Awaitable[Any]]
    name: str
    summary: str
    scope: str | None
    answer: Any
    status: HTTPStatus = HTTPStatus.OK
    query: type[msgspec.Struct] = NoQuery
    body: Any = None
    example: Any = None
    may_be_yaml: bool = False
    max_bytes: int = MAX_BYTES
    fault: Problem = INVALID_REQUEST
    root: str = "$"
    problems: tuple[Problem, ...] = ()

    @property
    def has_agent(self) -> bool:
        return "{agent_id}" in self.path
