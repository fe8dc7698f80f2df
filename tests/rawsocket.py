"""A FreeAgentics client that shows frames as they are on the wire, and reads only when it is asked to."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from websockets.frames import Frame, Opcode

from .freeagentics import user
from .support import Node

OFFER = "permessage-deflate; client_max_window_bits"

_RSV1 = 0x40


class RawFrame(NamedTuple):
    """One whole frame. `wire` is all of it, `payload` what it carries."""

    wire: bytes
    payload: bytes

    @property
    def is_compressed(self) -> bool:
        return bool(self.wire[0] & _RSV1)

    @property
    def opcode(self) -> int:
        return self.wire[0] & 15

    @property
    def message(self) -> dict[str, Any]:
        """What it says; a compressed one is inflated alone, without what came before it."""
        text = self.payload
        if self.is_compressed:
            text = zlib.decompressobj(wbits=-12).decompress(text + b"\x00\x00\xff\xff")
        message: dict[str, Any] = json.loads(text)
        return message


class RawClient:
    """`head` is the answer to the handshake."""

    def __init__(self, connected: socket.socket) -> None:
        self.head = ""
        self._socket = connected
        self._buffer = b""

    async def shake_hands(self, credentials: str, offer: str | None) -> None:
        """Offer this extension; read the answer and the greeting."""
        key = base64.b64encode(os.urandom(16)).decode()
        extension = f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else ""
        await self._write(
            f"GET /api/v1/ws?token={credentials} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{extension}\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            await self._read()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.head = head.decode().lower()
        for _ in range(2):
            await self.frame()

    async def frame(self) -> RawFrame:
        """The next frame."""
        length = (await self._have(2))[1]
        start = 2
        if length == 126:
            start, length = 4, int.from_bytes((await self._have(4))[2:4])
        elif length == 127:
            start, length = 10, int.from_bytes((await self._have(10))[2:10])
        wire = (await self._have(start + length))[: start + length]
        self._buffer = self._buffer[start + length :]
        return RawFrame(wire, wire[start:])

    async def until(self, kind: str) -> RawFrame:
        """The next frame with a message of this type; others before it are let by."""
        while (frame := await self.frame()).message["type"] != kind:
            pass
        return frame

    async def to_the_end(self) -> tuple[list[dict[str, Any]], int]:
        """All messages up to the close frame, and its code."""
        messages = []
        while (frame := await self.frame()).opcode != Opcode.CLOSE:
            messages.append(frame.message)
        return messages, int.from_bytes(frame.payload[:2])

    async def send(self, *messages: Any, is_compressed: bool = False) -> None:
        """Send all of them in one piece."""
        await self._write(b"".join(_frame(json.dumps(message).encode(), is_compressed) for message in messages))

    async def _have(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._read()
        return self._buffer

    async def _read(self, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 256 * 1024)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._buffer += data

    async def _write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)


def _frame(payload: bytes, is_compressed: bool) -> bytes:
    if is_compressed:
        compressor = zlib.compressobj(wbits=-15)
        payload = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        payload = payload.removesuffix(b"\x00\x00\xff\xff")
    wire = bytearray(Frame(Opcode.TEXT, payload).serialize(mask=True))
    wire[0] |= _RSV1 * is_compressed
    return bytes(wire)


@contextlib.asynccontextmanager
async def raw_client(
    node: Node, credentials: str | None = None, *, offer: str | None = OFFER, receive_bytes: int | None = None
) -> AsyncIterator[RawClient]:
    """A client that is connected and greeted. `receive_bytes` bounds what the kernel keeps of what it does not read."""
    with socket.socket() as connected:
        if receive_bytes is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", node.port))
        client = RawClient(connected)
        await client.shake_hands(credentials or user(), offer)
        yield client
