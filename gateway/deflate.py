"""permessage-deflate (RFC 7692): agreed in the handshake, then each message for itself. Pure.

Neither side takes a context over from message to message. So what we send depends on the payload alone and one
compressed frame serves all clients of a group; and what we receive needs a decompressor only while it is read.

Which frames may be compressed and what that looks like in their heads is up to `frames`.
"""

import zlib
from collections.abc import Sequence

from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.typing import ExtensionParameter

# Of what we send: enough for events, and far cheaper to set up than 15 bits. The client's window is its own choice.
WINDOW_BITS = 12
_MEMORY_LEVEL = 5

# What a flush ends with, and what therefore is not sent (RFC 7692, 7.2.1).
_TAIL = b"\x00\x00\xff\xff"

_WINDOW = "server_max_window_bits"


class Negotiation(ServerPerMessageDeflateFactory):
    """What a `ServerProtocol` needs to agree on it: `extensions=[Negotiation()]`. One serves all handshakes.

    The first offer that we can meet is accepted: one that limits our window to less than ours is not, nor is one with
    wrong parameters. A header that is no list of extensions is a bad request.
    """

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        _, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError("our window is larger")
        answer: list[ExtensionParameter] = [("server_no_context_takeover", None), ("client_no_context_takeover", None)]
        # Section 7.1.2.1 lets us name our window unasked, but Firefox and others have failed connections for it; a
        # client that did not ask has a window of 15 bits, which reads ours. What the client says of its own window is
        # a hint (7.1.2.2) that we have no use for.
        if any(name == _WINDOW for name, _ in params):
            answer.append((_WINDOW, str(WINDOW_BITS)))
        return answer, extension


def compress(payload: bytes) -> bytes:
    """A message's payload as it is sent; 6 µs for an event of 373 bytes."""
    # A copy of a compressor that is kept costs no less than a new one.
    compressor = zlib.compressobj(wbits=-WINDOW_BITS, memLevel=_MEMORY_LEVEL)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)


def decompress(data: bytes, max_bytes: int) -> bytes:
    """The first `max_bytes` (at least one) of the message in `data`; what is beyond them is not even inflated.

    Raises `zlib.error` for what is not DEFLATE. A message that breaks off cannot be told from a whole one.
    """
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data + _TAIL, max_bytes)
