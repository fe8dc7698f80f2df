"""FreeAgentics' socket: `/api/v1/ws`.

A client brings its token in the handshake and is greeted. It subscribes to event types by name, for all agents or some,
may send commands to agents, and hears of everything in one form: `{"type", "timestamp", "data": {…}}`.
"""

from collections.abc import Mapping
from importlib.metadata import version
from math import ceil
from typing import Annotated, Any

import msgspec

from broker.catalog import CATALOG
from broker.events import Carried, moment

from .. import frames
from ..limits import Limits
from ..messages import (
    Asked,
    Authenticate,
    Command,
    Complete,
    Configure,
    Confirmed,
    Disconnect,
    Error,
    Expiring,
    Farewell,
    GapSaid,
    NearLimit,
    Notice,
    Ping,
    Pong,
    PongSent,
    PoolSaid,
    Refused,
    Request,
    StatusSaid,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from ..reasons import (
    AGENT_OFFLINE,
    AGENT_UNKNOWN,
    COMMAND_TIMEOUT,
    EVENTS_LOST,
    FLOOD,
    FORBIDDEN,
    GOING_AWAY,
    INVALID_MESSAGE,
    INVALID_TOKEN,
    PONG_TIMEOUT,
    SLOW_CONSUMER,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_ERRORS,
    TOO_MANY_EVENT_TYPES,
    TOO_MANY_MESSAGES,
    UNKNOWN_COMMAND,
    UNKNOWN_EVENT_TYPE,
)
from ..subscriptions import ByType
from .base import Dialect, Variant
from .reading import MAX_VALUES, ids, may_be_told, one_id, read

VERSION = version("trunkline")

# "Production Limits" and "Development Limits". Five connections at their full rate make a user's messages.
PRODUCTION = Limits(
    max_message_bytes=64 * 1024,
    max_connections_per_user=5,
    max_connections_per_address=20,
    max_connects_per_minute=10,
    max_messages_per_minute=100,
    max_user_messages_per_minute=500,
    max_event_types=20,
    warn_seconds=60.0,
)
DEVELOPMENT = Limits(
    max_message_bytes=128 * 1024,
    max_connections_per_user=10,
    max_connections_per_address=50,
    max_connects_per_minute=10,
    max_messages_per_minute=200,
    max_user_messages_per_minute=1000,
    max_event_types=50,
    warn_seconds=60.0,
)

# -- event types: "Event Types Reference", and what else the document calls them

TYPES = frozenset(name for name, kind in CATALOG.items() if kind.dialect == "freeagentics")
_INFERENCES = frozenset(name for name in TYPES if CATALOG[name].subject == "inference_id")

# About the connection itself: they come to everybody. Who asks for one has asked for nothing wrong.
_CONNECTION_TYPES = (
    "connection_established",
    "subscription_confirmed",
    "subscription_error",
    "command_error",
    "rate_limit_warning",
    "disconnect_warning",
)

SUPPORTED = (*(name for name in CATALOG if name in TYPES), *_CONNECTION_TYPES)


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


# Each word for a type: its name, its plural, and `metrics`, as the document's examples have it.
WORDS = {word: name for name in SUPPORTED for word in (name, _plural(name))}
WORDS |= {"metrics": "metrics_update", "metric": "metrics_update"}

# -- what a client says

_Ids = str | Annotated[list[str], msgspec.Meta(max_length=MAX_VALUES)] | None
_Events = Annotated[list[str], msgspec.Meta(max_length=MAX_VALUES)]


class _Filters(msgspec.Struct, forbid_unknown_fields=True):
    severity: _Ids = None
    components: _Ids = None


class _SubscribeData(msgspec.Struct, forbid_unknown_fields=True):
    events: _Events
    agents: _Ids = None
    filters: _Filters | None = None
    since: str | dict[str, str] | None = None


class _UnsubscribeData(msgspec.Struct, forbid_unknown_fields=True):
    events: _Events | None = None
    agents: _Ids = None


class _CommandData(msgspec.Struct):
    agent_id: str
    command: str
    parameters: dict[str, Any] | None = None
    request_id: str | None = None
    workspace_id: str | None = None


class _ConfigureData(msgspec.Struct, forbid_unknown_fields=True):
    metrics_interval: Annotated[int, msgspec.Meta(ge=250, le=3_600_000)] | None = None
    buffer_size: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    compression: bool | None = None


class _AuthData(msgspec.Struct):
    token: str


class _Auth(msgspec.Struct, tag="auth"):
    data: _AuthData


class _Subscribe(msgspec.Struct, tag="subscribe"):
    data: _SubscribeData


class _Unsubscribe(msgspec.Struct, tag="unsubscribe"):
    data: _UnsubscribeData | None = None


class _Command(msgspec.Struct, tag="command"):
    data: _CommandData
    request_id: str | None = None


class _Configure(msgspec.Struct, tag="configure"):
    data: _ConfigureData


class _Ping(msgspec.Struct, tag="ping"):
    pass


class _Pong(msgspec.Struct, tag="pong"):
    pass


class _Disconnect(msgspec.Struct, tag="disconnect"):
    pass


_MESSAGES = (_Subscribe, _Unsubscribe, _Command, _Ping, _Pong, _Configure, _Disconnect, _Auth)
_NAMES = tuple(str(message.__struct_config__.tag) for message in _MESSAGES)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    _Subscribe | _Unsubscribe | _Command | _Ping | _Pong | _Configure | _Disconnect | _Auth
)


