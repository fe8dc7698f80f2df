"""The Agents API (seed 001): nine operations, each a few words between a request that was understood and the registry.

An agent in a workspace that the token does not name is as if it did not exist; a workspace that the token does not
name is refused, never silently empty.
"""

from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET

from broker import Invalid
from broker.agents import AgentMissing
from broker.agents.documents import MAX_SOUL_BYTES
from broker.agents.model import Agent, Draft, Patch

from ..auth import claims_for, sign
from . import examples
from .answers import (
    AGENT_NOT_FOUND,
    FORBIDDEN,
    INVALID_AGENT_NAME,
    INVALID_PAIRING_KEY,
    INVALID_REQUEST,
    INVALID_SHIELD,
    INVALID_SOUL,
    UNAVAILABLE,
    Failure,
    Headed,
    Problem,
)
from .bodies import checked
from .operations import Call, Operation
from .shapes import Identity, Items, Listing, Made, Pairing, Removal, Shield, Soul

READ, WRITE = "agents:read", "agents:write"

# What an agent may do with the token of its own.
AGENT_SCOPE = "agents:read events:write"


async def list_agents(call: Call) -> Headed:
    asked: Listing = call.query
    workspaces = call.workspaces
    if asked.workspace_id is not UNSET:
        workspaces = frozenset((_own(call, asked.workspace_id, "workspace_id"),))
    status = None if asked.status is UNSET else asked.status
    before = None if asked.before is UNSET else asked.before
    page = await call.agents.list(workspaces, status, asked.limit, asked.offset, before)
    headers = {} if page.next is None else {"Link": _link(asked, page.next)}
    return Headed(Items(page.items, page.total, asked.limit, asked.offset), headers)


async def get_agent(call: Call) -> Agent:
    return await call.agents.get(call.workspaces, call.agent_id)


async def create_agent(call: Call) -> Made:
    draft: Draft = call.body
    _check_shape(draft.shield)
    created = await call.agents.create(_own(call, draft.workspace_id, "$.workspace_id"), draft, by=call.by)
    return Made(created.id, created.name, created.pairing_key)


async def update_agent(call: Call) -> Agent:
    patch: Patch = call.body
    if patch.shield is not UNSET:
        _check_shape(patch.shield)
    return await call.agents.update(call.workspaces, call.agent_id, patch, by=call.by)


async def delete_agent(call: Call) -> None:
    await call.agents.delete(call.workspaces, call.agent_id, purge=call.query.purge, by=call.by)


async def update_soul(call: Call) -> Soul:
    return await call.agents.update_soul(call.workspaces, call.agent_id, call.body, by=call.by)


async def get_shield(call: Call) -> dict[str, Any]:
    return (await call.agents.get(call.workspaces, call.agent_id)).shield


async def update_shield(call: Call) -> dict[str, Any]:
    return await call.agents.update_shield(call.workspaces, call.agent_id, msgspec.to_builtins(call.body), by=call.by)


async def pair_agent(call: Call) -> Identity:
    settings = call.settings
    if not settings.jwt_secret:  # before the key is used up
        raise Failure(UNAVAILABLE, "This fleet cannot make tokens: its nodes have no HS256 secret")
    try:
        paired = await call.agents.pair(call.body.pairing_key)
    except AgentMissing:
        raise Failure(INVALID_PAIRING_KEY) from None
    seconds, agent = settings.agent_token_seconds, paired.agent_id
    claims = claims_for(settings, agent, [paired.workspace], seconds, scope=AGENT_SCOPE, agent=agent)
    return Identity(agent, paired.workspace, paired.name, sign(settings, claims), seconds)


def _link(asked: Listing, before: str) -> str:
    """Where what was `asked` for goes on (RFC 8288)."""
    query = {"workspace_id": asked.workspace_id, "status": asked.status, "limit": asked.limit, "before": before}
    given = {name: value for name, value in query.items() if value is not UNSET}
    return f'</v2/agents?{urlencode(given)}>; rel="next"'


def _own(call: Call, workspace: str, path: str) -> str:
    """A workspace that the token names. Raises `Failure`."""
    if workspace not in call.workspaces:
        raise Failure(FORBIDDEN, f"{path}: the token does not name this workspace")
    return workspace


def _check_shape(shield: dict[str, Any]) -> None:
    """What has not the shape of an agent is the request's fault, also in its shield. Raises `Failure` with the path."""
    try:
        checked(lambda: msgspec.convert(shield, Shield))
    except Invalid as error:
        raise Failure(INVALID_REQUEST, f"$.shield{error.path.removeprefix('$')}: {error.reason}") from None


_AGENT = "/v2/agents/{agent_id}"
_UNKNOWN: tuple[Problem, ...] = (AGENT_NOT_FOUND,)
_FIELDS: tuple[Problem, ...] = (INVALID_AGENT_NAME, INVALID_SOUL, INVALID_SHIELD)

OPERATIONS = (
    Operation("GET", "/v2/agents", list_agents, "list_agents", "List agents", READ, Items, query=Listing),
    Operation(
        "POST", "/v2/agents", create_agent, "create_agent", "Create an agent", WRITE, Made,
        status=HTTPStatus.CREATED, body=Draft, example=examples.CREATE, problems=_FIELDS,
    ),
    # Before those with an id: `pair` is none.
    Operation(
        "POST", "/v2/agents/pair", pair_agent, "pair_agent", "Exchange a pairing key for an agent's token, once", None,
        Identity, body=Pairing, example=examples.PAIR, problems=(INVALID_PAIRING_KEY,),
    ),
    Operation("GET", _AGENT, get_agent, "get_agent", "Get an agent", READ, Agent, problems=_UNKNOWN),
    Operation(
        "PUT", _AGENT, update_agent, "update_agent", "Change an agent; sections are merged", WRITE, Agent,
        body=Patch, example=examples.UPDATE, problems=_FIELDS + _UNKNOWN,
    ),
    Operation(
        "DELETE", _AGENT, delete_agent, "delete_agent", "Delete an agent", WRITE, None,
        status=HTTPStatus.NO_CONTENT, query=Removal, problems=_UNKNOWN,
    ),
    Operation(
        "POST", f"{_AGENT}/soul", update_soul, "update_soul", "Merge into an agent's soul", WRITE, Soul,
        body=Soul, example=examples.SOUL, may_be_yaml=True, max_bytes=MAX_SOUL_BYTES, fault=INVALID_SOUL,
        root="$.soul", problems=_UNKNOWN,
    ),
    Operation(
        "GET", f"{_AGENT}/shield", get_shield, "get_shield", "Get an agent's shield", READ, Shield,
        problems=_UNKNOWN,
    ),
    Operation(
        "PUT", f"{_AGENT}/shield", update_shield, "update_shield", "Replace sections of an agent's shield", WRITE,
        Shield, body=Shield, example=examples.SHIELD, fault=INVALID_SHIELD, root="$.shield", problems=_UNKNOWN,
    ),
)  # fmt: skip
