"""Events: the value that producers make, and the form in which it travels.

    Event  ── pack ──▶  Packed (JSON, split where publish.lua adds positions)  ──▶  Redis
    Redis  ──▶  bytes on a channel or in the log  ── unpack ──▶  Carried (ids and type read, `data` still raw)

On the wire inside Redis an event is one JSON object:

    {"id":"1790000000000-0","prev":"…","agent_prev":"…","type":"task.progress","workspace_id":"ws-456",
     "agent_id":"agent-123","task_id":"task-456","timestamp":"2026-03-27T10:30:45Z","data":{"step":3}}

`id`, `prev` and `agent_prev` are written by publish.lua: its position, and the positions before it in its workspace and
of its agent. An event without them is live only. The ids of workspace, agent and subject never stand in `data`.
"""

import json
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from .catalog import CATALOG, EventType
from .errors import Invalid
from .keyspace import check_id, check_workspace
from .positions import START, parse

MAX_EVENT_BYTES = 256 * 1024

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d):(\d\d)(?:\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_encode = msgspec.json.Encoder().encode
_PRINTABLE = "expected printable characters"


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

    `id` is None for what is live only. `made` keeps what others made of it, each under a key of its own, so that it is
    made once: a dialect's frame under its variant.
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
    made: dict[Any, Any] = {}

    @property
    def subject(self) -> str | None:
        """The id of what the event is about: a task, an inference or an execution."""
        return self.task_id or self.inference_id or self.execution_id

    @property
    def labels(self) -> "Labels":
        """What a filter may ask of `data`; read when the first one does."""
        labels: Labels | None = self.made.get(Labels)
        if labels is None:
            labels = self.made[Labels] = _labels(self.data)
        return labels

    def event(self) -> Event:
        """The value its producer gave, with its position."""
        try:
            data = msgspec.json.decode(self.data)
        except msgspec.ValidationError:
            data = json.loads(bytes(self.data))  # it has a number past what a float holds: infinite, as in a browser
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


class Labels(NamedTuple):
    """How bad it is and what it is about, as alerts and the state of a system say it; None: it does not say."""

    severity: str | None = None
    components: frozenset[str] | None = None


class _Labelled(msgspec.Struct):
    severity: Any = None
    affected_components: Any = None
    components: Any = None


_labelled = msgspec.json.Decoder(_Labelled)
_carried = msgspec.json.Decoder(Carried)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _data_decoder(kind: EventType) -> msgspec.json.Decoder[Any]:
    """A decoder of `data` that finds, in the same pass, ids to lift, and fails where a name of the envelope stands."""
    fields: list[tuple[str, Any, Any]] = [(name, Literal["\x00"] | UnsetType, UNSET) for name in sorted(kind.reserved)]
    ids = {"lifted_workspace": "workspace_id", "lifted_agent": "agent_id", "lifted_subject": kind.subject or " "}
    fields += [(name, _Id | UnsetType, msgspec.field(default=UNSET, name=key)) for name, key in ids.items()]
    return msgspec.json.Decoder(msgspec.defstruct(kind.data.__name__, fields, bases=(kind.data,), kw_only=True))


# Each type with the check of its `data`.
_known = {name: (kind, _data_decoder(kind).decode) for name, kind in CATALOG.items()}


def now() -> str:
    """This moment as the protocols write it: UTC with milliseconds."""
    return moment(int(time.time() * 1000))


@lru_cache(64)  # many events share a millisecond
def moment(milliseconds: int) -> str:
    """A Unix time as the protocols write it."""
    second, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


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
        _check_timestamp(check_id(event.timestamp, "$.timestamp"))
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


def unpack(  # noqa: PLR0915 (one pass over a message, on the hot path)
    message: bytes, workspace: str, agent: str | None = None, position: str | None = None
) -> Carried:
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
    event.made = {}
    if position is not None:
        event.id = position
    if event.id is not None:
        for place in (event.id, event.prev or START, event.agent_prev or START):
            if parse(place) is None:
                raise Invalid("$.id", "not a position, or none before it")
    known = _known.get(event.type)
    if known is None:
        raise _no_kind(event.type)
    kind, decode_data = known
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
        fields = decode_data(event.data)
        if (
            fields.lifted_subject is not UNSET
            or fields.lifted_agent is not UNSET
            or fields.lifted_workspace is not UNSET
        ):
            _lift_raw(event, kind, fields)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid_data(kind, error) from error
    if agent is None:
        if event.agent_id is not None:
            if not event.agent_id.isprintable():
                raise Invalid("$.agent_id", _PRINTABLE)
        elif kind.needs_agent:
            raise Invalid("$.agent_id", f"{kind.name} needs the id of its agent")
    elif event.agent_id != (agent or None):  # somebody who follows this channel has given its agent's id
        raise Invalid("$.agent_id", "not the agent of this channel")
    elif not agent and kind.needs_agent:
        raise Invalid("$.agent_id", f"{kind.name} needs the id of its agent")
    if event.task_id is not None and not event.task_id.isprintable():
        raise Invalid("$.task_id", _PRINTABLE)
    if event.inference_id is not None and not event.inference_id.isprintable():
        raise Invalid("$.inference_id", _PRINTABLE)
    if event.execution_id is not None and not event.execution_id.isprintable():
        raise Invalid("$.execution_id", _PRINTABLE)
    if kind.needs_subject and getattr(event, kind.subject or "") is None:
        raise Invalid(f"$.{kind.subject}", "required")
    return event


def _labels(data: msgspec.Raw) -> Labels:
    try:
        found = _labelled.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Labels()  # they are no words, so nobody asks for them
    components = found.affected_components if found.affected_components is not None else found.components
    return Labels(
        severity=found.severity if isinstance(found.severity, str) else None,
        components=frozenset(name for name in components if isinstance(name, str))
        if isinstance(components, list | dict)
        else None,
    )


def _lift_raw(event: Carried, kind: EventType, fields: Any) -> None:
    """Lift the ids that `fields` found in `data`. Raises `Invalid` where one is another than beside `data`."""
    raw = bytes(event.data)
    if fields.lifted_subject is not UNSET and kind.subject is not None:
        raw = _lift_one(event, kind.subject, fields.lifted_subject, raw)
    if fields.lifted_agent is not UNSET:
        raw = _lift_one(event, "agent_id", fields.lifted_agent, raw)
    if fields.lifted_workspace is not UNSET:
        raw = _lift_one(event, "workspace_id", fields.lifted_workspace, raw)
    event.data = msgspec.Raw(raw)


def _lift_one(event: Carried, name: str, value: str, raw: bytes) -> bytes:
    """Give `event` the id `value`; answers `raw` without it."""
    if getattr(event, name) not in (None, value):
        raise Invalid(f"$.data.{name}", f"another than $.{name}")
    setattr(event, name, value)
    first = f'{{"{name}":"{value}",'.encode()
    rest = raw[len(first) :]
    if raw.startswith(first) and f'"{name}"'.encode() not in rest and b"\\" not in rest:
        return b"{" + rest  # as the documents write it: nothing need be parsed
    data = _members.decode(raw)
    del data[name]
    return _encode(data)


def _kind(name: object) -> EventType:
    kind = CATALOG.get(name) if isinstance(name, str) else None
    if kind is None:
        raise _no_kind(name)
    return kind


def _no_kind(name: object) -> Invalid:
    return Invalid("$.type", f"no event type {name!r} in the catalog" if name else "expected the name of an event type")


def _check_data(kind: EventType, raw: bytes | msgspec.Raw) -> Any:
    """The fields of `raw` that the catalog types. Raises `Invalid`."""
    try:
        return _known[kind.name][1](raw)
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


@lru_cache(1024)  # events of one moment share it
def _check_timestamp(value: str) -> None:
    match = _RFC3339.fullmatch(value)
    try:
        if match is not None:
            # The 60th second is a leap second, which `datetime` does not know.
            datetime.fromisoformat(f"{match[1]}T{match[2]}:{min(int(match[3]), 59):02d}{match[4].upper()}")
            if int(match[3]) <= 60:
                return
    except ValueError:
        pass
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
