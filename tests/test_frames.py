"""WebSocket frames: what we send decodes as it was meant, what we take is judged as the websockets library judges it.

The library is the oracle of the parser: the same bytes, however they are cut, give the same messages and end with the
same close code. They may differ in these places, and nowhere else:

- A text that is not UTF-8 is 1007 with both; the library's protocol leaves it to its connection, so the oracle adds it.
- A close frame amid the fragments of a message is 1002 with the library. RFC 6455, 5.4, lets control frames be there.
- A frame with two faults has two codes to choose from. We look at its first two bytes before its length, and at a close
  code before the reason: where the library says 1009 or 1007 of such a frame, we say 1002.
- The library counts a control frame against what the message under way has left (1009). It is no part of the message.
- Each empty fragment counts as a byte with us, as it costs memory like one (1009).
- Who needs fewer bytes of a wrong frame to judge it speaks first: both are given the rest of it here.
- The library inflates fragment by fragment, we the whole message: what is wrong with it we say at its end.
- The library counts what is inflated and then what is compressed against the same bound; we count each for itself.
"""

import itertools
import os
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol, Side

from gateway import frames
from gateway.frames import VIOLATION, Parser, Received

MAX_BYTES = 70_000  # more than the second form of a length can say, so that all three stand in messages

CONTINUATION, TEXT, BINARY = frames.CONTINUATION, frames.TEXT, frames.BINARY
CLOSE, PING, PONG = frames.CLOSE, frames.PING, frames.PONG

# An outcome: ("message", opcode, payload), ("close", code, reason) or ("violation", code).
Outcome = tuple[Any, ...]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"mask") -> bytes:
    """A client's frame, right or wrong."""
    return head(opcode, len(payload), fin=fin, rsv=rsv, mask=mask) + (masked(payload, mask) if mask else payload)


def head(
    opcode: int, length: int, *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"mask", form: int = 0
) -> bytes:
    """The bytes before a payload; `form` 126 or 127 is a longer form of the length than it needs."""
    first = fin << 7 | rsv << 4 | opcode
    form = form or (length if length < 126 else 126 if length < 0x10000 else 127)
    written = b"" if form < 126 else length.to_bytes(2 if form == 126 else 8)
    return bytes((first, (mask is not None) << 7 | form)) + written + (mask or b"")


def masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ key for byte, key in zip(payload, itertools.cycle(mask), strict=False))