def decode(text: str) -> Request:
    """A client's message. Raises `Refused` with the path of what is wrong."""
    try:
        message = read(_decoder, text, _NAMES)
    except Refused as refused:
        refused.request = _perhaps_command(text)
        raise
    match message:
        case _Auth(data):
            return Authenticate(data.token)
        case _Subscribe(data):
            if not data.events:
                raise Refused(INVALID_MESSAGE, "$.data.events: expected at least one event type")
            return Subscribe(_asked(data.events, data.agents, data.filters), data.since)
        case _Unsubscribe(data):
            if data is not None and data.events == []:
                raise Refused(INVALID_MESSAGE, "$.data.events: expected at least one event type, or no such field")
            return Unsubscribe(_asked(data.events, data.agents) if data is not None else Asked())
        case _Command(data, request_id):
            request_id = data.request_id or request_id
            return Command(
                agent=one_id(data.agent_id, "$.data.agent_id"),
                name=data.command,
                parameters=data.parameters or {},
                request_id=one_id(request_id, "$.data.request_id") if request_id else None,
                workspace=data.workspace_id,
            )
        case _Configure(data):
            seconds = None if data.metrics_interval is None else data.metrics_interval / 1000
            return Configure(seconds, data.buffer_size, data.compression)
        case _Disconnect():
            return Disconnect()
        case _Ping():
            return Ping()
        case _:
            return Pong()


class _Perhaps(msgspec.Struct):
    """What may be a command, or nearly one."""

    type: Any = None
    data: Any = None
    request_id: Any = None


_perhaps = msgspec.json.Decoder(_Perhaps)


def _perhaps_command(text: str) -> Command | None:
    """What a message that is none says of itself, if it meant to be a command: its sender can tell which one failed."""
    try:
        said = _perhaps.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if said.type != "command" or not isinstance(said.data, dict):
        return None
    given = {name: said.data.get(name) for name in ("agent_id", "command", "request_id")}
    given["request_id"] = given["request_id"] or said.request_id
    agent, name, request_id = (value if isinstance(value, str) else None for value in given.values())
    is_id = request_id is not None and len(request_id) <= 255 and request_id.isprintable()
    return Command(agent or "", name or "", {}, request_id if is_id else None)


