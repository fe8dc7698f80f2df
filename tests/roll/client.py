"""One client of the crowd, over a bare socket: whenever its connection ends it comes back, as a good client does.

It waits a random time up to a bound that doubles with each failure (full jitter), or as long as it was told and up to a
second more, and asks for what came after the last event that it has.
"""

import asyncio
import random
from array import array
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, cast

from websockets.frames import Frame, Opcode

from ..bench.clients import masked
from ..bench.reading import Tally, frames
from . import words
from .words import PING, Tongue

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 8.0
PATIENCE_SECONDS = 10.0  # with a handshake
NOBODY = 0  # the status of a handshake that was not answered

# For nodes: everybody comes from one address, and as often as here no user is sent away.
LIMITS = {"max_connections_per_address": -1, "max_connects_per_minute": -1}

_REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def request(path: str) -> bytes:
    """The handshake of a client, with its token in `path`."""
    return _REQUEST.format(path=path).encode()


class Absence(NamedTuple):
    """A time in which a client had no connection over which it had all that it asked for."""

    client: int
    started: float
    ended: float


class Ending(NamedTuple):
    """How a connection ended, or a handshake: with a status and perhaps in how many seconds to come again."""

    at: float
    code: int
    status: int = 101
    retry_after: float | None = None


class Journal:
    """What all clients of a crowd have seen. A delivery is an entry in each of the three arrays."""

    def __init__(self) -> None:
        self.clients = array("I")
        self.sent = array("d")
        self.received = array("d")
        self.absences: list[Absence] = []
        self.endings: list[Ending] = []
        self.gaps = 0
        self.wrong = Counter[str]()  # events lost, doubled and reordered

    def add(self, other: "Journal") -> None:
        """Of clients with other numbers."""
        self.clients += other.clients
        self.sent += other.sent
        self.received += other.received
        self.absences += other.absences
        self.endings += other.endings
        self.gaps += other.gaps
        self.wrong += other.wrong


class Client:
    """`tally` holds the steps that it was sent, `is_here` is True while it is connected and has all up to now."""

    def __init__(self, number: int, tongue: Tongue, workspace: str, *, port: int, token: str, journal: Journal) -> None:
        self.tongue = tongue
        self.workspace = workspace
        self.tally = Tally()
        self.is_here = False
        self._number = number
        self._request = request(tongue.path + token)
        self._port = port
        self._journal = journal
        self._since: str | None = None
        self._failures = 0
        self._gone_at: float | None = None

    async def live(self) -> None:
        """Be connected, until cancelled."""
        while True:
            ending = await self._visit()
            self.is_here = False
            self._journal.endings.append(ending)
            if self._gone_at is None:
                self._gone_at = ending.at
            bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures)
            self._failures += 1
            told = ending.retry_after
            await asyncio.sleep(random.uniform(0, bound) if told is None else told + random.random())

    async def _visit(self) -> Ending:
        """One connection, from the handshake to its end."""
        opening = masked(self.tongue.subscribe(self.workspace, self._since)) + masked(PING)
        line = Line(self._request, opening, self._take)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: line, "127.0.0.1", self._port)
                await line.answered.wait()
            return await line.ended
        except OSError:
            return Ending(monotonic(), 1006, NOBODY)
        finally:
            line.abort()

    def _take(self, payload: bytes) -> None:
        told = words.hear(payload)
        if told.type == self.tongue.kind and told.data is not None:
            step = told.data.step
            if self._since is None:
                self.tally.expected = step  # it may come to a show that has begun
            self._since = told.event_id
            self.tally.see(step)
            self._journal.clients.append(self._number)
            self._journal.sent.append(told.data.at)
            self._journal.received.append(monotonic())
        elif told.type == "pong":
            self._arrive()
        elif told.type in words.GAPS:
            self._journal.gaps += 1

    def _arrive(self) -> None:
        """What it asked for before its ping has been sent."""
        self.is_here = True
        self._failures = 0
        if self._gone_at is not None:
            self._journal.absences.append(Absence(self._number, self._gone_at, monotonic()))
            self._gone_at = None


class Line(asyncio.Protocol):
    """One connection: says `request`, then `opening`, and hands on each text message. `ended` is how it ended."""

    def __init__(self, request: bytes, opening: bytes, take: Callable[[bytes], None]) -> None:
        self.answered = asyncio.Event()
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._request = request
        self._opening = opening
        self._take = take
        self._buffer = b""
        self._is_open = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(Ending(monotonic(), 1006, 101 if self._is_open else NOBODY))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self._is_open:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._buffer = data
                return
            data = rest
            self._read_head(head.decode("latin-1"))
        if self.ended.done():
            return
        end = 0
        for first, start, end in frames(data, 0):
            self._hear(first & 15, data[start:end])
        self._buffer = data[end:]

    def abort(self) -> None:
        """Hear and say nothing more."""
        if self._transport is not None:
            self._transport.abort()

    def _read_head(self, head: str) -> None:
        status, *headers = head.lower().split("\r\n")
        self._is_open = status.split()[1] == "101"
        if self._is_open:
            self.answered.set()
            self._say(self._opening)
            return
        told = dict(line.split(": ", 1) for line in headers).get("retry-after")
        self._end(Ending(monotonic(), 1006, int(status.split()[1]), None if told is None else float(told)))

    def _hear(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.TEXT:
            self._take(payload)
        elif opcode == Opcode.PING:
            self._say(Frame(Opcode.PONG, payload).serialize(mask=True))
        elif opcode == Opcode.CLOSE:
            self._say(Frame(Opcode.CLOSE, payload).serialize(mask=True))
            self._end(Ending(monotonic(), int.from_bytes(payload[:2], "big")))

    def _say(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _end(self, ending: Ending) -> None:
        self.answered.set()
        if not self.ended.done():
            self.ended.set_result(ending)
