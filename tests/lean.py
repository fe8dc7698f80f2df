"""A WebSocket client that costs little, for tests with many clients or messages: it keeps payloads and parses later."""

import asyncio
import base64
import json
import os
import time
from typing import Any

import msgspec
from websockets.frames import Frame, Opcode

from .support import Node, token, until

_DECODE = msgspec.json.decode


class LeanClient(asyncio.Protocol):
    """`payloads` are the text messages as bytes, `times` when they arrived (if asked for), `code` the close code."""

    def __init__(self, *, timed: bool = False) -> None:
        self.payloads: list[bytes] = []
        self.times: list[float] | None = [] if timed else None
        self.code: int | None = None
        self.closed_at = 0.0
        self.status = 0
        self._buffer = b""
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None

    @classmethod
    async def connect(cls, node: Node, credentials: str | None = None, query: str = "", **options: Any) -> "LeanClient":
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_connection(lambda: cls(**options), "127.0.0.1", node.port)
        key = base64.b64encode(os.urandom(16)).decode()
        path = f"/v2/ws?token={credentials or token()}&{query}"
        transport.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        async with asyncio.timeout(20):
            await client._open
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.closed_at = self.closed_at or time.monotonic()
        self.code = self.code or 1006
        for future in (self._open, self.lost):
            if not future.done():
                future.set_result(None)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        start = 0
        if not self._open.done():
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._buffer = head
                return
            self.status = int(head.split(b" ", 2)[1])
            self._open.set_result(None)
        now = time.time()
        size = len(data)
        while size - start >= 2:
            length, body = data[start + 1], start + 2
            if length == 126:
                length, body = int.from_bytes(data[start + 2 : start + 4]), start + 4
            elif length == 127:
                length, body = int.from_bytes(data[start + 2 : start + 10]), start + 10
            if size < body + length or body > size:
                break
            opcode = data[start] & 15
            if opcode == Opcode.TEXT:
                self.payloads.append(data[body : body + length])
                if self.times is not None:
                    self.times.append(now)
            elif opcode == Opcode.PING:
                self._write(Opcode.PONG, data[body : body + length])
            elif opcode == Opcode.CLOSE:
                self.code = int.from_bytes(data[body : body + 2])
                self.closed_at = time.monotonic()
                self._write(Opcode.CLOSE, data[body : body + length])
            start = body + length
        self._buffer = data[start:]

    def _write(self, opcode: Opcode, payload: bytes) -> None:
        self._transport.write(Frame(opcode, payload).serialize(mask=True))

    def send(self, message: Any) -> None:
        self._write(Opcode.TEXT, json.dumps(message).encode())

    def subscribe(self, since: Any = None, **filters: Any) -> None:
        self.send({"type": "subscribe", "filters": filters} | ({"since": since} if since is not None else {}))

    async def synchronise(self, seconds: float = 20.0) -> None:
        """Wait for the answer to a ping of ours; it is not kept."""
        before = self._pongs()
        self.send({"type": "ping"})
        await until(lambda: self._pongs() > before or self.code, seconds, "a pong")

    def _pongs(self) -> int:
        return sum(payload.startswith(b'{"type":"pong"') for payload in self.payloads)

    def messages(self) -> list[dict[str, Any]]:
        return [_DECODE(payload) for payload in self.payloads]

    def events(self) -> list[dict[str, Any]]:
        """The messages that are events."""
        return [message for message in self.messages() if message["type"] not in ("pong", "ping")]

    def pause(self) -> None:
        """Stop reading."""
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    def close(self) -> None:
        self._transport.abort()
