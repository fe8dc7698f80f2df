"""What comes and goes that the registry has no type for: queries, shields, and some answers. Pure.

These types validate, and the OpenAPI document is made from them.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from broker.agents.model import MAX_LIMIT, MAX_OFFSET, Status, Summary
from broker.shield.validation import MAX_ENTRIES

Soul = dict[str, Any]
Entries = Annotated[list[str], Meta(max_length=MAX_ENTRIES)]


class Filesystem(msgspec.Struct, forbid_unknown_fields=True):
    """Absolute paths, paths under `~`, and globs of both."""

    allowed_paths: Entries | UnsetType = UNSET
    blocked_paths: Entries | UnsetType = UNSET


class Commands(msgspec.Struct, forbid_unknown_fields=True):
    """Regular expressions, as RE2 reads them."""

    allowed_patterns: Entries | UnsetType = UNSET
    blocked_patterns: Entries | UnsetType = UNSET


class Network(msgspec.Struct, forbid_unknown_fields=True):
    """Names, `*.example.com`, addresses and networks, each with or without a port."""

    allowed_hosts: Entries | UnsetType = UNSET
    blocked_hosts: Entries | UnsetType = UNSET


class Shield(msgspec.Struct, forbid_unknown_fields=True):
    """What an agent may do: a blocked entry wins, then the allowed list; an empty or absent one allows."""

    version: Literal["2.0"] | UnsetType = UNSET
    filesystem: Filesystem | UnsetType = UNSET
    commands: Commands | UnsetType = UNSET
    network: Network | UnsetType = UNSET


_OFFSET = (
    "after so many of the newest. Pages by offset shift when agents come and go: one may be shown twice, another not "
    "at all. The header `Link` leads through pages that do not"
)
_BEFORE = "where an answer's header `Link` says that the list goes on; without an offset"


class Listing(msgspec.Struct, frozen=True):
    """What the query of a list may say."""

    workspace_id: Annotated[str, Meta(description="of this workspace only")] | UnsetType = UNSET
    status: (
        Annotated[Status, Meta(description="with this status only", extra_json_schema={"type": "string"})] | UnsetType
    ) = UNSET
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="so many at most")] = 20
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET, description=_OFFSET)] = 0
    before: Annotated[str, Meta(description=_BEFORE)] | UnsetType = UNSET


class Items(msgspec.Struct):
    """A part of a list, newest first; `total` counts all that match."""

    items: list[Summary]
    total: int
    limit: int
    offset: int


class Removal(msgspec.Struct, frozen=True):
    """What the query of a delete may say."""

    purge: Annotated[bool, Meta(description="also remove the agent's events, tasks, runs and keys")] = False


class Made(msgspec.Struct):
    """A new agent. The pairing key is shown this once and good for 24 hours."""

    id: str
    name: str
    pairing_key: str


class Pairing(msgspec.Struct, forbid_unknown_fields=True):
    """An agent's side of the pairing."""

    pairing_key: Annotated[str, Meta(min_length=1, max_length=300)]


class Identity(msgspec.Struct):
    """Who the agent is, and the token that it proves that with."""

    agent_id: str
    workspace_id: str
    name: str
    token: str
    expires_in: Annotated[int, Meta(description="seconds for which the token is valid")]
