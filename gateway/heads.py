"""uvicorn's HTTP with the bounds that it has not: how large the head of a request may be, and how long it may take.

Without them anybody who reaches the port could fill a node's memory with one header, or hold its sockets for ever with
none. A balancer in front has bounds of its own; a node must not need one.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_BYTES = 256 * 1024
SECONDS = 10.0

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 27\r\nconnection: close\r\n\r\n"
    b"the head has too many bytes"
)


class Http(HttpToolsProtocol):
    """One connection. Its next head is waited for from its first byte on, the very first one from the start."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._bytes = 0  # of the head that is being read
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._end()
        self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is None:
            return
        self._bytes += len(data)
        if self._bytes > MAX_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        # It holds our methods, and nobody tells us of the socket's end any more: each would keep the other until the
        # collector of cycles looks.
        self.parser = None  # type: ignore[assignment]

    def _begin(self) -> None:
        self._bytes = 0
        self._deadline = self.loop.call_later(SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