def packed(payload: bytes, *, level: int = 6, bits: int = 15, last: bool = False, parts: int = 1) -> bytes:
    """A message as a client may compress it: `parts` flushes, or one block that says it is the last."""
    compressor = zlib.compressobj(level, wbits=-bits)
    if last:
        return compressor.compress(payload) + compressor.flush() + b"\x00"  # RFC 7692, 7.2.3.4
    step = max(1, -(-len(payload) // parts))
    made = b"".join(compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in chunks(payload, step))
    return made.removesuffix(b"\x00\x00\xff\xff")


def chunks(payload: bytes, size: int) -> list[bytes]:
    return [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]


def deflating() -> PerMessageDeflate:
    """The library's side of what we agree on."""
    return PerMessageDeflate(True, True, 15, 12)


RSV1 = 4


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2) + reason


# -- the two judges


def ours(pieces: Iterable[bytes], max_bytes: int = MAX_BYTES, *, may_deflate: bool = False) -> list[Outcome]:
    parser = Parser(max_bytes, may_deflate)
    return [outcome(received) for piece in pieces for received in parser.feed(piece)]


def outcome(received: Received) -> Outcome:
    if received.opcode == VIOLATION:
        return ("violation", received.code)
    if received.opcode == CLOSE:
        return ("close", received.code, received.payload)
    return ("message", received.opcode, received.payload)


class Oracle:
    """The websockets library as a server with an open connection, its frames put together as its connection does."""

    def __init__(self, max_bytes: int = MAX_BYTES, *, may_deflate: bool = False) -> None:
        self.protocol = Protocol(SERVER, state=OPEN, max_size=max_bytes)
        self.protocol.extensions = [deflating()] if may_deflate else []
        self.outcomes: list[Outcome] = []
        self._fragments: list[Frame] = []

    @property
    def is_over(self) -> bool:
        return bool(self.outcomes) and self.outcomes[-1][0] != "message"

    def feed(self, data: bytes) -> None:
        if self.is_over:
            return
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            if not self.is_over:
                self._take(event)
        error = self.protocol.parser_exc
        if error is not None and not self.is_over:
            if str(error) == "incomplete fragmented message":
                assert self.protocol.close_rcvd is not None
                self.outcomes.append(closed(self.protocol.close_rcvd))
            else:
                assert self.protocol.close_sent is not None
                self.outcomes.append(("violation", int(self.protocol.close_sent.code)))

    def _take(self, event: Frame) -> None:
        if event.opcode is Opcode.CLOSE:
            self.outcomes.append(closed(Close.parse(event.data)))
        elif event.opcode in (Opcode.PING, Opcode.PONG):
            self.outcomes.append(("message", int(event.opcode), bytes(event.data)))
        else:
            self._fragments.append(event)
            if event.fin:
                fragments, self._fragments = self._fragments, []
                self._message(fragments[0].opcode, b"".join(bytes(fragment.data) for fragment in fragments))

    def _message(self, opcode: Opcode, payload: bytes) -> None:
        if opcode is Opcode.TEXT:
            try:
                payload.decode()
            except UnicodeDecodeError:
                self.outcomes.append(("violation", frames.INVALID_DATA))
                return
        self.outcomes.append(("message", int(opcode), payload))


def closed(close: Close) -> Outcome:
    return ("close", int(close.code), close.reason.encode())


def theirs(pieces: Iterable[bytes], max_bytes: int = MAX_BYTES, *, may_deflate: bool = False) -> list[Outcome]:
    oracle = Oracle(max_bytes, may_deflate=may_deflate)
    for piece in pieces:
        oracle.feed(piece)
    return oracle.outcomes


def both(stream: bytes, *, may_deflate: bool = False) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of `stream` with us and with the library; a wrong frame that it breaks off is continued for both."""
    mine, other = ours([stream], may_deflate=may_deflate), theirs([stream], may_deflate=may_deflate)
    if is_violated(mine) != is_violated(other):
        rest = bytes(MAX_BYTES + 14)
        mine = ours([stream, rest], may_deflate=may_deflate)
        other = theirs([stream, rest], may_deflate=may_deflate)
    return mine, other


def is_violated(outcomes: list[Outcome]) -> bool:
    return bool(outcomes) and outcomes[-1][0] == "violation"


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    """Whole; in two, cut at every byte; and in single bytes."""
    yield [stream]
    yield from ([stream[:at], stream[at:]] for at in range(1, len(stream)))
    yield [stream[at : at + 1] for at in range(len(stream))]


# -- frames out


def decoded(data: bytes, *, may_deflate: bool = False) -> list[Frame]:
    """What a client of the websockets library reads."""
    client = Protocol(Side.CLIENT, state=OPEN, max_size=None)
    client.extensions = [deflating()] if may_deflate else []
    client.receive_data(data)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


LENGTHS = [0, 1, 125, 126, 127, 1000, 0xFFFF, 0x10000, 0x10001, 200_000]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_of_any_length_is_the_frame_that_the_library_makes(length: int) -> None:
    payload = b"x" * length
    assert frames.text(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


@given(st.lists(st.text(max_size=300), max_size=5))
@settings(deadline=None)
def test_texts_that_are_joined_are_read_one_by_one(texts: list[str]) -> None:
    read = decoded(b"".join(frames.text(text.encode()) for text in texts))
    assert [(event.opcode, event.data.decode(), event.fin) for event in read] == [
        (Opcode.TEXT, text, True) for text in texts
    ]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_compressed_text_of_any_length_is_the_frame_that_the_library_makes(length: int) -> None:
    payload = os.urandom(length).hex().encode()[:length]
    extension = PerMessageDeflate(True, True, 15, 12, {"memLevel": 5})
    made = frames.deflated(payload)
    assert made == Frame(Opcode.TEXT, payload).serialize(mask=False, extensions=[extension])
    assert [bytes(event.data) for event in decoded(made, may_deflate=True)] == [payload]


@given(st.lists(st.tuples(st.text(max_size=300), st.sampled_from([frames.text, frames.deflated, frames.ping]))))
@settings(deadline=None)
def test_compressed_texts_are_read_one_by_one_whatever_stands_between_them(said: list[tuple[str, Any]]) -> None:
    """Also by a client that has read others: a compressed frame needs none before it."""
    said = [(text if make is not frames.ping else text[:31], make) for text, make in said]
    stream = b"".join(make(text.encode()) for text, make in said)
    read = decoded(stream, may_deflate=True)
    assert [bytes(event.data).decode() for event in read] == [text for text, _ in said]
    back = [make(text.encode()) for text, make in reversed(said)]
    assert [bytes(event.data).decode() for event in decoded(b"".join(back), may_deflate=True)] == [
        text for text, _ in reversed(said)
    ]


@given(st.binary(max_size=125))
@settings(deadline=None)
def test_pings_and_pongs_carry_their_payload(payload: bytes) -> None:
    assert frames.ping(payload) == Frame(Opcode.PING, payload).serialize(mask=False)
    assert frames.pong(payload) == Frame(Opcode.PONG, payload).serialize(mask=False)
    assert frames.ping() == Frame(Opcode.PING, b"").serialize(mask=False)


@given(st.sampled_from([1000, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4999]), st.text(max_size=200))
@example(1013, "ü" * 100)
@example(1008, "x" * 122 + "ü")
@example(1000, "x" * 123)
@settings(deadline=None)
def test_a_close_is_valid_and_its_reason_cut_between_characters(code: int, reason: str) -> None:
    [event] = decoded(frames.close(code, reason))
    close = Close.parse(event.data)
    assert close.code == code
    assert reason.startswith(close.reason)
    assert len(event.data) <= 125
    if close.reason != reason:
        assert len(event.data) + len(reason[len(close.reason)].encode()) > 125


# -- frames in, one by one


def every_kind_of_frame() -> bytes:
    """A conversation with each thing that a client may do in it."""
    return b"".join(
        (
            frame(TEXT, b""),
            frame(TEXT, "grüße, 世界, 🎉".encode()),
            frame(BINARY, bytes(range(130)), mask=b"\x00\xff\x80\x01"),
            frame(PING, b"p" * 125),
            frame(PONG),
            frame(TEXT, b"gr" + "ü".encode()[:1], fin=False),
            frame(CONTINUATION, b"", fin=False),
            frame(PING, b"amid fragments"),
            frame(CONTINUATION, "ü".encode()[1:] + b"n"),
            frame(BINARY, b"", fin=False),
            frame(CONTINUATION, b""),
            head(TEXT, 3, form=126) + masked(b"abc", b"mask"),
            head(TEXT, 3, form=127) + masked(b"abc", b"mask"),
            frame(CLOSE, close_payload(1001, "tschüs".encode())),
            frame(TEXT, b"after the close"),
        )
    )


def test_whole_conversations_are_read_as_the_library_reads_them_cut_at_every_byte() -> None:
    stream = every_kind_of_frame()
    expected = theirs([stream])
    assert len(expected) == 11
    assert expected[-1] == ("close", 1001, "tschüs".encode())
    for pieces in cuts(stream):
        assert ours(pieces) == expected


@pytest.mark.parametrize("length", [0, 1, 125, 126, 0xFFFF, 0x10000, MAX_BYTES])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_all_three_forms_of_a_length_are_read(opcode: int, length: int) -> None:
    payload = os.urandom(length).hex().encode()[:length]
    stream = frame(opcode, payload, mask=b"\x81\x02\x7f\xff") + frame(PING, b"next")
    expected = [("message", opcode, payload), ("message", PING, b"next")]
    assert theirs([stream]) == expected
    header = len(stream) - length
    for at in (*range(1, min(header + 2, len(stream))), len(stream) // 2, len(stream) - 1):
        assert ours([stream[:at], stream[at:]]) == expected


VIOLATIONS = {
    "a text without a mask": frame(TEXT, b"abc", mask=None),
    "a ping without a mask": frame(PING, mask=None),
    "a close without a mask": frame(CLOSE, mask=None),
    "the first reserved bit": frame(TEXT, b"abc", rsv=4),
    "the second reserved bit": frame(BINARY, b"abc", rsv=2),
    "the third reserved bit": frame(PING, rsv=1),
    "all reserved bits amid fragments": frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=7),
    **{f"opcode {opcode}": frame(opcode, b"abc") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a continuation of nothing": frame(CONTINUATION, b"abc"),
    "an unfinished continuation of nothing": frame(CONTINUATION, b"abc", fin=False),
    "a continuation of a whole message": frame(TEXT, b"abc") + frame(CONTINUATION, b"abc"),
    "a continuation of finished fragments": frame(TEXT, fin=False) + 2 * frame(CONTINUATION, b"a"),
    "a text amid fragments": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "a binary amid fragments of a text": frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"),
    "unfinished fragments twice": 2 * frame(BINARY, b"a", fin=False),
    "a long ping": frame(PING, b"p" * 126),
    "a very long pong": frame(PONG, b"p" * 0x10000),
    "a ping in a longer form of length": head(PING, 126, form=127) + masked(b"p" * 126, b"mask"),
    "a long close": frame(CLOSE, close_payload(1000, b"r" * 124)),
    "a ping in fragments": frame(PING, b"p", fin=False),
    "a close in fragments": frame(CLOSE, close_payload(1000), fin=False),
    "a close of one byte": frame(CLOSE, b"\x03"),
    **{
        f"close code {code}": frame(CLOSE, close_payload(code))
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "a text that is not UTF-8": frame(TEXT, b"abc\xff"),
    "a text that ends within a character": frame(TEXT, "grü".encode()[:-1]),
    "a text with a surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "an overlong character": frame(TEXT, b"\xc0\xaf"),
    "fragments that are not UTF-8 together": frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"\xc3"),
    "a close reason that is not UTF-8": frame(CLOSE, close_payload(1000, b"\xff")),
    "a close reason that ends within a character": frame(CLOSE, close_payload(1000, "ü".encode()[:1])),
    "a text past the bound": head(TEXT, MAX_BYTES + 1),
    "a binary far past the bound": head(BINARY, 2**63 - 1),
    "a length with its highest bit": head(TEXT, 2**64 - 1),
    "fragments past the bound": frame(TEXT, b"x" * (MAX_BYTES - 1), fin=False) + frame(CONTINUATION, b"yy"),
    "a third fragment past the bound": frame(BINARY, b"x" * 60_000, fin=False)
    + frame(CONTINUATION, b"x" * 9_999, fin=False)
    + frame(CONTINUATION, b"xx", fin=False),
}


@pytest.mark.parametrize("stream", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_ends_with_the_close_code_that_the_library_gives_it(stream: bytes) -> None:
    """Wherever the stream is cut, after good messages, and with more behind it, which is not read."""
    before = frame(TEXT, b"before") + frame(PING)
    expected, other = both(before + stream)
    assert expected == other
    assert is_violated(expected)
    after = frame(TEXT, b"after") + frame(CLOSE, close_payload(1000))
    stream = before + stream + after
    if len(stream) < 1000:
        for pieces in cuts(stream):
            assert ours(pieces) == expected
    else:
        assert ours([stream]) == expected
        assert ours(itertools.chain(pieces_of(stream, 1021))) == expected


def pieces_of(stream: bytes, size: int) -> Iterator[bytes]:
    return (stream[at : at + size] for at in range(0, len(stream), size))


def test_a_message_is_bounded_whole_and_in_fragments_and_the_next_one_anew() -> None:
    whole = frame(TEXT, b"x" * 100)
    halves = frame(TEXT, b"x" * 50, fin=False) + frame(CONTINUATION, b"x" * 50)
    stream = whole + halves + whole + halves
    assert ours([stream], 100) == theirs([stream], 100) == 4 * [("message", TEXT, b"x" * 100)]
    for wrong in (whole, halves):
        assert ours([wrong], 99) == theirs([wrong], 99) == [("violation", frames.MESSAGE_TOO_BIG)]


def test_a_message_that_is_too_big_is_refused_before_its_payload_has_come() -> None:
    assert ours([head(TEXT, 2**40)], 100) == [("violation", frames.MESSAGE_TOO_BIG)]


def test_a_stream_without_end_keeps_no_more_than_one_message() -> None:
    """Nothing of a client's makes the parser collect: not fragments without payload, not what comes after the end."""
    parser = Parser(1000)
    received = parser.feed(frame(TEXT, fin=False))
    fragments = 0
    while not received:
        received = parser.feed(frame(CONTINUATION, fin=False))
        fragments += 1
        assert fragments <= parser.max_bytes + 1
    assert [outcome(end) for end in received] == [("violation", frames.MESSAGE_TOO_BIG)]
    for _ in range(10):
        assert parser.feed(frame(TEXT, b"x" * 1000)) == []


def test_nothing_is_read_after_a_close() -> None:
    parser = Parser(1000)
    stream = frame(CLOSE, close_payload(4000, b"bye")) + frame(TEXT, b"more") + b"\xff" * 50
    assert [outcome(received) for received in parser.feed(stream)] == [("close", 4000, b"bye")]
    assert parser.feed(frame(TEXT, b"even more")) == []
    assert parser.feed(b"\x00\x00\x00") == []


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_valid_close_codes_are_taken(code: int) -> None:
    stream = frame(CLOSE, close_payload(code, b"why"))
    assert ours([stream]) == theirs([stream]) == [("close", code, b"why")]


def test_a_close_without_a_code_is_1005() -> None:
    stream = frame(CLOSE)
    assert ours([stream]) == theirs([stream]) == [("close", frames.NO_STATUS_RECEIVED, b"")]


# -- where both differ


def test_a_close_may_stand_amid_fragments() -> None:
    stream = frame(TEXT, b"a", fin=False) + frame(CLOSE, close_payload(1000, b"bye")) + frame(CONTINUATION, b"b")
    for pieces in cuts(stream):
        assert ours(pieces) == [("close", 1000, b"bye")]


TWO_FAULTS = {
    "reserved bits and too big": head(TEXT, MAX_BYTES + 1, rsv=4),
    "out of order and too big": head(CONTINUATION, MAX_BYTES + 1),
    "a ping longer than any message": head(PING, MAX_BYTES + 1),
    "a bad code with a bad reason": frame(CLOSE, close_payload(999, b"\xff")),
}


@pytest.mark.parametrize("stream", TWO_FAULTS.values(), ids=TWO_FAULTS)
def test_of_two_faults_we_name_the_one_that_stands_first(stream: bytes) -> None:
    mine, other = both(stream)
    assert mine == [("violation", frames.PROTOCOL_ERROR)]
    assert other in ([("violation", frames.MESSAGE_TOO_BIG)], [("violation", frames.INVALID_DATA)])


def test_a_control_frame_is_no_part_of_the_message_around_it() -> None:
    stream = frame(TEXT, b"x" * 99, fin=False) + frame(PING, b"p" * 100) + frame(CONTINUATION, b"x")
    assert ours([stream], 100) == [("message", PING, b"p" * 100), ("message", TEXT, b"x" * 100)]
    assert ours([frame(PING, b"ping")], 1) == [("message", PING, b"ping")]


def test_an_empty_fragment_counts_as_a_byte() -> None:
    parts = frame(TEXT, b"x" * 99, fin=False) + frame(CONTINUATION, fin=False)
    assert ours([parts + frame(CONTINUATION)], 100) == [("message", TEXT, b"x" * 99)]
    assert ours([parts + frame(CONTINUATION, b"y")], 100) == [("violation", frames.MESSAGE_TOO_BIG)]


# -- frames in, at random

masks = st.binary(min_size=4, max_size=4)
payloads = st.binary(max_size=40) | st.text(max_size=20).map(str.encode) | st.sampled_from([b"x" * 126, b"y" * 300])
texts = st.text(max_size=20).map(str.encode) | st.sampled_from([b"x" * 126, "ü".encode() * 300])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """The frames of one message, perhaps with control frames between them; valid, but for the UTF-8 of some texts."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(texts if opcode == TEXT and draw(st.integers(0, 9)) else payloads)
    ends = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    parts = [payload[start:end] for start, end in itertools.pairwise([0, *ends, len(payload)])]
    stream = b""
    for number, part in enumerate(parts):
        if number:
            stream += b"".join(draw(st.lists(controls(), max_size=2)))
        is_last = number == len(parts) - 1
        stream += frame(CONTINUATION if number else opcode, part, fin=is_last, mask=draw(masks))
    return stream


@st.composite
def controls(draw: st.DrawFn) -> bytes:
    return frame(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), mask=draw(masks))


@st.composite
def closes(draw: st.DrawFn) -> bytes:
    code = draw(st.sampled_from([1000, 1001, 1008, 3000, 4999]) | st.integers(0, 0xFFFF))
    reason = draw(st.text(max_size=30).map(str.encode))
    return frame(CLOSE, draw(st.sampled_from([b"", close_payload(code, reason)])), mask=draw(masks))


conversations = st.lists(messages() | controls(), max_size=6).map(b"".join)
streams = st.tuples(conversations, st.just(b"") | closes() | st.sampled_from(list(VIOLATIONS.values()))).map(b"".join)


@st.composite
def cut(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """`stream` cut anywhere."""
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[start:end] for start, end in itertools.pairwise([0, *places, len(stream)])]


@given(st.data(), streams)
@settings(deadline=None, max_examples=300)
def test_random_conversations_are_judged_as_the_library_judges_them(data: st.DataObject, stream: bytes) -> None:
    mine, other = both(stream)
    assert mine == other
    assert ours(data.draw(cut(stream))) == ours([stream])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A stream with bytes changed, lost and added."""
    stream = bytearray(draw(streams))
    assume(stream)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(stream)))
        match draw(st.sampled_from(["bit", "byte", "lose", "add"])):
            case "bit" if at < len(stream):
                stream[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if at < len(stream):
                stream[at] = draw(st.integers(0, 255))
            case "lose":
                del stream[at : at + draw(st.integers(1, 5))]
            case _:
                stream[at:at] = draw(st.binary(max_size=5))
    return bytes(stream)


@given(st.data(), damaged() | st.binary(max_size=200))
@settings(deadline=None, max_examples=500)
def test_damaged_streams_are_judged_as_the_library_judges_them(data: st.DataObject, stream: bytes) -> None:
    mine, other = both(stream)
    if is_violated(mine) and is_violated(other) and mine[-1] == ("violation", frames.PROTOCOL_ERROR):
        # A frame that is damaged may well have two faults.
        assert other[-1][1] in (frames.PROTOCOL_ERROR, frames.MESSAGE_TOO_BIG, frames.INVALID_DATA)
        mine, other = mine[:-1], other[:-1]
    assert mine == other
    assert ours(data.draw(cut(stream))) == ours([stream])


# -- compressed messages in

VALID_PACKED = {
    "a text": frame(TEXT, packed(b"hello " * 20), rsv=RSV1),
    "a binary": frame(BINARY, packed(bytes(range(200))), rsv=RSV1),
    "an empty text": frame(TEXT, packed(b""), rsv=RSV1),
    "an empty text as one byte (7.2.3.6)": frame(TEXT, b"\x00", rsv=RSV1),
    "hello in a fixed block (7.2.3.1)": frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=RSV1),
    "hello without compression (7.2.3.3)": frame(TEXT, bytes.fromhex("000500faff48656c6c6f00"), rsv=RSV1),
    "hello in a block that says it is the last (7.2.3.4)": frame(TEXT, bytes.fromhex("f348cdc9c9070000"), rsv=RSV1),
    "hello in two blocks (7.2.3.5)": frame(TEXT, bytes.fromhex("f248050000 00ffff cac9c90700"), rsv=RSV1),
    "a plain text": frame(TEXT, b"plain"),
    "a plain text in fragments": frame(TEXT, b"pl", fin=False) + frame(CONTINUATION, b"ain"),
    "fragments (7.2.3.1)": frame(TEXT, bytes.fromhex("f248cd"), fin=False, rsv=RSV1)
    + frame(PING, b"amid")
    + frame(CONTINUATION, fin=False)
    + frame(CONTINUATION, bytes.fromhex("c9c90700")),
    "an empty first fragment": frame(TEXT, fin=False, rsv=RSV1) + frame(CONTINUATION, packed(b"abc")),
    "much in little": frame(TEXT, packed(b"x" * 5000 + b"y" * 5000), rsv=RSV1),
}


