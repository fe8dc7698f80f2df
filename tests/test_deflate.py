"""permessage-deflate: what we agree to, and single messages compressed and inflated.

The websockets library's client makes offers and judges our answers; zlib judges what we compress.
"""

import os
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from gateway import deflate, frames

TAIL = b"\x00\x00\xff\xff"
BARE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
NARROW = BARE + "; server_max_window_bits=12"

# What a client offers, in one header each → our answer; None: no compression.
OFFERS: dict[tuple[str, ...], str | None] = {
    (): None,
    ("permessage-deflate",): BARE,
    ("permessage-deflate; client_max_window_bits",): BARE,  # browsers, Node's ws, the websockets library
    ("permessage-deflate; client_max_window_bits=10",): BARE,
    ("permessage-deflate; client_max_window_bits=8",): BARE,
    ("permessage-deflate; server_no_context_takeover",): BARE,
    ("permessage-deflate; client_no_context_takeover; server_no_context_takeover",): BARE,
    ("permessage-deflate; server_max_window_bits=12",): NARROW,
    ("permessage-deflate; server_max_window_bits=13; client_max_window_bits",): NARROW,
    ('permessage-deflate; server_max_window_bits="15"',): NARROW,
    # A window that is smaller than ours.
    ("permessage-deflate; server_max_window_bits=11",): None,
    ("permessage-deflate; server_max_window_bits=9",): None,
    ("permessage-deflate; server_max_window_bits=8",): None,
    ("permessage-deflate; server_max_window_bits=10, permessage-deflate",): BARE,
    ("permessage-deflate; server_max_window_bits=10", "permessage-deflate; server_max_window_bits=14"): NARROW,
    ("permessage-deflate; server_max_window_bits=10, permessage-deflate; server_max_window_bits=9",): None,
    # The first that we can meet, and that once.
    ("permessage-deflate; server_max_window_bits=15, permessage-deflate",): NARROW,
    ("permessage-deflate", "permessage-deflate"): BARE,
    ("x-webkit-deflate-frame, permessage-deflate",): BARE,
    ("x-webkit-deflate-frame",): None,
    ("PERMESSAGE-DEFLATE",): None,
    # Wrong parameters are a reason to decline (RFC 7692, 7.1).
    ("permessage-deflate; level=9",): None,
    ("permessage-deflate; level=9, permessage-deflate",): BARE,
    ("permessage-deflate; server_max_window_bits",): None,
    ("permessage-deflate; server_max_window_bits=16",): None,
    ("permessage-deflate; server_max_window_bits=7",): None,
    ("permessage-deflate; server_max_window_bits=012",): None,
    ("permessage-deflate; server_max_window_bits=twelve",): None,
    ("permessage-deflate; server_max_window_bits=12; server_max_window_bits=12",): None,
    ("permessage-deflate; client_max_window_bits=16",): None,
    ("permessage-deflate; client_max_window_bits; client_max_window_bits",): None,
    ("permessage-deflate; server_no_context_takeover=1",): None,
    ("permessage-deflate; client_no_context_takeover; client_no_context_takeover",): None,
}

NO_LISTS = ["", ",", ";", "permessage-deflate;", "permessage-deflate permessage-deflate", 'permessage-deflate; a="b']


def judge() -> ServerProtocol:
    return ServerProtocol(extensions=[deflate.Negotiation()])


def request(offers: tuple[str, ...]) -> Request:
    headers = Headers(
        {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        }
    )
    for offer in offers:
        headers["Sec-WebSocket-Extensions"] = offer
    return Request("/", headers, "GET", "HTTP/1.1")


def answered(by: ServerProtocol, offers: tuple[str, ...]) -> tuple[int, str | None]:
    """The status and what it says of extensions."""
    response = by.accept(request(offers))
    return response.status_code, response.headers.get("Sec-WebSocket-Extensions")


# -- the handshake


@pytest.mark.parametrize(("offers", "answer"), OFFERS.items())
def test_an_offer_is_answered_with_what_we_keep_to_or_declined(offers: tuple[str, ...], answer: str | None) -> None:
    assert answered(judge(), offers) == (101, answer)


@pytest.mark.parametrize("header", NO_LISTS)
def test_a_header_that_is_no_list_of_extensions_is_a_bad_request(header: str) -> None:
    assert answered(judge(), (header,)) == (400, None)


def test_nothing_of_one_handshake_is_left_for_the_next_one() -> None:
    """One judge serves all: it answers as a new one, and holds no compressor for anybody."""
    shared = judge()
    every = [*OFFERS, *((header,) for header in NO_LISTS)]
    for offers in (*every, *reversed(every)):
        assert answered(shared, offers) == answered(judge(), offers)
        assert not any(
            hasattr(extension, "encoder") or hasattr(extension, "decoder") for extension in shared.extensions
        )


