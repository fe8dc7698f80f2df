"""Events: the value that producers make, and the form in which it travels.

    Event  ── pack ──▶  Packed (JSON, split where publish.lua adds positions)  ──▶  Redis
    Redis  ──▶  bytes on a channel or in the log  ── unpack ──▶  Carried (ids and type read, `data` still raw)

On the wire inside Redis an event is one JSON object:

    {"id":"1790000000000-0","prev":"…","agent_prev":"…","type":"task.progress","workspace_id":"ws-456",
     "agent_id":"agent-123","task_id":"task-456","timestamp":"2026-03-27T10:30:45Z","data":{"step":3}}

`id`, `prev` and `agent_prev` are written by publish.lua: its position, and the positions before it in its workspace and
of its agent. An event without them is live only. The ids of workspace, agent and subject never stand in `data`.
"""

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from .catalog import CATALOG, EventType
from .errors import Invalid
from .keyspace import check_id, check_workspace
from .positions import parse

MAX_EVENT_BYTES = 256 * 1024

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something that happened, as its producer says it.

    `type` is a name of the catalog; `data` holds the fields of its document, flat. The ids of agent and subject may
    stand in `data` as the documents show them. `timestamp` is RFC 3339; None is the time of publishing. An ephemeral
    event is live only: no position, not in the log. `id` is its position, known of events that were received.
    """

    type: str
    workspace_id: str
    agent_id: str | None = None
    data: dict[str, Any] = {}
    timestamp: str | None = None
    ephemeral: bool = False
    id: str | None = None


class Packed(NamedTuple):
    """An event ready to be sent: validated, ids lifted.

    `stamp` is the timestamp we gave it, `rest` everything its producer said: equal events have an equal `rest`.
    """

    workspace: str
    agent: str
    kind: str
    stamp: bytes
    rest: bytes


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Carried(msgspec.Struct, kw_only=True, gc=False):
    """An event as a node carries it. `data` is an object's JSON, checked, to be copied and not read.

    `id` is None for what is live only. `frames` keeps what a dialect made of it, per variant, so that it is made once.
    """

    type: str
    data: msgspec.Raw
    id: str | None = None
    prev: str | None = None
    agent_prev: str | None = None
    workspace_id: str = ""
    agent_id: _Id | None = None
    task_id: _Id | None = None
    inference_id: _Id | None = None
    execution_id: _Id | None = None
    timestamp: str | None = None
    frames: dict[Any, bytes | None] = {}

    @property
    def subject(self) -> str | None:
        """The id of what the event is about: a task, an inference or an execution."""
        return self.task_id or self.inference_id or self.execution_id

    def event(self) -> Event:
        """The value its producer gave, with its position."""
        data = msgspec.json.decode(self.data)
        if (name := CATALOG[self.type].subject) is not None and self.subject is not None:
            data = {name: self.subject} | data
        return Event(
            type=self.type,
            workspace_id=self.workspace_id,
            agent_id=self.agent_id,
            data=data,
            timestamp=self.timestamp,
            ephemeral=self.id is None,
            id=self.id,
        )


_carried = msgspec.json.Decoder(Carried)


def _data_decoder(kind: EventType) -> msgspec.json.Decoder[Any]:
    """A decoder of `data` that fails, in the same pass, where a name of the envelope or an id stands in it."""
    own = {field.encode_name for field in msgspec.structs.fields(kind.data)}
    foreign = (kind.reserved | {"workspace_id", "agent_id", kind.subject or "agent_id"}) - own
    never = Literal["\x00"] | UnsetType
    fields = [(name, never, UNSET) for name in sorted(foreign)]
    return msgspec.json.Decoder(msgspec.defstruct(kind.data.__name__, fields, bases=(kind.data,), kw_only=True))


_data_decoders = {name: _data_decoder(kind) for name, kind in CATALOG.items()}


def now() -> str:
    """This moment as the protocols write it: UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def pack(event: Event) -> Packed:
    """Validate `event` and lift its ids out of `data`. Raises `Invalid` with the path of the wrong field."""
    kind = _kind(event.type)
    workspace = check_workspace(event.workspace_id, "$.workspace_id")
    data = event.data
    if not isinstance(data, dict):
        raise Invalid("$.data", f"expected object, got {type(data).__name__}")
    subject: object = None
    agent: object = event.agent_id
    if "agent_id" in data or "workspace_id" in data or kind.subject in data:
        data = dict(data)
        agent = _lift(data, "agent_id", agent)
        _lift(data, "workspace_id", workspace)
        subject = data.pop(kind.subject, None) if kind.subject else None
    if agent is not None:
        check_id(agent, "$.agent_id")
    elif kind.needs_agent:
        raise Invalid("$.agent_id", f"{kind.name} needs the id of its agent")
    if subject is not None:
        check_id(subject, f"$.data.{kind.subject}")
    elif kind.needs_subject:
        raise Invalid(f"$.data.{kind.subject}", "required")
    if event.timestamp is not None:
        _check_timestamp(event.timestamp)
    try:
        raw = _encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid("$.data", f"cannot be written as JSON: {error}") from error
    fields = _check_data(kind, raw)
    head: dict[str, object] = {"type": kind.name, "workspace_id": workspace}
    if agent is not None:
        head["agent_id"] = agent
    if subject is not None and kind.subject is not None:
        head[kind.subject] = subject
    if event.timestamp is not None:
        head["timestamp"] = event.timestamp
    try:
        rest = _encode(head)[1:-1] + b',"data":' + raw + b"}"
    except UnicodeEncodeError as error:
        raise Invalid("$", "text that is not Unicode") from error
    if len(rest) > MAX_EVENT_BYTES:
        raise Invalid("$", f"the event has {len(rest)} bytes, at most {MAX_EVENT_BYTES} are carried")
    stamp = b"" if event.timestamp is not None else b'"timestamp":"%s",' % now().encode()
    credits_used = getattr(fields, "credits_used", None)
    used = str(credits_used) if isinstance(credits_used, int) else "0"
    return Packed(workspace, str(agent or ""), "-" if event.ephemeral or not kind.durable else used, stamp, rest)


