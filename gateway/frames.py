"""WebSocket frames (RFC 6455): ready-made ones out, a parser in. Pure: bytes in, values out.

Out: a server's frame is not masked and the same for everyone, compressed or not, so it is made once.
In:  `Parser.feed` takes bytes cut anywhere and answers what they complete. It enforces what the protocol demands of a
     client: masked frames, no extension bits but those agreed on, sound fragments, short control frames, UTF-8, valid
     close codes, a bounded message. A violation is the last thing it answers; nothing is read after it or after a close
     frame.

With permessage-deflate (RFC 7692) RSV1 in the first frame of a message says that the message is compressed. It is
inflated when all of it is here: until then we hold no more than the client has sent.
"""

import zlib
from struct import Struct
from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # no C extension on this platform
    from websockets.utils import apply_mask

from . import deflate

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

# Close codes, by the RFC's and IANA's names.
NORMAL_CLOSURE = 1000
PROTOCOL_ERROR = 1002
UNSUPPORTED_DATA = 1003
NO_STATUS_RECEIVED = 1005
ABNORMAL_CLOSURE = 1006
INVALID_DATA = 1007
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013

_RSV1 = 0x40

_HEAD_16 = Struct(">BBH").pack

_MAY_BE_RECEIVED = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
_MAX_CONTROL_BYTES = 125


def text(payload: bytes) -> bytes:
    """A text frame."""
    length = len(payload)
    if 126 <= length < 0x10000:  # most events are
        return _HEAD_16(0x81, 126, length) + payload
    return _head(TEXT, length) + payload


def deflated(payload: bytes) -> bytes:
    """A text frame, compressed: for clients that agreed to permessage-deflate. The same for all of them."""
    compressed = deflate.compress(payload)
    return _head(_RSV1 | TEXT, len(compressed)) + compressed


def ping(payload: bytes = b"") -> bytes:
    return _head(PING, len(payload)) + payload


def pong(payload: bytes) -> bytes:
    return _head(PONG, len(payload)) + payload


