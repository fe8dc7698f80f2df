"""The head of a request has bounds, in bytes and in time."""

import socket

import psutil
import pytest

from gateway import heads

from .support import Node, http

pytest_plugins = ["tests.wire.fixtures"]


@pytest.mark.parametrize("begun", [b"GET /", b"GET /live HTTP/1.1\r\nX: "], ids=["a path", "a header"])
def test_a_head_without_an_end_is_not_kept(shared_node: Node, begun: bytes) -> None:
    process = psutil.Process(shared_node.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", shared_node.port), 10) as raw, pytest.raises(ConnectionError):
        _send_without_end(raw, begun)
    assert process.memory_info().rss - before < 16_000_000


def _send_without_end(raw: socket.socket, begun: bytes) -> None:
    raw.sendall(begun)
    for _ in range(1000):
        raw.sendall(b"x" * 100_000)


def test_who_sends_too_much_of_it_is_told(shared_node: Node) -> None:
    with socket.create_connection(("127.0.0.1", shared_node.port), 10) as raw:
        raw.sendall(b"GET /live HTTP/1.1\r\nX: " + b"x" * heads.MAX_BYTES)
        assert raw.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_large_one_is_read(shared_node: Node) -> None:
    assert http(shared_node.http("/live"), {"X": "x" * (heads.MAX_BYTES - 1000)})[0] == 200