def test_compressed_conversations_are_read_as_the_library_reads_them_cut_at_every_byte() -> None:
    stream = b"".join(VALID_PACKED.values()) + frame(CLOSE, close_payload(1000))
    expected = theirs([stream], may_deflate=True)
    assert len(expected) == len(VALID_PACKED) + 2  # a ping, a close
    assert expected.count(("message", TEXT, b"Hello")) == 5
    for pieces in cuts(stream):
        assert ours(pieces, may_deflate=True) == expected


PACKED_VIOLATIONS = {
    "RSV1 and RSV2": frame(TEXT, packed(b"abc"), rsv=RSV1 | 2),
    "RSV1 and RSV3": frame(TEXT, packed(b"abc"), rsv=RSV1 | 1),
    "RSV2 alone": frame(TEXT, b"abc", rsv=2),
    "RSV3 alone amid fragments": frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=1),
    "RSV1 in a continuation of a compressed text": frame(TEXT, packed(b"abc"), rsv=RSV1, fin=False)
    + frame(CONTINUATION, b"", rsv=RSV1),
    "RSV1 in a continuation of a plain text": frame(TEXT, b"a", fin=False)
    + frame(CONTINUATION, packed(b"b"), rsv=RSV1),
    "RSV1 in a continuation of nothing": frame(CONTINUATION, packed(b"b"), rsv=RSV1),
    "RSV1 in a ping": frame(PING, packed(b"p"), rsv=RSV1),
    "RSV1 in a pong amid fragments": frame(TEXT, packed(b"a"), rsv=RSV1, fin=False) + frame(PONG, rsv=RSV1),
    "RSV1 in a close": frame(CLOSE, close_payload(1000), rsv=RSV1),
    "RSV1 with an unknown opcode": frame(3, packed(b"abc"), rsv=RSV1),
    "a compressed text amid fragments": frame(TEXT, b"a", fin=False) + frame(TEXT, packed(b"b"), rsv=RSV1),
    "a compressed text without a mask": frame(TEXT, packed(b"abc"), rsv=RSV1, mask=None),
    "no DEFLATE": frame(TEXT, b"\xff" * 20, rsv=RSV1),
    "no DEFLATE in a long frame": frame(BINARY, b"\xff" * 3000, rsv=RSV1),
    "no DEFLATE in fragments": frame(TEXT, b"\x00\x05", rsv=RSV1, fin=False) + frame(CONTINUATION, b"\x00\x00\x00abc"),
    "no DEFLATE after a good block": frame(TEXT, packed(b"abc") + b"\x00\x00\xff\xff" + b"\x07", rsv=RSV1),
    "a reference to before the message": frame(TEXT, packed(b"abc" * 50), rsv=RSV1)
    + frame(TEXT, bytes.fromhex("f200110000"), rsv=RSV1),  # "Hello" again, of a context taken over (7.2.3.2)
    "an inflated text that is not UTF-8": frame(TEXT, packed(b"abc\xff"), rsv=RSV1),
    "inflated past the bound": frame(TEXT, packed(b"x" * (MAX_BYTES + 1)), rsv=RSV1),
    "inflated far past the bound": frame(BINARY, packed(bytes(100 * MAX_BYTES)), rsv=RSV1),
    "fragments inflated past the bound": frame(TEXT, packed(b"x" * (MAX_BYTES + 1))[:40], rsv=RSV1, fin=False)
    + frame(CONTINUATION, packed(b"x" * (MAX_BYTES + 1))[40:]),
    "compressed past the bound": head(TEXT, MAX_BYTES + 1, rsv=RSV1),
}