def unpack(message: bytes, workspace: str, agent: str | None = None, position: str | None = None) -> Carried:
    """Read what came on the channel of `workspace` (and of `agent`), or stands in its log at `position`.

    Anyone may PUBLISH: nothing is believed. Raises `Invalid` for whatever is not one valid event of this very channel.
    """
    try:
        # The decoder checks everything but the UTF-8 of what it leaves raw.
        if not message.isascii():
            message.decode()
        event = _carried.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(error) from error
    if len(message) > 2 * MAX_EVENT_BYTES:
        raise Invalid("$", f"the event has {len(message)} bytes")
    event.frames = {}
    if position is not None:
        event.id = position
    elif event.id is not None and parse(event.id) is None:
        raise Invalid("$.id", "not a position")
    kind = _kind(event.type)
    if event.workspace_id != workspace:
        if event.workspace_id:
            raise Invalid("$.workspace_id", "not the workspace of this channel")
        event.workspace_id = workspace
    if event.agent_id is None and agent:
        event.agent_id = agent
    if event.timestamp is None:
        event.timestamp = now()
    else:
        _check_timestamp(event.timestamp)
    try:
        _data_decoders[kind.name].decode(event.data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if not _lift_raw(event, kind):
            raise _invalid_data(kind, error) from error
    if agent is not None and (event.agent_id or "") != agent:
        raise Invalid("$.agent_id", "not the agent of this channel")
    if kind.needs_agent and event.agent_id is None:
        raise Invalid("$.agent_id", f"{kind.name} needs the id of its agent")
    if kind.needs_subject and getattr(event, kind.subject or "") is None:
        raise Invalid(f"$.{kind.subject}", "required")
    # Only an escape or a letter beyond ASCII can hide what is not printable.
    if (b"\\" in message or not message.isascii()) and not "".join(filter(None, _ids(event))).isprintable():
        raise Invalid("$", "expected ids of printable characters")
    return event


def _ids(event: Carried) -> tuple[str | None, ...]:
    return event.agent_id, event.task_id, event.inference_id, event.execution_id


def _lift_raw(event: Carried, kind: EventType) -> bool:
    """Lift ids that stand in `data`, as the documents show them; False when there are none. Raises `Invalid`."""
    try:
        data = msgspec.json.decode(event.data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    names = [name for name in ("workspace_id", "agent_id", kind.subject or "agent_id") if name in _keys(data)]
    for name in names:
        value = data.pop(name, getattr(event, name))
        if getattr(event, name) not in (None, value):
            raise Invalid(f"$.data.{name}", f"another than $.{name}")
        setattr(event, name, check_id(value, f"$.data.{name}"))
    if names:
        event.data = msgspec.Raw(_encode(data))
        _check_data(kind, event.data)
    return bool(names)


def _keys(data: object) -> Collection[str]:
    return data.keys() if isinstance(data, dict) else ()


def _kind(name: object) -> EventType:
    kind = CATALOG.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Invalid(
            "$.type", f"no event type {name!r} in the catalog" if name else "expected the name of an event type"
        )
    return kind


def _check_data(kind: EventType, raw: bytes | msgspec.Raw) -> Any:
    """The fields of `raw` that the catalog types. Raises `Invalid`."""
    try:
        return _data_decoders[kind.name].decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid_data(kind, error) from error


def _invalid_data(kind: EventType, error: Exception) -> Invalid:
    invalid = _invalid(error, "$.data")
    if invalid.path.removeprefix("$.data.") in kind.reserved:
        reason = f"stands on the envelope of {kind.name}: give it beside data, or under another name"
        return Invalid(invalid.path, reason)
    return invalid


def _lift(data: dict[str, Any], name: str, given: object) -> object:
    value = data.pop(name, None)
    if value is None or value == given:
        return given
    if given is not None:
        raise Invalid(f"$.data.{name}", f"another than $.{name}")
    return value


def _check_timestamp(value: object) -> None:
    if isinstance(value, str) and value[10:11] == "T" and value[-1] == "Z":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise Invalid("$.timestamp", "expected RFC 3339, as 2026-03-27T10:30:45Z")


def _invalid(error: Exception, root: str = "$") -> Invalid:
    """msgspec's words (`Expected `int`, got `str` - at `$.step``) as an `Invalid` under `root`."""
    if isinstance(error, RecursionError):
        return Invalid(root, "nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return Invalid(root, "not UTF-8")
    text, _, where = str(error).partition(" - at ")
    path = root + where.strip("`").removeprefix("$")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        return Invalid(f"{path}.{missing[1]}", "required")
    return Invalid(path, (text[:1].lower() + text[1:]).replace("`", ""))
