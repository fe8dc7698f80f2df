"""The wiring: builds the parts, hands each what it needs, runs them, and ends them in reverse."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker import Unavailable
from broker import address as addresses
from broker.broker import Broker
from broker.patience import pause

from .auth import Verifier
from .node import Node
from .server import Server, raise_file_limit
from .settings import Settings

logger = logging.getLogger("trunkline")

START_SECONDS = 5.0
FEW_FILES = 4096
GC_THRESHOLDS = (20_000, 20, 50)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Server]:
    """A node with everything but its server running; the server is the caller's to `serve`.

    Raises `Invalid` for settings that cannot be, `Unavailable` when Redis does not answer within `START_SECONDS`.
    """
    settings.check_auth()
    files = raise_file_limit()
    if files < FEW_FILES:
        logger.warning("this process may open %d files only: each client takes one (ulimit -n)", files)
    verifier = Verifier(settings)
    broker = Broker(
        addresses.read(settings.redis_url),
        prefix=settings.prefix,
        log_events=settings.log_events,
        log_seconds=settings.log_seconds,
        name="trunkline-node",
    )
    node = Node(settings, broker, verifier)
    try:
        await _reach(broker)
        if settings.jwt_jwks_url:
            await verifier.refresh()
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(part()) for part in node.parts]
            try:
                yield Server(node)
            finally:
                for part in parts:
                    part.cancel()
    finally:
        await node.leases.close()
        await node.windows.close()
        await broker.close()


async def serve(settings: Settings) -> None:
    """Run one node until SIGTERM or SIGINT."""
    async with running(settings) as server:
        # What exists now stays, and what comes with events goes by itself: the collector need not look so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        sockets = await server.listen()
        logger.info("serving on %s:%d with Redis at %s", settings.host, settings.port, server.node.broker.address)
        await server.serve(sockets)
    logger.info("left")


async def _reach(broker: Broker) -> None:
    """Wait a little for a Redis that is just starting too."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            await broker.check()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await pause(0.2)
        else:
            return