CLIENTS: dict[str, tuple[dict[str, Any], bool]] = {
    "what it offers by itself": ({}, True),
    "without a hint": ({"client_max_window_bits": None}, True),
    "a small window of its own": ({"client_max_window_bits": 9}, True),
    "the window we have": ({"server_max_window_bits": 12}, True),
    "a larger window": ({"server_max_window_bits": 15, "client_max_window_bits": 15}, True),
    "no context": ({"server_no_context_takeover": True, "client_no_context_takeover": True}, True),
    "a smaller window": ({"server_max_window_bits": 11}, False),
}


@pytest.mark.parametrize(("offer", "is_agreed"), CLIENTS.values(), ids=CLIENTS)
def test_the_librarys_client_and_we_understand_each_other(offer: dict[str, Any], is_agreed: bool) -> None:
    """From its request to messages in both directions."""
    client = ClientProtocol(parse_uri("ws://localhost/"), extensions=[ClientPerMessageDeflateFactory(**offer)])
    opening = client.connect()
    client.send_request(opening)
    client.data_to_send()
    client.receive_data(judge().accept(opening).serialize())
    assert client.handshake_exc is None
    assert len(client.extensions) == is_agreed
    assert len(client.events_received()) == 1  # our answer

    parser = frames.Parser(10_000, may_deflate=is_agreed)
    for text in (b"hello " * 100, b"", b"hello " * 100):
        client.send_text(text)
        sent = b"".join(client.data_to_send())
        assert bool(sent[0] & 0x40) == is_agreed
        assert parser.feed(sent) == [frames.Received(frames.TEXT, text)]
        client.receive_data(frames.deflated(text) if is_agreed else frames.text(text))
        assert [bytes(event.data) for event in client.events_received() if isinstance(event, Frame)] == [text]


# -- what we send


@given(st.binary(max_size=2000) | st.integers(0, 100_000).map(os.urandom) | st.just(b"x" * 50_000))
@settings(deadline=None)
def test_what_is_compressed_is_inflated_by_a_window_of_12_bits_without_any_context(payload: bytes) -> None:
    data = deflate.compress(payload)
    assert zlib.decompressobj(wbits=-12).decompress(data + TAIL) == payload
    assert data == deflate.compress(payload)


def test_no_reference_reaches_further_back_than_the_window() -> None:
    """What returns after 4 KiB is compressed anew: a client with the window that we named has nothing older."""
    piece = os.urandom(2000)
    far = deflate.compress(piece + os.urandom(3000) + piece)
    near = deflate.compress(piece + os.urandom(1000) + piece)
    assert len(far) > 6900
    assert len(near) < 3300


def test_an_empty_message_is_a_block_without_its_tail() -> None:
    assert deflate.compress(b"") == b"\x00"  # RFC 7692, 7.2.3.6
    assert deflate.decompress(deflate.compress(b""), 1) == b""


def test_an_event_is_smaller_than_before() -> None:
    event = b'{"type":"task.progress","agent_id":"agent-123","data":{"task_id":"task-456","task_name":"task"}}'
    assert len(deflate.compress(event)) < len(event)


# -- what we receive


@given(st.binary(max_size=500), st.integers(0, 9), st.integers(9, 15))
@settings(deadline=None)
def test_whatever_a_client_compresses_with_is_inflated(payload: bytes, level: int, bits: int) -> None:
    compressor = zlib.compressobj(level, wbits=-bits)
    data = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
    assert deflate.decompress(data, len(payload) + 1) == payload


def test_a_client_may_look_back_32_kilobytes() -> None:
    payload = 2 * os.urandom(20_000)
    compressor = zlib.compressobj(wbits=-15)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert len(data) < 21_000
    assert deflate.decompress(data.removesuffix(TAIL), len(payload) + 1) == payload


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(deadline=None)
def test_no_more_is_inflated_than_was_asked_for(length: int, max_bytes: int) -> None:
    payload = os.urandom(length // 2).hex().encode()
    assert deflate.decompress(deflate.compress(payload), max_bytes) == payload[:max_bytes]


def test_the_memory_for_a_message_is_that_of_what_was_asked_for() -> None:
    compressor = zlib.compressobj(9, wbits=-15)
    data = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    tracemalloc.start()
    assert len(deflate.decompress(data, 10_000)) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(data) + 100_000  # the data, with its tail, and what is left of it


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x07", b"\x00\x05\x00\x00\x00hello", bytes.fromhex("f200110000")])
def test_what_is_no_deflate_is_an_error(data: bytes) -> None:
    with pytest.raises(zlib.error):
        deflate.decompress(data, 100)


def test_what_stands_after_the_last_block_is_left() -> None:
    compressor = zlib.compressobj(wbits=-15)
    data = compressor.compress(b"hello") + compressor.flush()
    assert deflate.decompress(data + b"\x00more", 100) == b"hello"
