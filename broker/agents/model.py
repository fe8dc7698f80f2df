"""Agents as values: what is told to make or change one, and what is answered. Pure."""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Mode = Annotated[str, Meta(min_length=1, max_length=255)]
Status = Literal["online", "offline", "error"]

# Of what a list may be asked for. Past this offset nobody has agents.
MAX_LIMIT = 100
MAX_OFFSET = 1_000_000_000


class Draft(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An agent to be made."""

    name: Name
    workspace_id: str
    mode: Mode = "computer"
    soul: dict[str, Any] = {}
    shield: dict[str, Any] = {}


class Patch(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is to be changed: sections of soul and shield are merged into what is there."""

    name: Name | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET
    soul: dict[str, Any] | UnsetType = UNSET
    shield: dict[str, Any] | UnsetType = UNSET


class Created(NamedTuple):
    """The pairing key is shown this once: only its hash is stored."""

    id: str
    name: str
    pairing_key: str


class Paired(NamedTuple):
    """Whose pairing key it was."""

    agent_id: str
    workspace: str
    name: str


class Summary(msgspec.Struct, kw_only=True):
    """An agent in a list. Times are RFC 3339."""

    id: str
    name: str
    status: Status
    workspace_id: str
    mode: str
    last_activity: str | None
    credits_used: int


class Agent(msgspec.Struct, kw_only=True):
    """All of an agent."""

    id: str
    name: str
    status: Status
    mode: str
    workspace_id: str
    created_at: str
    last_activity: str | None
    credits_used: int
    soul: dict[str, Any]
    shield: dict[str, Any]


class Page(NamedTuple):
    """A part of a list; `total` counts all that match. `next` is where the list goes on; None: nowhere."""

    items: list[Summary]
    total: int
    next: str | None