def close(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut to what a control frame holds."""
    payload = code.to_bytes(2) + reason.encode()[: _MAX_CONTROL_BYTES - 2].decode(errors="ignore").encode()
    return _head(CLOSE, len(payload)) + payload


def _head(opcode: int, length: int) -> bytes:
    first = 0x80 | opcode
    if length < 126:
        return bytes((first, length))
    if length < 0x10000:
        return bytes((first, 126)) + length.to_bytes(2)
    return bytes((first, 127)) + length.to_bytes(8)


class Received(NamedTuple):
    """What a client sent: a whole message (TEXT, BINARY), a control frame, or, with `code` alone, a violation.

    `code` is the close code that was received, or the one to close with; `payload` of a close is its reason.
    """

    opcode: int
    payload: bytes
    code: int = 0


VIOLATION = -1


class _Violation(Exception):  # noqa: N818
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Parser:
    """One client's stream of frames.

    `max_bytes` bounds a message, whole or in fragments, as it comes and as it is when inflated. With `may_deflate` the
    client has agreed to permessage-deflate, without context takeover.
    """

    __slots__ = (
        "_buffer", "_fragments", "_is_deflated", "_is_over", "_may_deflate", "_need", "_opcode", "_size", "max_bytes",
    )  # fmt: skip

    def __init__(self, max_bytes: int, may_deflate: bool = False) -> None:
        self.max_bytes = max_bytes
        self._may_deflate = may_deflate
        self._buffer: bytearray | None = None  # an incomplete frame
        self._need = 0  # its length, as far as it is known
        self._opcode = 0  # of the message under way in fragments
        self._is_deflated = False
        self._fragments: list[bytes] | None = None
        self._size = 0
        self._is_over = False

    def feed(self, data: bytes) -> list[Received]:
        """What `data` completes, in order."""
        if self._is_over:
            return []
        source: bytes | bytearray = data
        if self._buffer is not None:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            source, self._buffer = self._buffer, None
        received: list[Received] = []
        start = 0
        try:
            while not self._is_over:
                end = self._frame(source, start, received)
                if end == 0:
                    break
                start = end
        except _Violation as violation:
            self._is_over = True
            received.append(Received(VIOLATION, str(violation).encode(), violation.code))
        if not self._is_over and start < len(source):
            self._buffer = bytearray(source[start:])
        if self._is_over:
            self._buffer = self._fragments = None
        return received

    def _frame(self, source: bytes | bytearray, start: int, received: list[Received]) -> int:
        """Read one frame at `start`; answers where it ends, 0 when it is not all there."""
        available = len(source) - start
        if available < 2:
            self._need = 2
            return 0
        first, second = source[start], source[start + 1]
        opcode, length = first & 0x0F, second & 0x7F
        if first & 0x70 and not self._announces_deflate(first):
            raise _Violation(PROTOCOL_ERROR, "reserved bits are set")
        if not second & 0x80:
            raise _Violation(PROTOCOL_ERROR, "a client's frame must be masked")
        head = 6 if length < 126 else 8 if length == 126 else 14
        if opcode >= CLOSE:
            if opcode > PONG:
                raise _Violation(PROTOCOL_ERROR, "unknown opcode")
            if length >= 126 or not first & 0x80:
                raise _Violation(PROTOCOL_ERROR, "a control frame must be short and whole")
        elif opcode > BINARY:
            raise _Violation(PROTOCOL_ERROR, "unknown opcode")
        elif (opcode == CONTINUATION) is (self._fragments is None):
            raise _Violation(PROTOCOL_ERROR, "fragments out of order")
        if available < head:
            self._need = head
            return 0
        if length == 126:
            length = int.from_bytes(source[start + 2 : start + 4])
        elif length == 127:
            length = int.from_bytes(source[start + 2 : start + 10])
        if opcode < CLOSE and self._size + length > self.max_bytes:
            raise self._too_big()
        if available < head + length:
            self._need = head + length
            return 0
        body = start + head
        payload = apply_mask(source[body : body + length], bytes(source[body - 4 : body])) if length else b""
        if opcode >= CLOSE:
            received.append(self._control(opcode, payload))
        elif first & 0xC0 == 0x80 and self._fragments is None:  # whole, and not compressed
            received.append(_message(opcode, payload))
        else:
            self._fragment(first, payload, received)
        return body + length

    def _announces_deflate(self, first: int) -> bool:
        """True when RSV1 is alone and stands where a message begins (RFC 7692, section 6)."""
        return self._may_deflate and first & 0x70 == _RSV1 and first & 0x0F in (TEXT, BINARY)

    def _fragment(self, first: int, payload: bytes, received: list[Received]) -> None:
        """A part of a message, or all of a compressed one."""
        if self._fragments is None:
            self._fragments, self._opcode, self._is_deflated = [], first & 0x0F, bool(first & _RSV1)
        self._fragments.append(payload)
        # An empty fragment costs memory too: count each as a byte.
        self._size += len(payload) or 1
        if first & 0x80:
            whole = b"".join(self._fragments)
            self._fragments, self._size = None, 0
            received.append(_message(self._opcode, self._inflated(whole) if self._is_deflated else whole))

    def _inflated(self, data: bytes) -> bytes:
        try:
            payload = deflate.decompress(data, self.max_bytes + 1)
        except zlib.error:
            raise _Violation(PROTOCOL_ERROR, "the message cannot be inflated") from None
        if len(payload) > self.max_bytes:
            raise self._too_big()
        return payload

    def _too_big(self) -> _Violation:
        return _Violation(MESSAGE_TOO_BIG, f"a message may have {self.max_bytes} bytes")

    def _control(self, opcode: int, payload: bytes) -> Received:
        if opcode != CLOSE:
            return Received(opcode, payload)
        self._is_over = True
        if not payload:
            return Received(CLOSE, b"", NO_STATUS_RECEIVED)
        code = int.from_bytes(payload[:2])
        if len(payload) == 1 or not (code in _MAY_BE_RECEIVED or 3000 <= code < 5000):
            raise _Violation(PROTOCOL_ERROR, "invalid close code")
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            raise _Violation(INVALID_DATA, "the close reason is not UTF-8") from None
        return Received(CLOSE, payload[2:], code)


def _message(opcode: int, payload: bytes) -> Received:
    if opcode == TEXT and not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise _Violation(INVALID_DATA, "the message is not UTF-8") from None
    return Received(opcode, payload)
