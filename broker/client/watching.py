"""The watch itself: connections to a gateway, one after the other, as the course says."""

import asyncio
import contextlib
import inspect
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from time import monotonic
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from ..errors import Invalid
from ..events import Event
from ..lines import Gap
from ..patience import pause
from .course import Course, Lost
from .words import Asked, NoMessage

logger = logging.getLogger("trunkline.client")

# So long nothing may come until we ask; the gateway itself says something every 30 s.
QUIET_SECONDS = 15.0
# So long we wait for a gateway to say goodbye too.
CLOSE_SECONDS = 2.0

_ABNORMAL_CLOSURE = 1006
_MAX_BODY_CHARACTERS = 200

Token = str | Callable[[], str | Awaitable[str]]

# The library tells its logger of every handshake, with the token.
_silent = logging.getLogger("trunkline.client.handshake")
_silent.disabled = True


async def watch(
    url: str,
    *,
    token: Token,
    workspace_id: str | Collection[str] | None = None,
    agent_id: str | Collection[str] | None = None,
    task_id: str | Collection[str] | None = None,
    event_types: str | Collection[str] | None = None,
    since: str | Mapping[str, str] | None = None,
    patience_seconds: float | None = None,
) -> AsyncGenerator[Event | Gap, None]:
    """The events that match every part that is given, in order per workspace, each once; from now on, or after `since`.

    `url` is a gateway's, as `ws://127.0.0.1:8080/v2/ws`. A `token` that is a function (or makes an awaitable) is called
    for each connection; what it raises ends the watch. `since` is an event's `id`, or one for each workspace where the
    token names several. What is watched without it begins when the first gateway has confirmed it.

    A lost connection is made again, for ever or until none stands for `patience_seconds`; nothing is missed, nothing
    comes twice. A `Gap` stands where durable events are lost for good, as the log did not reach back far enough; who
    takes items too slowly is cut off and resumes, so what waits here is bounded. The connection is closed when the
    iterator is (`contextlib.aclosing` does it at once).

    Raises `Invalid` for a URL or a filter that cannot be, `Denied` when the token is not accepted (nor a new one, where
    it is made) or does not allow what is watched, and `Unavailable` when the patience ends.
    """
    asked = Asked(*(_names(names) for names in (workspace_id, agent_id, task_id, event_types)))
    address, course = _address(url), Course(asked, since, patience_seconds, monotonic())
    while True:
        given = course.present(await _made(token))
        try:
            async with _connect(address, given) as socket:
                for words in course.open():
                    await _say(socket, words)
                while True:
                    item, reply = course.receive(await _next(socket, course))
                    if reply is not None:
                        await _say(socket, reply)
                    if item is not None:
                        yield item
        except (OSError, WebSocketException, NoMessage) as error:
            lost = _lost(error)
        seconds = course.lost(lost, monotonic(), random.random())  # noqa: S311
        logger.log(
            logging.WARNING if course.attempts == 1 else logging.DEBUG, "no gateway, trying again: %s", lost.reason
        )
        await pause(seconds)


def _connect(address: str, token: str) -> connect:
    return connect(
        address,
        additional_headers={"Authorization": f"Bearer {token}"},
        compression=None,
        ping_interval=None,  # the course asks by itself, and not while it is us who do not read
        close_timeout=CLOSE_SECONDS,
        logger=_silent,
    )


async def _next(socket: ClientConnection, course: Course) -> str | bytes:
    """The next message; asks for one when none comes. Raises `TimeoutError` when that brings nothing either."""
    while True:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                return await socket.recv()
        except TimeoutError:
            question = course.quiet()
            if question is None:
                socket.transport.abort()  # it would not answer a goodbye
                raise TimeoutError("the gateway has been silent") from None
            await _say(socket, question)


async def _say(socket: ClientConnection, words: str) -> None:
    """Send a message. That the gateway has closed is found when all is read that it had said before, and why."""
    with contextlib.suppress(ConnectionClosed):
        await socket.send(words)


async def _made(token: Token) -> str:
    given = token() if callable(token) else token
    return (await given if inspect.isawaitable(given) else given).strip()


def _lost(error: Exception) -> Lost:
    match error:
        case InvalidStatus(response=response):
            body = bytes(response.body or b"").decode(errors="replace").partition("\n")[0][:_MAX_BODY_CHARACTERS]
            after = response.headers.get("Retry-After", "")
            reason = f"HTTP {response.status_code} {body}".rstrip()
            return Lost(reason, status=response.status_code, retry_after=float(after) if after.isdecimal() else 0.0)
        case InvalidURI():
            return Lost("it leads to another URL, which is no ws:// or wss://", status=HTTPStatus.FOUND)
        case ConnectionClosed():
            frame = error.rcvd or error.sent
            return Lost(str(error), frame.code if frame is not None else _ABNORMAL_CLOSURE)
    return Lost(f"{error}" or type(error).__name__)


def _names(names: str | Collection[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset((names,) if isinstance(names, str) else names)


def _address(url: str) -> str:
    """The URL with the form of events that we read."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        is_one = parts.scheme in ("ws", "wss") and bool(host) and (parts.port is None or parts.port > 0)
        is_one = is_one and parts.username is None  # beside a token it would be a second Authorization
    except ValueError:  # UnicodeError is one
        is_one = False
    if not is_one:
        raise Invalid("url", "expected ws:// or wss://, a host and a path, as ws://127.0.0.1:8080/v2/ws")
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "envelope"]
    return urlunsplit(parts._replace(query=urlencode([*query, ("envelope", "nested")]), fragment=""))
