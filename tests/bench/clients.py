"""Clients over bare sockets: connect, subscribe, ready at the answer to a ping."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator

from ..support import token
from . import payload
from .reading import frames, inflated

_TOGETHER = 128  # handshakes in flight
_USERS = 50
_PATIENCE_SECONDS = 20.0

# The key and its answer are the example of RFC 6455, section 1.3.
_REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
)
_OFFER = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
_SUBPROTOCOL = "Sec-WebSocket-Protocol: x-api-key.{key}\r\n"
_ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def masked(text: str) -> bytes:
    """A text frame as clients send it."""
    body = text.encode()
    key = os.urandom(4)
    size = len(body)
    header = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return header + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(body))


PING = masked('{"type":"ping"}')
_SUBSCRIBE = {
    "maxicore": '{"type":"subscribe","filters":{"agent_id":"AGENT"}}',
    "freeagentics": '{"type":"subscribe","data":{"events":["inference_progress"],"agents":["AGENT"]}}',
}
_COMPRESS = '{"type":"configure","data":{"compression":true}}'  # FreeAgentics alone has a word for it


def connect(
    port: int, path: str, agents: list[str], dialect: str = "maxicore", *, is_compressed: bool = False
) -> list[socket.socket]:
    """A ready client per entry of `agents` that watches that agent; they belong to 50 users in turn.

    `{agent}` in `path` is replaced by that agent, `{token}` by the user's token. With `is_compressed` they agree to
    permessage-deflate and switch it on. Raises `ConnectionError` with the server's words when one is refused. The
    sockets do not block any more.
    """
    tokens = itertools.cycle([token(payload.WORKSPACE, sub=f"user-{number}") for number in range(_USERS)])
    offer = _OFFER if is_compressed else ""
    ready: list[socket.socket] = []
    for batch in _batches(agents):
        sockets = [socket.create_connection(("127.0.0.1", port), _PATIENCE_SECONDS) for _ in batch]
        for each, agent in zip(sockets, batch, strict=True):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = path.format(agent=agent, token=next(tokens))
            each.sendall(_REQUEST.format(path=target, port=port, offer=offer).encode())
        rests = [_handshake(each) for each in sockets]
        for each, agent in zip(sockets, batch, strict=True):
            opening = masked(_SUBSCRIBE[dialect].replace("AGENT", agent)) + PING
            each.sendall(masked(_COMPRESS) + opening if is_compressed else opening)
        for each, rest in zip(sockets, rests, strict=True):
            _pong(each, rest)
            each.setblocking(False)
        ready += sockets
    return ready


def connect_by_key(port: int, path: str, key: str, count: int) -> list[socket.socket]:
    """So many AGNT5 clients that show `key`. Raises `ConnectionError` with the server's words when one is refused.

    Unlike those of `connect` they block: a client of this benchmark never has more to send than a socket takes.
    """
    sockets = []
    for _ in range(count):
        each = socket.create_connection(("127.0.0.1", port), _PATIENCE_SECONDS)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        each.sendall(_REQUEST.format(path=path, port=port, offer=_SUBPROTOCOL.format(key=key)).encode())
        _handshake(each)  # nothing comes after it before something is asked
        sockets.append(each)
    return sockets


def _batches(agents: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(agents), _TOGETHER):
        yield agents[start : start + _TOGETHER]


def _handshake(client: socket.socket) -> bytes:
    """Read the answer to the handshake; answers what came after it."""
    answer = _read_until(client, b"", lambda data: b"\r\n\r\n" in data)
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 ") or _ACCEPT not in head:
        raise ConnectionError(f"the handshake was refused: {answer[:300]!r}")
    return rest


def _pong(client: socket.socket, rest: bytes) -> None:
    def is_there(data: bytes) -> bool:
        messages = [inflated(data, *frame) for frame in frames(data, 0)]
        if any(b"error" in message or payload.SEQUENCE in message for message in messages):
            raise ConnectionError(f"instead of a pong: {messages!r}")
        return any(b'"pong"' in message for message in messages)

    _read_until(client, rest, is_there)


def _read_until(client: socket.socket, data: bytes, is_there: Callable[[bytes], bool]) -> bytes:
    while not is_there(data):
        more = client.recv(4096)
        if not more:
            raise ConnectionError(f"the server closed the connection after {data[:300]!r}")
        data += more
    return data