@pytest.mark.parametrize("stream", PACKED_VIOLATIONS.values(), ids=PACKED_VIOLATIONS)
def test_a_compressed_violation_ends_with_the_close_code_that_the_library_gives_it(stream: bytes) -> None:
    before = frame(TEXT, packed(b"before"), rsv=RSV1) + frame(TEXT, b"plain") + frame(PING)
    expected, other = both(before + stream, may_deflate=True)
    assert expected == other
    assert is_violated(expected)
    assert expected[:3] == ours([before], may_deflate=True)
    stream = before + stream + frame(TEXT, packed(b"after"), rsv=RSV1)
    for pieces in cuts(stream) if len(stream) < 1000 else ([stream], list(pieces_of(stream, 1021))):
        assert ours(pieces, may_deflate=True) == expected


@pytest.mark.parametrize("stream", VIOLATIONS.values(), ids=VIOLATIONS)
def test_what_is_wrong_without_compression_is_wrong_with_it(stream: bytes) -> None:
    mine, other = both(stream, may_deflate=True)
    assert mine == other
    assert is_violated(mine)


@pytest.mark.parametrize("stream", VALID_PACKED.values(), ids=VALID_PACKED)
def test_a_compressed_message_is_wrong_where_nobody_agreed_to_it(stream: bytes) -> None:
    mine, other = both(stream)
    assert mine == other
    assert is_violated(mine) == bool(stream[0] & RSV1 << 4)