def _asked(events: list[str] | None, agents: str | list[str] | None, filters: _Filters | None = None) -> Asked:
    """No agents, or none at all, are all: "omit for all agents", and "agents: [] // All agents"."""
    words: dict[str, str] = {}
    for word in events or ():
        name = WORDS.get(word)
        if name is None:
            told = f"Event type '{word}' is not supported" if may_be_told(word) else "An event type is not supported"
            raise Refused(UNKNOWN_EVENT_TYPE, told, Subscribe(Asked()))
        words.setdefault(name, word)
    named = (agents,) if isinstance(agents, str) else tuple(agents or ())
    return Asked(
        agents=ids(list(named), "$.data.agents") if named else None,
        types=frozenset(words) if words else None,
        severities=ids(filters.severity, "$.data.filters.severity") if filters is not None else None,
        components=ids(filters.components, "$.data.filters.components") if filters is not None else None,
        words=tuple(words.items()),
        named=named,
    )


def _told(text: str | None) -> str | None:
    return text if text is not None and may_be_told(text) else None


# -- what a client hears: events


class _Envelope(msgspec.Struct, omit_defaults=True):
    type: str
    timestamp: str | None = None
    workspace_id: str | None = None
    event_id: str | None = None


class _Subject(msgspec.Struct, omit_defaults=True):
    inference_id: str | None = None
    agent_id: str | None = None


_encode = msgspec.json.Encoder().encode


def encode(event: Carried) -> bytes | None:
    """An event's words: its ids stand in `data`, as the document shows them."""
    if event.type not in TYPES:
        return None
    top = _encode(_Envelope(event.type, event.timestamp, event.workspace_id, event.id))
    # What is of no inference may have a field of this name for itself.
    inference = event.inference_id if event.type in _INFERENCES else None
    whose = _encode(_Subject(inference, event.agent_id))
    members = bytes(event.data)[1:-1].strip()
    comma = b"," if members and len(whose) > 2 else b""
    return b"".join((top[:-1], b',"data":', whose[:-1], comma, members, b"}}"))


# -- what a client hears: everything else

# Its words for our reasons, and where they are not ours for people too.
_CODES = {
    INVALID_TOKEN: ("AUTHENTICATION_FAILED", "Invalid or expired token"),
    INVALID_MESSAGE: ("INVALID_MESSAGE_FORMAT", None),
    FORBIDDEN: ("PERMISSION_DENIED", None),
    UNKNOWN_EVENT_TYPE: ("INVALID_EVENT_TYPE", None),
    TOO_MANY_EVENT_TYPES: ("RATE_LIMIT_EXCEEDED", None),
    TOO_MANY_CONNECTIONS: ("CONNECTION_LIMIT_EXCEEDED", None),
    TOO_MANY_MESSAGES: ("RATE_LIMIT_EXCEEDED", None),
    FLOOD: ("RATE_LIMIT_EXCEEDED", None),
    UNKNOWN_COMMAND: ("INVALID_COMMAND", None),
    AGENT_UNKNOWN: ("AGENT_NOT_FOUND", None),
    AGENT_OFFLINE: ("AGENT_OFFLINE", None),
    COMMAND_TIMEOUT: ("TIMEOUT", None),
}

# Ends of which nothing else has been said; what the client can do about each.
_FAREWELLS = {
    GOING_AWAY: "Connect again; subscribe with since to miss nothing",
    SLOW_CONSUMER: "Read faster or subscribe to less; subscribe with since to miss nothing",
    EVENTS_LOST: "Connect again and load the present state",
    TOO_MANY_ERRORS: "Correct the messages that were refused",
    PONG_TIMEOUT: "Answer pings",
}


def say(notice: Notice, now: float) -> bytes | None:
    """`{"type", "timestamp", "data"}`, and `event_id` on top where a position is known."""
    name, data, complete = _say(notice, now)
    if name is None:
        return None
    top: dict[str, Any] = {"type": name, "timestamp": _at(now)}
    return _encode(top | ({"event_id": complete} if complete else {}) | {"data": data})


