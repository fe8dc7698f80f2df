"""MaxiCore's relay: `/v2/ws`.

A client authenticates (query, header or first message), subscribes with filters and receives events. The document
shows events in two shapes, an envelope with `data` and the fields flat beside `type`; by default both stand in one
message, and `?envelope=flat` or `?envelope=nested` picks one.

Ours, for agents that come with a token of their own: they say `task.*` in either shape, and are given commands, which
they answer in the manner of `task.completed` and `task.failed`:

    {"type":"agent.command","command_id":"1790000000000-0","agent_id":"agent-123","command":"update_config",
     "parameters":{"model":"large-1"},"request_id":"req-1","expires_at":"2026-03-27T10:30:30.000Z"}
    {"type":"command.completed","command_id":"1790000000000-0","result":{"new_status":"idle"}}
    {"type":"command.failed","command_id":"1790000000000-0","error":{"code":"CONFIG_REJECTED","message":"no model"}}
"""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

import msgspec

from broker.catalog import CATALOG
from broker.events import Carried, moment

from ..limits import Limits
from ..messages import (
    Asked,
    Authenticate,
    Error,
    GapSaid,
    Notice,
    Ordered,
    Ping,
    PingSent,
    Pong,
    PongSent,
    Refused,
    Request,
    Said,
    Settle,
    Subscribe,
    Unsubscribe,
)
from ..reasons import INVALID_MESSAGE
from ..subscriptions import ByFilter
from .base import Dialect, Variant
from .reading import MAX_VALUES, ids, read

TYPES = frozenset(name for name, kind in CATALOG.items() if kind.dialect == "maxicore")

# "Too many simultaneous subscriptions (> 100)" end the connection, and so do 30 minutes in which nothing happens.
LIMITS = Limits(max_message_bytes=64 * 1024, max_subscriptions=100, may_idle=False)

# -- what a client says

Ids = str | Annotated[list[str], msgspec.Meta(max_length=MAX_VALUES)] | None


class _Filters(msgspec.Struct, forbid_unknown_fields=True):
    agent_id: Ids = None
    task_id: Ids = None
    workspace_id: Ids = None
    event_types: Ids = None


class _Auth(msgspec.Struct, tag="auth"):
    token: str


class _Subscribe(msgspec.Struct, tag="subscribe"):
    filters: _Filters | None = None
    since: str | dict[str, str] | None = None


class _Unsubscribe(msgspec.Struct, tag="unsubscribe"):
    filters: _Filters | None = None


class _Ping(msgspec.Struct, tag="ping"):
    pass


class _Pong(msgspec.Struct, tag="pong"):
    pass


class _Task(msgspec.Struct):
    """Its fields are judged as an event's, with all that is not in the catalog."""


class _TaskStarted(_Task, tag="task.started"):
    pass


class _TaskProgress(_Task, tag="task.progress"):
    pass


class _TaskCompleted(_Task, tag="task.completed"):
    pass


class _TaskFailed(_Task, tag="task.failed"):
    pass


class _CommandCompleted(msgspec.Struct, tag="command.completed"):
    command_id: str
    result: dict[str, Any] | None = None


class _CommandError(msgspec.Struct):
    code: str
    message: str


class _CommandFailed(msgspec.Struct, tag="command.failed"):
    command_id: str
    error: _CommandError


_Tasks = _TaskStarted | _TaskProgress | _TaskCompleted | _TaskFailed
_Messages = _Auth | _Subscribe | _Unsubscribe | _Ping | _Pong | _Tasks | _CommandCompleted | _CommandFailed
_NAMES = tuple(str(message.__struct_config__.tag) for message in get_args(_Messages))
_decoder = msgspec.json.Decoder(_Messages)


def decode(text: str) -> Request:
    """A client's message. Raises `Refused` with the path of what is wrong."""
    message = read(_decoder, text, _NAMES)
    match message:
        case _Auth(token):
            return Authenticate(token)
        case _Subscribe(filters, since):
            return Subscribe(_asked(filters), since)
        case _Unsubscribe(filters):
            return Unsubscribe(_asked(filters))
        case _Ping():
            return Ping()
        case _CommandCompleted(command, result):
            return Settle(command, result)
        case _CommandFailed(command, error):
            return Settle(command, error=(error.code, error.message))
        case _Task():
            return _said(str(message.__struct_config__.tag), text)
        case _:
            return Pong()


