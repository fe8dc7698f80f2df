"""The feed's own socket to Redis: RESP3 through hiredis, a read at a time.

redis-py makes a subscriber's connection anew without a word, and what came meanwhile is gone; it also reads one message
at a time. Here a lost connection is something the feed hears of, and all messages of one read are handed on together.

In RESP3 answers and pushed messages share one ordered stream: when the answer to a read of a position is seen, every
message published before it has been seen too. The feed's joining and checking rest on that.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import hiredis

from .address import Address
from .errors import Unavailable

CONNECT_SECONDS = 5.0

# hiredis moves what is left of its buffer after every few replies: fed a large read whole, that is most of its work.
# And what is handed on by such slices is still in the processor's cache when it is written to the sockets.
_SLICE_BYTES = 16 * 1024

Answer = Callable[[Any], None]
Command = tuple[str | bytes | int, ...]


class Refusal(NamedTuple):
    """Hears how a command that is answered by pushes was refused, if it is.

    Only what never fails may be asked next (PING): an error that comes here is this command's own.
    """

    hear: Answer


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
        self._answers: deque[Answer | Refusal] = deque()
        self._transport: asyncio.Transport | None = None
        self._is_open = True
        self._calls: list[asyncio.Future[list[Any]]] = []

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
                    self._take(reply)
                if pushes:
                    self._taker.on_pushes(pushes)
                    pushes = []
        except hiredis.ProtocolError as error:
            self.close(f"not what Redis says: {error}")

    def _take(self, reply: object) -> None:
        """One answer."""
        answer = self._answers.popleft()
        if isinstance(answer, Refusal):
            if isinstance(reply, hiredis.ReplyError):
                return answer.hear(reply)
            answer = cast(Answer, self._answers.popleft())
        return answer(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(str(error) if error else "closed by Redis")

    def ask(self, *commands: Command, answers: Sequence[Answer | Refusal]) -> None:
        """Send commands in one write, with who takes the answer of each; for SUBSCRIBE and its like a `Refusal`."""
        if self._transport is not None and not self._transport.is_closing():
            self._answers.extend(answers)
            packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
            self._transport.write(b"".join(packed))

    async def call(self, *commands: Command) -> list[Any]:
        """The answers to commands, errors among them. Raises `OSError` when the connection ends before the last."""
        if not self._is_open:
            raise OSError("the connection has ended")
        replies: list[Any] = []
        answered: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def take(reply: object) -> None:
            replies.append(reply)
            if len(replies) == len(commands) and not answered.done():
                answered.set_result(replies)

        self._calls.append(answered)
        self.ask(*commands, answers=[take] * len(commands))
        try:
            return await answered
        finally:
            self._calls = [call for call in self._calls if call is not answered]

    def close(self, reason: str) -> None:
        """End the connection now; `on_lost` is called with `reason`."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._is_open = False
        self._answers.clear()
        calls, self._calls = self._calls, []
        for call in calls:
            if not call.done():
                call.set_exception(OSError(reason))
        taker, self._taker = self._taker, NOBODY
        taker.on_lost(reason)


class _Nobody:
    """Nothing is pushed to who subscribes to nothing."""

    def on_pushes(self, pushes: Sequence[list[Any]]) -> None: ...

    def on_lost(self, reason: str) -> None: ...


NOBODY = _Nobody()


async def connect(
    address: Address, taker: Taker, name: str, *commands: Command, seconds: float = CONNECT_SECONDS
) -> tuple[Connection, list[Any]]:
    """Open a connection to the server at `address`, introduce ourselves and ask `commands`.

    Answers their answers too. Raises `Unavailable` with Redis' reason, also for an error among them.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(taker)
    # A user without a password is one, too.
    has_login = address.username or address.password
    login = ("AUTH", address.username or "default", address.password or "") if has_login else ()
    greetings: list[Command] = [("HELLO", 3, *login, "SETNAME", name)]
    if address.database:
        greetings.append(("SELECT", address.database))
    try:
        async with asyncio.timeout(seconds):
            if address.path:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, *address.hosts[0], ssl=address.ssl)
            replies = await connection.call(*greetings, *commands)
    except (OSError, TimeoutError) as error:
        connection.close("not opened")
        raise Unavailable(f"cannot reach Redis at {address}: {error or 'timed out'}") from error
    except BaseException:
        connection.close("not opened")
        raise
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            connection.close("not opened")
            raise Unavailable(f"Redis at {address} refuses {name}: {reply}")
    return connection, replies[len(greetings) :]


async def ask(address: Address, *command: str | int, seconds: float) -> Any:
    """The answer to one command, over a connection of its own. Raises `Unavailable`, also for an error."""
    (answer,) = await ask_all(address, command, seconds=seconds)
    return answer


async def ask_all(address: Address, *commands: Command, seconds: float) -> list[Any]:
    """The answers to several commands, as `ask` has that to one."""
    connection, answers = await connect(address, NOBODY, "trunkline-look", *commands, seconds=seconds)
    connection.close("asked")
    return answers
