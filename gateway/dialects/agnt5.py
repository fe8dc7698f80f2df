"""AGNT5's workflow socket: `/ws?x-wf-endpoint=…`.

The endpoint stands in the query and the key in the subprotocol, since a browser can set nothing else; whoever may not
come is refused in the handshake. A message starts an execution of a workflow, and what happens in it comes back in one
form: `{"type", "data": {"timestamp", "details", "execution_id"}}`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from broker.catalog import CATALOG
from broker.events import Carried, moment

from ..limits import Limits
from ..messages import (
    CancelRun,
    Error,
    GapSaid,
    Knock,
    Notice,
    Ping,
    Pong,
    PongSent,
    Refused,
    Request,
    ResumeRuns,
    StartRun,
)
from ..reasons import ENDPOINT_MISSING, KEY_REFUSED, RUN_UNKNOWN, TOO_MANY_MESSAGES, TOO_MANY_RUNS
from ..subscriptions import ByFilter
from .base import Dialect, Variant
from .reading import may_be_told, read

TYPES = frozenset(name for name, kind in CATALOG.items() if kind.dialect == "agnt5")

# "Rate Limits".
LIMITS = Limits(
    max_message_bytes=64 * 1024,
    max_connections_per_endpoint=50,
    max_messages_per_second=100,
    flood_margin=1,
)

# -- who comes

ENDPOINT = "x-wf-endpoint"
_KEY = "x-api-key."
# What is answered to a client that offers it besides its key, so that the key is not repeated.
_NAME = "agnt5"


def knock(query: Mapping[str, str], subprotocols: Sequence[str]) -> Knock:
    """The endpoint and the key, and which subprotocol answers them. Raises `Refused`."""
    endpoint = query.get(ENDPOINT, "")
    if not endpoint:
        raise Refused(ENDPOINT_MISSING)
    offered = next((name for name in subprotocols if name.startswith(_KEY)), None)
    if offered is None:
        raise Refused(KEY_REFUSED, "No API key: offer the subprotocol x-api-key.<key>")
    return Knock(endpoint, offered.removeprefix(_KEY), _NAME if _NAME in subprotocols else offered)


def refuse(code: str, text: str) -> bytes:
    """The body of a handshake that is refused."""
    return _encode({"error": {"code": code, "message": text}})


# -- what a client says

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _Run(msgspec.Struct):
    """The document's own message has no `type`."""

    name: _Id
    parameters: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    connection_id: _Id | None = None


class _Cancel(msgspec.Struct, tag="cancel"):
    execution_id: _Id


class _Resume(msgspec.Struct, tag="resume"):
    connection_id: _Id
    since: str | None = None


class _Ping(msgspec.Struct, tag="ping"):
    pass


class _Pong(msgspec.Struct, tag="pong"):
    pass


class _Typed(msgspec.Struct):
    type: Any = None


class _Perhaps(msgspec.Struct):
    """What may be a message, or nearly one."""

    type: Any = None
    name: Any = None
    connection_id: Any = None


_OURS = ("cancel", "resume", "ping", "pong")
_perhaps = msgspec.json.Decoder(_Perhaps)
_run = msgspec.json.Decoder(_Run)
_ours: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Cancel | _Resume | _Ping | _Pong)


def decode(text: str) -> Request:
    """A client's message. Raises `Refused` with the path of what is wrong."""
    perhaps = read(_perhaps, text, ())
    if perhaps.type is None:
        try:
            run = read(_run, text, ())
        except Refused as refused:
            refused.request = StartRun(_text(perhaps.name) or "", {}, {}, _text(perhaps.connection_id))
            raise
        return StartRun(run.name, run.parameters, run.metadata, run.connection_id)
    match read(_ours, text, _OURS):
        case _Cancel(execution_id):
            return CancelRun(execution_id)
        case _Resume(connection_id, since):
            return ResumeRuns(connection_id, since)
        case _Ping():
            return Ping()
        case _:
            return Pong()


def _text(given: Any) -> str | None:
    return given if isinstance(given, str) else None


# -- what a client hears

_encode = msgspec.json.Encoder().encode


class _Top(msgspec.Struct, omit_defaults=True):
    type: str
    event_id: str | None = None


class _Data(msgspec.Struct):
    timestamp: str | None
    execution_id: str | None


def encode(event: Carried) -> bytes | None:
    if event.type not in TYPES:
        return None
    top, data = _encode(_Top(event.type, event.id)), _encode(_Data(event.timestamp, event.execution_id))
    return b"".join((top[:-1], b',"data":', data[:-1], b',"details":', event.data, b"}}"))


# Its words for reasons that have other names here.
_CODES = {TOO_MANY_MESSAGES: "RATE_LIMITED", TOO_MANY_RUNS: "UNAVAILABLE", RUN_UNKNOWN: "INVALID_MESSAGE"}


def say(notice: Notice, now: float) -> bytes | None:
    """Errors look like an execution that failed before it had an id; nothing else is said but what was asked for."""
    match notice:
        case Error(reason) if reason.close_code is None:
            data = {"timestamp": moment(int(now * 1000)), "details": _details(notice), "execution_id": None}
            return _encode({"type": "execution_failed", "data": data})
        case PongSent(_, complete):
            return _encode({"type": "pong"} | ({"event_id": complete} if complete else {}))
        case GapSaid(_, since, oldest):
            return _encode({"type": "resume.gap", "since": since, "oldest": oldest})
        case _:
            return None


def _details(error: Error) -> dict[str, Any]:
    """Which run cannot be, as far as it was understood, and why."""
    details: dict[str, Any] = {}
    if isinstance(error.request, StartRun):
        told = {"name": error.request.name, "connection_id": error.request.connection}
        details = {name: text for name, text in told.items() if text and may_be_told(text)}
    return details | {"error": {"code": _CODES.get(error.reason, error.reason.code), "message": error.detail}}


def choose(query: Mapping[str, str]) -> str:
    return PLAIN.name


PLAIN = Variant("agnt5", "plain", encode)

AGNT5 = Dialect(
    name="agnt5",
    path="/ws",
    limits={"production": LIMITS, "development": LIMITS},
    variants={PLAIN.name: PLAIN},
    choose=choose,
    decode=decode,
    say=say,
    subscriptions=ByFilter,
    knock=knock,
    refuse=refuse,
)