def test_a_compressed_message_is_bounded_as_it_comes_and_as_it_is_inflated_and_the_next_one_anew() -> None:
    fits = packed(b"x" * 100)
    whole = frame(TEXT, fits, rsv=RSV1)
    halves = frame(TEXT, fits[:2], rsv=RSV1, fin=False) + frame(CONTINUATION, fits[2:])
    stream = whole + halves + whole + halves
    assert ours([stream], 100, may_deflate=True) == 4 * [("message", TEXT, b"x" * 100)]
    for wrong in (whole, halves):
        assert ours([wrong], 99, may_deflate=True) == [("violation", frames.MESSAGE_TOO_BIG)]
    stored = packed(os.urandom(100), level=0)
    assert ours([frame(BINARY, stored, rsv=RSV1)], len(stored) - 1, may_deflate=True) == [
        ("violation", frames.MESSAGE_TOO_BIG)
    ]


def test_a_message_is_inflated_when_it_is_complete() -> None:
    """The library judges each fragment: it has ended before the ping."""
    wrong = frame(TEXT, b"\xff" * 20, rsv=RSV1, fin=False)
    stream = wrong + frame(PING, b"amid") + frame(CONTINUATION)
    assert theirs([wrong], may_deflate=True) == [("violation", frames.PROTOCOL_ERROR)]
    assert ours([wrong], may_deflate=True) == []
    assert ours([stream], may_deflate=True) == [("message", PING, b"amid"), ("violation", frames.PROTOCOL_ERROR)]


