"""The feed's own socket to Redis: RESP3 through hiredis, a read at a time.

redis-py makes a subscriber's connection anew without a word, and what came meanwhile is gone; it also reads one message
at a time. Here a lost connection is something the feed hears of, and all messages of one read are handed on together.

In RESP3 answers and pushed messages share one ordered stream: when the answer to a read of a position is seen, every
message published before it has been seen too. The feed's joining and checking rest on that.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import hiredis

from .address import CONNECT_SECONDS, Address
from .errors import Unavailable

# hiredis moves what is left of its buffer after every few replies: fed a large read whole, that is most of its work.
# And what is handed on by such slices is still in the processor's cache when it is written to the sockets.
_SLICE_BYTES = 16 * 1024

Answer = Callable[[Any], None]
Command = tuple[str | bytes | int, ...]


class Taker(Protocol):
    """Who hears what Redis sends."""

    def on_pushes(self, pushes: Sequence[list[Any]]) -> None:
        """Pushed messages in order: those of one read, or of a slice of a large one, between two answers."""

    def on_lost(self, reason: str) -> None:
        """The connection has ended."""


class Connection(asyncio.Protocol):
    """One connection, authenticated and named. `ask` before `connection_lost`, in order, each answered in turn."""

    def __init__(self, taker: Taker) -> None:
        self._taker = taker
        self._reader = hiredis.Reader()
        self._answers: deque[Answer] = deque()
        self._transport: asyncio.Transport | None = None
        self._is_open = True
        self.greeting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        reader, pushes = self._reader, []
        push_type = hiredis.PushNotification
        try:
            for start in range(0, len(data), _SLICE_BYTES):
                reader.feed(data, start, min(_SLICE_BYTES, len(data) - start))
                while self._is_open and (reply := reader.gets()) is not False:
                    if type(reply) is push_type:
                        pushes.append(reply)
                        continue
                    if pushes:
                        self._taker.on_pushes(pushes)
                        pushes = []
                    if not self._answers:
                        self.close("an answer to nothing")
                        break
                    self._answers.popleft()(reply)
                if pushes:
                    self._taker.on_pushes(pushes)
                    pushes = []
        except hiredis.ProtocolError as error:
            self.close(f"not what Redis says: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(str(error) if error else "closed by Redis")

    def ask(self, *words: str | bytes | int, answer: Answer | None = None) -> None:
        """Send a command. A command answered by pushes (SUBSCRIBE) takes no `answer`."""
        self.ask_many([words], [answer] if answer else [])

    def ask_many(self, commands: list[Command], answers: list[Answer]) -> None:
        """Send commands in one write. `answers` are for those of them that are answered by a reply."""
        if self._transport is not None and not self._transport.is_closing():
            self._answers.extend(answers)
            packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
            self._transport.write(b"".join(packed))

    def close(self, reason: str) -> None:
        """End the connection now; `on_lost` is called with `reason`."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._is_open = False
        self._answers.clear()
        if not self.greeting.done():
            self.greeting.set_exception(OSError(reason))
            self.greeting.exception()  # whoever waits for it hears it, and if nobody does that is well too
        taker, self._taker = self._taker, _NOBODY
        taker.on_lost(reason)

    def greet(self, reply: object) -> None:
        """The answer to HELLO."""
        if not self.greeting.done():
            self.greeting.set_result(reply)


class _Nobody:
    def on_pushes(self, pushes: Sequence[list[Any]]) -> None: ...

    def on_lost(self, reason: str) -> None: ...


_NOBODY = _Nobody()


async def connect(address: Address, taker: Taker, name: str) -> Connection:
    """Open a connection and introduce ourselves. Raises `Unavailable` with Redis' reason."""
    loop = asyncio.get_running_loop()
    connection = Connection(taker)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if address.path:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=address.ssl)
            login = ("AUTH", address.username or "default", address.password) if address.password else ()
            connection.ask("HELLO", 3, *login, "SETNAME", name, answer=connection.greet)
            reply = await connection.greeting
    except (OSError, TimeoutError) as error:
        connection.close("not opened")
        raise Unavailable(f"cannot reach Redis at {address}: {error or 'timed out'}") from error
    if isinstance(reply, hiredis.ReplyError):
        connection.close("not opened")
        raise Unavailable(f"Redis at {address} refuses the feed: {reply}")
    return connection
