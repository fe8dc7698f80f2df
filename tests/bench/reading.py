"""How a client checks what it is sent: every byte, every frame, every sequence number, at next to no cost.

The load shares its core with Redis, and a broadcast puts the same bytes before a thousand clients. So a `Stream` holds
the bytes that one interest is sent: the client that is ahead adds to it and has the frames parsed, all others only
compare theirs with it (one memcmp per read). A client whose bytes differ (it was sent a heartbeat in between, or
something is wrong) leaves the stream and is parsed by itself from there on. Nothing is assumed: in the end the sequence
of each client is known exactly.
"""

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator

from . import payload

TEXT, CLOSE = 0x1, 0x8
_COMPRESSED = 0x40  # RSV1, where permessage-deflate was agreed on (RFC 7692)


class Tally:
    """How often the order 0, 1, 2 … was broken for one receiver."""

    __slots__ = ("doubled", "expected", "missing", "reordered")

    def __init__(self) -> None:
        self.expected = 0
        self.missing: set[int] = set()
        self.doubled = 0
        self.reordered = 0

    def see(self, sequence: int) -> None:
        if sequence == self.expected:
            self.expected += 1
        elif sequence > self.expected:
            self.missing.update(range(self.expected, sequence))
            self.expected = sequence + 1
        elif sequence in self.missing:
            self.missing.remove(sequence)
            self.reordered += 1
        else:
            self.doubled += 1

    def lost(self, published: int) -> int:
        return len(self.missing) + max(0, published - self.expected)


def frames(data: bytes | bytearray, at: int) -> Iterator[tuple[int, int, int]]:
    """The whole unmasked frames of `data` from `at` on: first byte, where the payload starts, where it ends."""
    size = len(data)
    while at + 2 <= size:
        length, start = data[at + 1], at + 2
        if length == 126:
            start += 2
            length = int.from_bytes(data[at + 2 : start], "big")
        elif length == 127:
            start += 8
            length = int.from_bytes(data[at + 2 : start], "big")
        if start + length > size:  # also when the length itself is cut: start is past the end then
            return
        yield data[at], start, start + length
        at = start + length


def inflated(data: bytes | bytearray, first: int, start: int, end: int) -> bytes:
    """A frame's payload, whether it is compressed or not."""
    payload = bytes(data[start:end])
    if not first & _COMPRESSED:
        return payload
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\x00\x00\xff\xff")


class Stream:
    """The bytes of one interest, and the events in them.

    `ends`, `sequences` and `published_ns` have one entry per event: where it ends, its number, when it was published;
    `compressed` is how many messages were.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.parsed = 0
        self.ends: list[int] = []
        self.sequences: list[int] = []
        self.published_ns: list[int] = []
        self.others: list[bytes] = []  # text messages that are no event
        self.compressed = 0

    def extend(self, chunk: bytearray | memoryview) -> None:
        self.data += chunk
        for first, start, end in frames(self.data, self.parsed):
            self.parsed = end
            if first & 0x0F == CLOSE:
                raise ConnectionError(f"closed by the server: {bytes(self.data[start:end])!r}")
            if first & 0x0F != TEXT:
                continue  # a ping: three in 90 s may stay unanswered, no run takes that long
            if first & _COMPRESSED:
                self.compressed += 1
                event = payload.read(inflated(self.data, first, start, end))
            else:
                event = payload.read(self.data, start, end)
            if event is None:
                self.others.append(bytes(self.data[start:end]))
                continue
            self.ends.append(end)
            self.sequences.append(event[0])
            self.published_ns.append(event[1])

    def forget(self) -> None:
        """Drop the bytes that are parsed (only where nobody else compares with them)."""
        if self.parsed:
            del self.data[: self.parsed]
            self.parsed = 0


class Reader:
    """One client's place in its stream. `messages` is how many events it has received in whole."""

    __slots__ = ("is_alone", "messages", "offset", "receive_into", "stream")

    def __init__(self, stream: Stream, receive_into: Callable[[memoryview], int], *, is_alone: bool) -> None:
        self.stream = stream
        self.receive_into = receive_into
        self.is_alone = is_alone
        self.offset = 0
        self.messages = 0

    def take(self, chunk: memoryview) -> int:
        """Go on by these bytes; answers how many events they completed."""
        stream = self.stream
        if self.is_alone:
            stream.extend(chunk)
            stream.forget()
            messages = len(stream.ends)
        else:
            known = len(stream.data) - self.offset
            if len(chunk) <= known:
                same = stream.data.startswith(chunk, self.offset)
            elif same := stream.data.startswith(chunk[:known], self.offset):
                stream.extend(chunk[known:])
            if not same:
                self.leave()
                return self.take(chunk)
            self.offset += len(chunk)
            messages = bisect_right(stream.ends, self.offset, self.messages)
        new = messages - self.messages
        self.messages = messages
        return new

    def leave(self) -> None:
        """Go on with a stream of one's own, which begins with what was read so far."""
        shared, own = self.stream, Stream()
        own.extend(shared.data[: self.offset])
        own.forget()
        self.stream, self.is_alone = own, True

    def tally(self) -> Tally:
        tally = Tally()
        for sequence in self.stream.sequences[: self.messages]:
            tally.see(sequence)
        return tally