def _said(kind: str, text: str) -> Said:
    """An event in one of the shapes of the document, or in both."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Refused(INVALID_MESSAGE, "not JSON that can be carried") from None
    del fields["type"]
    timestamp = fields.pop("timestamp", None)
    if "data" not in fields:
        return Said(kind, fields, timestamp)
    data = fields.pop("data")
    if not isinstance(data, dict):
        raise Refused(INVALID_MESSAGE, "$.data: expected object")
    if any(fields[name] != data[name] for name in fields.keys() & data.keys()):
        raise Refused(INVALID_MESSAGE, "$.data: contradicts what stands beside it")
    return Said(kind, fields | data, timestamp, is_nested=True)


def _asked(filters: _Filters | None) -> Asked:
    if filters is None:
        return Asked()
    types = ids(filters.event_types, "$.filters.event_types")
    if types is not None and not types <= TYPES:
        # What was given is not repeated: it might be anything, a token too.
        raise Refused(INVALID_MESSAGE, f"$.filters.event_types: expected some of {', '.join(sorted(TYPES))}")
    return Asked(
        workspaces=ids(filters.workspace_id, "$.filters.workspace_id"),
        agents=ids(filters.agent_id, "$.filters.agent_id"),
        subjects=ids(filters.task_id, "$.filters.task_id"),
        types=types,
    )


# -- what a client hears


class _Envelope(msgspec.Struct, omit_defaults=True):
    type: str
    timestamp: str | None = None
    workspace_id: str | None = None
    agent_id: str | None = None
    task_id: str | None = None
    event_id: str | None = None


_encode = msgspec.json.Encoder().encode
_QUOTE = ord('"')  # the second character of nearly every object: one with members, and without spaces


def encode_both(event: Carried) -> bytes | None:
    if event.type not in TYPES:
        return None
    data = bytes(event.data)
    return b"".join((_top(event), _members(data), b',"data":', data, b"}"))


def encode_flat(event: Carried) -> bytes | None:
    if event.type not in TYPES:
        return None
    data = bytes(event.data)
    if data[1] == _QUOTE:
        return b"".join((_top(event), b",", data[1:]))
    return b"".join((_top(event), _members(data), b"}"))


def encode_nested(event: Carried) -> bytes | None:
    if event.type not in TYPES:
        return None
    return b"".join((_top(event), b',"data":', event.data, b"}"))


def _top(event: Carried) -> bytes:
    """The fields that always stand on top, as an object without its closing brace."""
    top = _Envelope(event.type, event.timestamp, event.workspace_id, event.agent_id, event.task_id, event.id)
    return _encode(top)[:-1]


def _members(data: bytes) -> bytes:
    """The members of an object, with a comma before them; nothing for an empty one."""
    inner = data[1:-1].strip()
    return b"," + inner if inner else b""


def choose(query: Mapping[str, str]) -> str:
    """`?envelope=` flat or nested; both when it is not given."""
    name = query.get("envelope", "both")
    if name not in VARIANTS:
        raise Refused(INVALID_MESSAGE, "envelope: expected flat or nested")
    return name


def say(notice: Notice, now: float) -> bytes | None:
    """Success is silent; so are greetings and farewells."""
    message: dict[str, Any]
    match notice:
        case Error(reason, detail):
            message = {"type": "error", "error": {"code": reason.code, "message": detail}}
        case PingSent(complete):
            message = {"type": "ping"} | ({"event_id": complete} if complete else {})
        case PongSent(_, complete):
            message = {"type": "pong"} | ({"event_id": complete} if complete else {})
        case Ordered(command):
            message = {
                "type": "agent.command",
                "command_id": command.id,
                "agent_id": command.agent_id,
                "command": command.name,
                "parameters": command.parameters,
                "request_id": command.request_id,
                "expires_at": moment(command.deadline),
            }
        case GapSaid(workspace, since, oldest):
            message = {"type": "resume.gap", "workspace_id": workspace, "since": since, "oldest": oldest}
        case _:
            return None
    return _encode(message)


VARIANTS = {
    name: Variant("maxicore", name, encode)
    for name, encode in (("both", encode_both), ("flat", encode_flat), ("nested", encode_nested))
}

MAXICORE = Dialect(
    name="maxicore",
    path="/v2/ws",
    limits={"production": LIMITS, "development": LIMITS},
    variants=VARIANTS,
    choose=choose,
    decode=decode,
    say=say,
    subscriptions=ByFilter,
    token_later=True,
    agents_speak=True,
)
