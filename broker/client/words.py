"""MaxiCore's words as a client says and hears them (`?envelope=nested`): text ⇄ values.

A word that is not known is None: a newer gateway may say more than we understand.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec

from ..events import Event
from ..lines import Gap
from ..positions import START, Position, parse

# The position up to which a connection is complete: of its token's only workspace, or of each of its workspaces.
Complete = str | dict[str, str] | None

PING = '{"type":"ping"}'
PONG = '{"type":"pong"}'


class Asked(NamedTuple):
    """What is watched: every part that is given holds, None asks nothing."""

    workspaces: frozenset[str] | None = None
    agents: frozenset[str] | None = None
    tasks: frozenset[str] | None = None
    types: frozenset[str] | None = None


class Ping(NamedTuple):
    """Wants a pong."""

    complete: Complete


class Pong(NamedTuple):
    complete: Complete


class Error(NamedTuple):
    code: str
    text: str


class NoMessage(Exception):  # noqa: N818 (a statement of what was received)
    """What was received is no message of a gateway."""


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Message(msgspec.Struct):
    type: str
    timestamp: str | None = None
    workspace_id: str = ""
    agent_id: str | None = None
    task_id: str | None = None
    event_id: Complete = None
    data: dict[str, Any] | None = None
    error: _Error = msgspec.field(default_factory=_Error)
    since: str = START
    oldest: str | None = None


_decoder = msgspec.json.Decoder(_Message)


def subscribe(asked: Asked, since: str | Mapping[str, str] | None) -> str:
    """Ask for events: those after `since` first, where it is given."""
    names = ("workspace_id", "agent_id", "task_id", "event_types")
    filters = {name: sorted(ids) for name, ids in zip(names, asked, strict=True) if ids is not None}
    message = {"type": "subscribe", "filters": filters} | ({"since": since} if since is not None else {})
    return msgspec.json.encode(message).decode()


def read(text: str | bytes, agents: Collection[str] | None = None) -> Event | Gap | Ping | Pong | Error | None:
    """What a gateway says to who watches `agents`. Raises `NoMessage`."""
    try:
        message = _decode(text)
        positions = message.event_id.values() if isinstance(message.event_id, dict) else (message.event_id or START,)
        if any(parse(position) is None for position in (*positions, message.since, message.oldest or START)):
            raise NoMessage("a position that is none")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NoMessage(f"not a message of a gateway: {type(error).__name__}") from None
    match message.type:
        case "ping":
            return Ping(message.event_id)
        case "pong":
            return Pong(message.event_id)
        case "error":
            return Error(message.error.code, message.error.message)
        case "resume.gap":
            oldest = Position(message.oldest) if message.oldest is not None else None
            named = frozenset(agents) if agents is not None else None
            return Gap(message.workspace_id, named, Position(message.since), oldest)
    if message.data is None or not message.workspace_id or isinstance(message.event_id, dict):
        return None
    return Event(
        type=message.type,
        workspace_id=message.workspace_id,
        agent_id=message.agent_id,
        data=({"task_id": message.task_id} if message.task_id is not None else {}) | message.data,
        timestamp=message.timestamp,
        ephemeral=message.event_id is None,
        id=message.event_id,
    )


def _decode(text: str | bytes) -> _Message:
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        # It may have a number past what a float holds: infinite, as in a browser.
        return msgspec.convert(json.loads(text, parse_int=_whole), _Message)


def _whole(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # it has more digits than Python reads
        return float(digits)
