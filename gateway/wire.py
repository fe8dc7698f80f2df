"""The protocol class that uvicorn runs for a WebSocket: the handshake once, then frames ↔ connection.

The websockets library judges the handshake; nothing of it is kept. Where a key must be looked up, the client waits for
its answer. After that a client is a transport, a frame parser
and a `Connection`: no task, no queue. What the hub owes goes to the transport directly (`write`); a transport that
holds more than its bound says so (`pause_writing`), which costs a healthy client nothing.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from . import frames
from .deflate import Negotiation

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from .connection import Admission, Connection
    from .dialects import Dialect
    from .node import Node

logger = logging.getLogger("trunkline.wire")

# How long a client that holds more than its bound has to take it.
SLOW_SECONDS = 0.1

# How much of one read is taken at once: 200 of the shortest messages, or 50 that inflate to the most they may.
MAX_BYTES_AT_ONCE = 4096

# The library tells its logger of every request, with query and headers.
_silent = logging.getLogger("trunkline.wire.handshake")
_silent.disabled = True


# Without subprotocols it keeps nothing of a request that it judges but the extensions: one serves all.
_JUDGE = ServerProtocol(logger=_silent)
_DEFLATING_JUDGE = ServerProtocol(logger=_silent, extensions=[Negotiation()])

_INVALID = "not a valid WebSocket handshake (RFC 6455, section 4.2.1)"

_HEADERS = frozenset(
    {
        "connection", "upgrade", "origin", "authorization",
        "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "sec-websocket-extensions",
        "x-forwarded-for", "x-client-fingerprint", "x-client-version",
    }
)  # fmt: skip


class Refusal(Exception):  # noqa: N818
    """A handshake that is answered with an HTTP status. `code` is a word for programs, where the dialect has any."""

    def __init__(self, status: HTTPStatus, text: str, *, code: str = "", retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code or status.name
        self.retry_after = retry_after


class Wire(asyncio.Protocol):
    """One WebSocket."""

    __slots__ = (
        "_close_code",
        "_connection",
        "_deadline",
        "_is_closing",
        "_is_full",
        "_is_held",
        "_node",
        "_opening",
        "_parser",
        "_peers",
        "_rest",
        "_transport",
        "write",
    )

    def __init__(self, node: "Node", config: "Config", server_state: "ServerState", app_state: dict[str, Any]) -> None:
        self._node = node
        self._peers: set[Any] = server_state.connections
        self._connection: Connection | None = None
        self._parser: frames.Parser | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_closing = False
        self._is_full = False
        self._is_held = False  # its connection takes no more for now
        self._rest: bytes | None = None
        self._close_code = frames.ABNORMAL_CLOSURE

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self.write = self._transport.write
        self._peers.add(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self._shake_hands(data)
            return
        if self._rest is not None:
            self._rest += data
        else:
            self._take_some(self._parser, data)

    def _take_some(self, parser: frames.Parser, data: bytes) -> None:
        """A flood is taken in turns, so that others have theirs; compressed messages are inflated in theirs."""
        try:
            for one in parser.feed(data[:MAX_BYTES_AT_ONCE]):
                self._take(one)
        except Exception:
            self.fail("reading a frame")
            return
        if len(data) > MAX_BYTES_AT_ONCE:
            self._rest = data[MAX_BYTES_AT_ONCE:]
            if not self._transport.is_closing():
                self._transport.pause_reading()
            if not self._is_held:
                asyncio.get_running_loop().call_soon(self._take_rest)

    def _take_rest(self) -> None:
        if self._rest is None or self._parser is None or self._connection is None:
            return
        rest, self._rest = self._rest, None
        self._take_some(self._parser, rest)
        if self._rest is None and not self._is_held:
            self.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._peers.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.lost(self._close_code)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """More waits for this client than the bound allows: judge it in a moment.

        A burst of ours is no fault of the client's, and the hub may be in the middle of its members now.
        """
        self._is_full = True
        asyncio.get_running_loop().call_later(SLOW_SECONDS, self._judge)

    def resume_writing(self) -> None:
        self._is_full = False

    def shutdown(self) -> None:
        """uvicorn wants every connection to end now."""
        if self._parser is None:
            self._transport.close()
        else:
            self.close(frames.SERVICE_RESTART, "")

    # -- the handshake

    def _shake_hands(self, data: bytes) -> None:
        """Answer the request that uvicorn hands us whole: at once, or when Redis has said whether a key is good."""
        request, dialect = _read(data), None
        try:
            dialect = self._node.dialect(request)
            admission = self._node.admit(dialect, request, self._peer())
        except Refusal as refusal:
            self._refuse(_response(refusal, dialect))
            return
        except Exception:
            self._refuse_for_bug()
            return
        judge = _JUDGE if dialect.deflated is None else _DEFLATING_JUDGE
        response = judge.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            # The library's words repeat what it was given.
            invalid = Refusal(HTTPStatus(response.status_code), _INVALID)
            self._refuse(_response(invalid, dialect, response.headers))
        elif admission.knock is None:
            self._welcome(admission, response)
        else:
            self._transport.pause_reading()
            self._opening = asyncio.create_task(self._open(admission, response))

    async def _open(self, admission: "Admission", response: Response) -> None:
        """Ask whether its key lets this client in, and answer."""
        assert admission.knock is not None
        try:
            entry = await self._node.open(admission)
        except Refusal as refusal:
            self._refuse(_response(refusal, admission.dialect))
        except Exception:
            self._refuse_for_bug()
        else:
            self._opening = None
            if self._transport.is_closing():
                # It has gone, and redis-py may have swallowed the cancellation that told us so.
                self._node.turn_away(entry)
                return
            response.headers["Sec-WebSocket-Protocol"] = admission.knock.answer
            self._welcome(admission._replace(entry=entry), response)
            self.resume_reading()

    def _welcome(self, admission: "Admission", response: Response) -> None:
        self.write(response.serialize())
        self._transport.set_write_buffer_limits(high=self._node.settings.max_backlog_bytes)
        may_deflate = "Sec-WebSocket-Extensions" in response.headers
        self._parser = frames.Parser(self._node.max_message_bytes(admission.dialect), may_deflate=may_deflate)
        self._connection = self._node.connect(self, admission._replace(may_deflate=may_deflate))
        try:
            self._connection.start(admission)
        except Exception:  # uvicorn would never tell us of the socket's end
            self.fail("its client was met")

    def _peer(self) -> str:
        """The address of who has connected to us: a client, or a proxy in front of it."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    def _refuse_for_bug(self) -> None:
        logger.exception("a handshake failed")
        self._refuse(Response(500, "Internal Server Error", Headers()))

    def _refuse(self, response: Response) -> None:
        self._node.metrics.handshakes_refused.add(str(response.status_code))
        headers = response.headers
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        if "Content-Length" not in headers:
            headers["Content-Length"] = str(len(response.body))
        if headers.get("Connection") != "close":
            headers["Connection"] = "close"
        self.write(response.serialize())
        self._transport.close()

    # -- frames in

    def _take(self, received: frames.Received) -> None:
        connection = self._connection
        if connection is None:
            return
        opcode = received.opcode
        if self._is_closing:
            # Only the answer to our close frame still matters.
            if opcode in (frames.CLOSE, frames.VIOLATION):
                self._transport.close()
        elif opcode == frames.TEXT:
            connection.receive(received.payload.decode())
        elif opcode == frames.PING:
            self.write(frames.pong(received.payload))
            connection.receive_ping()
        elif opcode == frames.PONG:
            connection.receive_pong()
        elif opcode == frames.BINARY:
            connection.receive_binary()
        elif opcode == frames.CLOSE:
            self._deadline = asyncio.get_running_loop().call_later(
                self._node.settings.slow_close_seconds, self.answer_close, received.code
            )
            connection.receive_close(received.code)
        else:
            self.close(received.code, received.payload.decode())
            # We read no frame after a violation, so not the client's answer either: the end of our side asks it to end.
            self._transport.write_eof()

    def answer_close(self, code: int) -> None:
        """The client leaves, and what it said before is done: give its code back, and end."""
        if self._is_closing:
            return
        self._is_closing = True
        self._close_code = code
        self.write(frames.close(code) if code != frames.NO_STATUS_RECEIVED else b"\x88\x00")
        self._transport.close()
        if self._connection is not None:
            self._connection.give_back()  # it may come back at once, and find its place free
        self._set_deadline()
        self._leave()

    # -- what connections ask for

    @property
    def backlog(self) -> int:
        """Bytes that wait for this client."""
        return self._transport.get_write_buffer_size()

    @property
    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Take nothing more for now."""
        self._is_held = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_held = False
        if self._rest is not None:
            asyncio.get_running_loop().call_soon(self._take_rest)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; the client has `slow_close_seconds` to read what is left and to answer."""
        if self._is_closing:
            return
        self._is_closing = True
        self._close_code = code
        self.write(frames.close(code, reason))
        self.resume_reading()
        self._set_deadline()
        self._leave()

    def _set_deadline(self) -> None:
        """Whoever does not take what is left by then is cut off."""
        loop = asyncio.get_running_loop()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = loop.call_later(self._node.settings.slow_close_seconds, self._transport.abort)

    def fail(self, doing: str) -> None:
        """A bug of ours: everything in the log, nothing to the client."""
        logger.exception("a bug ended a connection while %s", doing)
        self.close(frames.INTERNAL_ERROR, "")

    def _judge(self) -> None:
        """Has it taken what it was slow to take?"""
        if self._connection is None or self._is_closing or not self._is_full:
            return
        if self.backlog > self._node.settings.max_backlog_bytes:
            self._connection.too_slow()
        else:
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._judge)

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.leave()


def _read(data: bytes) -> Request:
    """The request, of which uvicorn has parsed and written anew each line; with the headers that decide something."""
    first, *lines = data.decode("latin-1").split("\r\n")
    method, path, protocol = first.split(" ", 2)
    headers = Headers()
    for line in lines:
        name, _, value = line.partition(": ")
        if name in _HEADERS:
            headers[name] = value.strip()
    return Request(path, headers, method, protocol)


def _response(refusal: Refusal, dialect: "Dialect | None", headers: Headers | None = None) -> Response:
    """The answer, in the dialect's form where it has one. `headers` are those that the status needs."""
    headers = headers if headers is not None else Headers()
    for name in ("Content-Length", "Content-Type"):
        headers.pop(name, None)
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    body = refusal.text.encode() + b"\n"
    if dialect is not None and dialect.refuse is not None:
        headers["Content-Type"] = "application/json"
        body = dialect.refuse(refusal.code, refusal.text)
    return Response(refusal.status, refusal.status.phrase, headers, body)
