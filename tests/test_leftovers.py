"""A client that has gone is let go at once: the collector of cycles looks seldom, and a node's memory must not wait."""

import asyncio
import contextlib
import gc
import signal
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect

from broker import Broker
from broker.credentials import Credentials
from gateway.app import running
from gateway.connection import Connection
from gateway.heads import Http
from gateway.inbox import Inbox
from gateway.server import LEAVE
from gateway.session import Session
from gateway.settings import load
from gateway.wire import Wire

from .support import SECRET, free_port, token, until

pytestmark = pytest.mark.anyio

OURS = (Connection, Http, Inbox, Session, Wire)


@contextlib.asynccontextmanager
async def serving(redis_url: str, prefix: str) -> AsyncIterator[str]:
    """A node in this process, by its address; without the collector."""
    settings = load(
        {},
        {
            "redis_url": redis_url,
            "prefix": prefix,
            "jwt_secret": SECRET,
            "port": free_port(),
            "heartbeat_seconds": 0.2,  # so long its clock may remember who has gone
            "drain_wait_seconds": 0,
            "drain_seconds": 0,
        },
    )
    handlers = {number: signal.getsignal(number) for number in LEAVE}
    gc.collect()
    gc.disable()
    try:
        async with running(settings) as server:
            task = asyncio.create_task(server.serve(await server.listen()))
            try:
                await until(lambda: server.started)
                yield f"ws://127.0.0.1:{settings.port}"
            finally:
                server.should_exit = True
                await task
    finally:
        gc.enable()
        for number, handler in handlers.items():  # a node's end leaves them ignored
            signal.signal(number, handler)


def kept() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in OURS)


@pytest.mark.parametrize("dialect", ["maxicore", "freeagentics", "agnt5"])
@pytest.mark.parametrize("is_polite", [True, False], ids=["polite", "cut off"])
async def test_a_client_that_has_gone_leaves_nothing_for_the_collector(
    redis_url: str, prefix: str, dialect: str, *, is_polite: bool
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        key = (await Credentials(broker.redis, broker.keys).create("shop", "ws-1")).key
    path, offered = {
        "maxicore": (f"/v2/ws?token={token('ws-1')}", None),
        "freeagentics": (f"/api/v1/ws?token={token('ws-1')}", None),
        "agnt5": ("/ws?x-wf-endpoint=shop", [f"x-api-key.{key}"]),
    }[dialect]
    async with serving(redis_url, prefix) as node:
        before = kept()
        for _ in range(4):
            async with connect(node + path, subprotocols=offered, proxy=None) as client:  # type: ignore[arg-type]
                await client.send('{"type":"ping"}')
                while "pong" not in str(await client.recv()):
                    pass
                if not is_polite:
                    client.transport.abort()
        await until(lambda: not kept() - before, what="all of it to be let go")