def _say(notice: Notice, now: float) -> tuple[str | None, dict[str, Any], Complete]:
    match notice:
        case Error():
            return *_say_error(notice), None
        case Welcome(client, session):
            data = {"client_id": client, "pooled": True, "session_id": session, "server_version": VERSION}
            return "connection_established", data, None
        case PoolSaid(pool, active, allowed):
            used = round(active / allowed, 3) if allowed else 0.0
            data = {"pool_id": pool, "active_connections": active, "max_connections": allowed, "pool_utilization": used}
            return "connection_pool_info", data, None
        case Confirmed(words, agents, complete):
            status = "active" if words else "inactive"
            return "subscription_confirmed", {"events": words, "agents": agents, "status": status}, complete
        case PongSent(seconds, complete):
            return "pong", {"server_time": _at(now), "connection_duration": int(seconds)}, complete
        case GapSaid(workspace, since, oldest):
            return "resume_gap", {"workspace_id": workspace, "since": since, "oldest": oldest}, None
        case StatusSaid(agent, said):
            return "agent_status", {**said, "agent_id": agent}, None
        case NearLimit(used, limit, resets_in, is_users):
            data = {
                "limit_type": "user_messages_per_minute" if is_users else "messages_per_minute",
                "current_usage": used,
                "limit": limit,
                "reset_time": _at(now + resets_in),
                "recommended_action": "Reduce message frequency",
            }
            return "rate_limit_warning", data, None
        case Expiring(seconds):
            data = {
                "reason": "token_expiring",
                "message": "The token expires",
                "close_code": INVALID_TOKEN.close_code,
                "disconnect_time": _at(now + seconds),
                "recommended_action": "Send auth with a new token",
            }
            return "disconnect_warning", data, None
        case Farewell(reason) if reason in _FAREWELLS:
            data = {
                "reason": reason.code.lower(),
                "message": reason.text,
                "close_code": reason.close_code,
                "retry_after": reason.retry_after,
                "disconnect_time": _at(now),
                "recommended_action": _FAREWELLS[reason],
            }
            return "disconnect_warning", data, None
        case _:
            return None, {}, None


def _say_error(error: Error) -> tuple[str, dict[str, Any]]:
    reason, request = error.reason, error.request
    code, text = _CODES.get(reason, (reason.code, None))
    # Of a subscribe the core knows what stands in `data` here.
    told = {"error_code": code, "error_message": text or error.detail.replace("$.since:", "$.data.since:")}
    retry_after = {"retry_after": ceil(error.retry_after)} if error.retry_after is not None else {}
    if reason.close_code is not None:
        return "connection_error", told | {"close_code": reason.close_code, "retry_after": None} | retry_after
    if isinstance(request, Subscribe | Unsubscribe):
        return "subscription_error", told | {"supported_events": SUPPORTED} | retry_after
    asked: dict[str, Any] = {"command": None, "agent_id": None}
    if isinstance(request, Command):
        asked = {"command": _told(request.name or None), "agent_id": _told(request.agent or None)}
        if reason is AGENT_UNKNOWN and asked["agent_id"] is not None:
            told["error_message"] = f"Agent with ID '{request.agent}' not found"
    return "command_error", asked | told | {"request_id": error.reference} | retry_after


def _at(seconds: float) -> str:
    return moment(int(seconds * 1000))


def choose(query: Mapping[str, str]) -> str:
    """There is one form; a client switches compression on later."""
    return PLAIN.name


PLAIN = Variant("freeagentics", "plain", encode)
DEFLATED = Variant("freeagentics", "deflated", encode, frames.deflated)

FREEAGENTICS = Dialect(
    name="freeagentics",
    path="/api/v1/ws",
    limits={"production": PRODUCTION, "development": DEVELOPMENT},
    variants={variant.name: variant for variant in (PLAIN, DEFLATED)},
    choose=choose,
    decode=decode,
    say=say,
    subscriptions=ByType,
    deflated=DEFLATED,
)