def test_what_is_inflated_leaves_no_less_room_for_what_is_compressed() -> None:
    """The library has 10 bytes left for the second fragment, though it inflates to nothing."""
    data = packed(b"x" * 90)
    stream = frame(TEXT, data + b"\x00\x00\xff\xff", rsv=RSV1, fin=False)
    stream += frame(CONTINUATION, 2 * b"\x00\x00\x00\xff\xff" + packed(b""))
    assert theirs([stream], 100, may_deflate=True) == [("violation", frames.MESSAGE_TOO_BIG)]
    assert ours([stream], 100, may_deflate=True) == [("message", TEXT, b"x" * 90)]


def gigabyte_of_zeros() -> bytes:
    """1 GiB, compressed to a thousandth: the same block again and again."""
    compressor = zlib.compressobj(9, wbits=-15)
    block = compressor.compress(bytes(1 << 24)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (64 * block).removesuffix(b"\x00\x00\xff\xff")


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("in_fragments", [False, True], ids=["whole", "in fragments"])
def test_a_bomb_is_never_inflated(opcode: int, in_fragments: bool) -> None:
    bomb = gigabyte_of_zeros()
    max_bytes = 2 * len(bomb)  # so that all of it is received, and judged by what it grows to
    parts = chunks(bomb, 10_000) if in_fragments else [bomb]
    stream = [
        frame(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1, rsv=0 if number else RSV1)
        for number, part in enumerate(parts)
    ]
    parser = Parser(max_bytes, may_deflate=True)
    tracemalloc.start()
    received = [outcome(one) for piece in stream for one in parser.feed(piece)]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert received == [("violation", frames.MESSAGE_TOO_BIG)]
    assert peak < 4 * max_bytes  # what came, what is inflated up to the bound, and copies of either
    assert kept < 10_000


def test_a_parser_keeps_nothing_of_what_it_has_inflated() -> None:
    parsers = [Parser(MAX_BYTES, may_deflate=True) for _ in range(1000)]
    message, first = frame(TEXT, packed(b"x" * 1000), rsv=RSV1), frame(TEXT, b"\xf2\x48", rsv=RSV1, fin=False)
    tracemalloc.start()
    for parser in parsers:
        parser.feed(message)
        parser.feed(message[:5])
        parser.feed(message[5:])
        assert parser.feed(first) == []
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / len(parsers) < 200  # a fragment of two bytes, and no decompressor for it


@st.composite
def packed_messages(draw: st.DrawFn) -> bytes:
    """The frames of one message, compressed in any way, perhaps with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    data = packed(
        draw(texts if opcode == TEXT and draw(st.integers(0, 9)) else payloads),
        level=draw(st.integers(0, 9)),
        bits=draw(st.integers(9, 15)),
        last=draw(st.booleans()),
        parts=draw(st.integers(1, 4)),
    )
    ends = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    parts = [data[start:end] for start, end in itertools.pairwise([0, *ends, len(data)])]
    stream = frame(opcode, parts[0], fin=len(parts) == 1, rsv=RSV1, mask=draw(masks))
    for number, part in enumerate(parts[1:], 2):
        stream += b"".join(draw(st.lists(controls(), max_size=2)))
        stream += frame(CONTINUATION, part, fin=number == len(parts), mask=draw(masks))
    return stream


mixed = st.lists(packed_messages() | messages() | controls(), max_size=6).map(b"".join)


@given(st.data(), mixed, st.just(b"") | closes() | st.sampled_from(list(PACKED_VIOLATIONS.values())))
@settings(deadline=None, max_examples=300)
def test_random_compressed_conversations_are_judged_as_the_library_judges_them(
    data: st.DataObject, stream: bytes, end: bytes
) -> None:
    mine, other = both(stream + end, may_deflate=True)
    assert mine == other
    assert ours(data.draw(cut(stream + end)), may_deflate=True) == mine


@given(st.data(), payloads, st.integers(0, 9))
@settings(deadline=None, max_examples=500)
def test_damaged_compression_is_judged_as_the_library_judges_it(
    data: st.DataObject, payload: bytes, level: int
) -> None:
    """It may still be inflated, to something else or to less: DEFLATE has no sum and needs no end."""
    wrong = bytearray(packed(payload, level=level))
    for _ in range(data.draw(st.integers(1, 3))):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    wrong = wrong[: data.draw(st.integers(0, len(wrong)))]
    stream = frame(data.draw(st.sampled_from([TEXT, BINARY])), bytes(wrong), rsv=RSV1)
    mine, other = both(stream, may_deflate=True)
    assert mine == other


@given(st.lists(st.lists(st.text(max_size=100), min_size=1, max_size=4), max_size=5), st.integers(9, 15))
@settings(deadline=None)
def test_what_a_client_of_the_library_compresses_is_read(said: list[list[str]], bits: int) -> None:
    client = Protocol(Side.CLIENT, state=OPEN)
    client.extensions = [PerMessageDeflate(True, True, 12, bits)]
    for parts in said:
        client.send_text(parts[0].encode(), fin=len(parts) == 1)
        for number, part in enumerate(parts[1:], 2):
            client.send_ping(b"amid")
            client.send_continuation(part.encode(), fin=number == len(parts))
    heard = [one for one in ours(client.data_to_send(), may_deflate=True) if one[1] == TEXT]
    assert heard == [("message", TEXT, "".join(parts).encode()) for parts in said]
