"""uvicorn with two habits changed: it drains before it closes, and who was asked to go and went exits with 0."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn

from broker import Unavailable

from .heads import Http
from .http import application
from .node import Node
from .wire import Wire

logger = logging.getLogger("trunkline.node")

BACKLOG = 4096
# How uvicorn serves us, and the bare route beside which the bench holds the Agents API.
UVICORN: dict[str, Any] = {
    "loop": "uvloop",
    "lifespan": "off",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "backlog": BACKLOG,
}
LEAVE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server(uvicorn.Server):
    """One node's server."""

    def __init__(self, node: Node) -> None:
        settings = node.settings
        super().__init__(
            uvicorn.Config(
                application(node),
                host=settings.host,
                port=settings.port,
                http=Http,
                ws=partial(Wire, node),  # type: ignore[arg-type]
                timeout_graceful_shutdown=5,
                **UVICORN,
            )
        )
        self.node = node

    async def listen(self) -> list[socket.socket]:
        """The sockets to `serve` on. Raises `Unavailable` when the address cannot be had."""
        settings = self.node.settings
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            return [socket.create_server(address[:2], family=family) for family, _, _, _, address in found[:1]]
        except OSError as error:
            raise Unavailable(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from error

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let everybody go in peace, while newcomers still hear a clear no; then as uvicorn does."""
        draining = asyncio.create_task(self.node.drain())
        while not (draining.done() or self.force_exit):  # a second Ctrl-C
            await asyncio.wait((draining,), timeout=0.1)
        draining.cancel()
        error = draining.exception() if draining.done() else None
        if error is not None:
            logger.error("a bug ended the drain: all are sent away at once", exc_info=error)
        if self.force_exit or error is not None:
            self.node.send_all_away()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end: a process that was asked to go and went did not fail.

        To be asked again changes nothing, also while leases are given back after the server's end. Only Ctrl-C is
        somebody who waits: the second sends everybody away at once, one after the server's end ends the process.
        """
        loop = asyncio.get_running_loop()
        for number in LEAVE:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in LEAVE:
                loop.remove_signal_handler(number)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def raise_file_limit() -> int:
    """Let this process open as many files as it may; answers the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
