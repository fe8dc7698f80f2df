"""What clients do at the worst moment, and what floods of them cost: nobody else, and nothing that stays.

Where a moment must be hit, or what stays behind be seen, the node runs inside the test (`inside`) behind a Redis that
can be made to stand still.
"""

import asyncio
import contextlib
import gc
import json
import re
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client

from broker import Event
from broker.feed import Want
from broker.local import LocalRedis
from gateway import auth
from gateway import node as gateway_node
from gateway.app import running
from gateway.connection import Connection
from gateway.settings import Settings

from .freeagentics import freeagentics, user
from .proxy import proxy
from .rawsocket import RawClient, raw_client
from .support import SECRET, Node, free_port, until
from .test_auth import signed
from .test_freeagentics_limits import AT_ANY_PACE, burst, subject, types
from .wire.helpers import producer

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.freeagentics_fixtures"]

UNCOUNTED: dict[str, Any] = AT_ANY_PACE | {"max_messages_per_minute": -1, "max_user_messages_per_minute": -1}


@contextlib.asynccontextmanager
async def inside(redis_url: str, prefix: str, **settings: Any) -> AsyncIterator[tuple[Node, gateway_node.Node]]:
    """A node of this process: how to reach it, and what it is made of."""
    reached = Node(redis_url, prefix)
    given = {"port": reached.port, "prefix": prefix, "redis_url": redis_url, "jwt_secret": (SECRET,)}
    at_once = {"drain_wait_seconds": 0, "drain_seconds": 0}
    async with running(Settings(**(given | at_once | AT_ANY_PACE | settings))) as server:
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
        serving = asyncio.create_task(server.serve(await server.listen()))
        try:
            await until(lambda: server.node.is_ready)
            yield reached, server.node
        finally:
            server.should_exit = True
            await serving


def status(workspace: str, size: int = 0) -> Event:
    data = {"old_status": "idle", "new_status": "active", "padding": "x" * size}
    return Event(type="agent_status", workspace_id=workspace, agent_id="agent_123", data=data)


def drop(client: RawClient) -> None:
    """End its socket without a word, as when its machine is gone."""
    client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client._socket.close()


# Who leaves


async def test_who_renews_its_token_during_a_replay_and_drops_its_socket_ends_nobody_else(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(**UNCOUNTED)
    async with producer(node) as broker:
        ids = [await broker.publish(status("ws-a"))]
        for _ in range(20):
            ids += await broker.publish_many([status("ws-a", size=3000) for _ in range(100)])
        for attempt in range(3):
            resume = {"type": "subscribe", "data": {"events": ["agent_status"], "since": ids[0]}}
            me = f"user-{attempt}"
            async with freeagentics(node, user("ws-a")) as other, raw_client(node, user("ws-a", sub=me)) as leaving:
                await leaving.send(resume)
                await other.send(resume)
                await leaving.until("agent_status")
                await leaving.send({"type": "auth", "data": {"token": user("ws-a", f"ws-{attempt}", sub=me)}})
                for _ in range(200):
                    await leaving.until("agent_status")
                drop(leaving)
                while len(other.messages) < len(ids) + 2:
                    await other.receive()
                got = [message["event_id"] for message in other.messages if message["type"] == "agent_status"]
                assert got == ids[1:]
    assert "Traceback" not in node.output()


async def test_what_waits_goes_with_who_has_left(redis: LocalRedis, prefix: str) -> None:
    async with (
        proxy(redis.port) as middle,
        inside(middle.url, prefix) as (node, inner),
        raw_client(node) as leaving,
    ):
        [connection] = inner.connections
        middle.pause()
        await leaving.send(*[{"type": "ping"}] * 20)
        await until(lambda: connection.is_waiting)
        drop(leaving)
        await until(lambda: connection.is_gone)
        middle.go_on()
        assert not connection.is_waiting


async def test_nothing_keeps_who_has_left(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel does for one beat; it did until their tokens' end, an hour."""
    kept = weakref.WeakSet[Connection]()

    class Known(Connection):
        __slots__ = ("__weakref__",)

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            kept.add(self)

    def is_nobody_left() -> bool:
        gc.collect()
        return not kept

    monkeypatch.setattr(gateway_node, "Connection", Known)
    async with inside(redis_url, prefix, heartbeat_seconds=0.2) as (node, inner):
        for _ in range(5):
            async with freeagentics(node) as client:
                await client.subscribe(["agent_status", "metrics"])
        await until(lambda: not inner.connections)
        await until(is_nobody_left)


async def test_who_leaves_while_a_place_and_a_key_are_looked_for_keeps_no_place(
    redis: LocalRedis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "REFRESH_SECONDS", 0.0)
    me = user()
    settings = {"jwt_jwks_url": f"http://127.0.0.1:{free_port()}/", "max_connections_per_user": 1}
    async with proxy(redis.port) as middle, inside(middle.url, prefix, **settings) as (node, inner):

        async def is_admitted() -> bool:
            async with freeagentics(node, me) as client:
                return client.greeting[0]["type"] == "connection_established"

        middle.pause()
        async with websockets.asyncio.client.connect(node.ws(f"/api/v1/ws?token={me}"), proxy=None) as leaving:
            await leaving.send(as_text("auth", token=signed("unknown", sub=subject(me))))
            await (await leaving.ping())  # what came before it was taken
            leaving.transport.abort()
            await until(lambda: not inner.connections)
            middle.go_on()
        await until(is_admitted)
        await until(lambda: inner.leases.held == 0)


# Who renews


async def test_what_a_renewed_token_no_longer_names_stops_though_something_new_is_still_joined(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, asked, has_joined = user("ws-a", "ws-b"), asyncio.Event(), asyncio.Event()
    async with (
        inside(redis_url, prefix) as (node, inner),
        producer(node) as broker,
        freeagentics(node, user("ws-a")) as other,
        freeagentics(node, me) as client,
    ):
        for each in (other, client):
            await each.subscribe(["agent_status"])
        want = inner.feed.want

        async def joined(future: asyncio.Future[None] | None) -> None:
            if future is not None:
                await future
            await has_joined.wait()

        def want_patiently(wants: Collection[Want]) -> asyncio.Future[None] | None:
            future = want(wants)
            if "ws-c" not in {workspace for workspace, _ in wants}:
                return future
            asked.set()
            return asyncio.ensure_future(joined(future))

        monkeypatch.setattr(inner.feed, "want", want_patiently)
        await client.send({"type": "auth", "data": {"token": user("ws-b", "ws-c", sub=subject(me))}})
        await asyncio.wait_for(asked.wait(), 10)
        for workspace in ("ws-a", "ws-b"):
            await broker.publish(status(workspace))
        assert (await client.receive())["workspace_id"] == "ws-b"
        assert (await other.receive())["workspace_id"] == "ws-a"
        has_joined.set()
        assert await client.synchronise() == []
        for workspace in ("ws-a", "ws-c"):
            await broker.publish(status(workspace))
        assert (await client.receive())["workspace_id"] == "ws-c"


async def test_renewals_pass_by_what_waits_and_count(quiet_node: Node) -> None:
    me = user()
    async with raw_client(quiet_node, me) as client:
        await client.send(*[{"type": "auth", "data": {"token": me}}] * 300)
        said, code = await client.to_the_end()
    assert code == 1008
    assert (said[-1]["type"], said[-1]["data"]["error_code"]) == ("connection_error", "RATE_LIMIT_EXCEEDED")


async def test_who_has_said_too_much_may_renew_its_token_and_leave(quiet_node: Node) -> None:
    me = user()
    async with freeagentics(quiet_node, me) as client, freeagentics(quiet_node, me) as denied:
        for each in (client, denied):
            assert types(await burst(each, 101))[-1] == "command_error"
        told = len(client.messages)
        await client.send({"type": "auth", "data": {"token": me}})
        await client.send({"type": "disconnect"})
        assert (await client.closed())[0] == 1000
        assert len(client.messages) == told
        await denied.send({"type": "auth", "data": {"token": "no token"}})
        assert (await denied.closed())[0] == 1008
        assert denied.messages[-1]["data"]["error_code"] == "AUTHENTICATION_FAILED"


async def test_but_not_without_end(quiet_node: Node) -> None:
    me = user()
    async with freeagentics(quiet_node, me) as client:
        await burst(client, 100)
        for _ in range(100):
            await client.send({"type": "auth", "data": {"token": me}})
        assert (await client.closed())[0] == 1008
        assert client.messages[-1]["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"


# What others pay


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the most memory that was used")
async def test_a_compressed_flood_is_inflated_in_turns(start_node: Callable[..., Node]) -> None:
    """150 KB that are 100 MB: what it makes of one node's memory is also what others wait for it."""
    node = start_node()
    ping = {"type": "ping", "padding": " " * 65_000}
    async with raw_client(node) as client, freeagentics(node) as other:
        before = most_memory(node)
        await client.send(*[ping] * 1500, is_compressed=True)
        _, code = await client.to_the_end()
        assert code == 1008
        assert most_memory(node) - before < 20e6
        assert await other.synchronise() == []


def most_memory(node: Node) -> float:
    """The most that the node ever had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{node.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("path", ["/api/v1/ws", "/v2/ws"])
async def test_a_subject_that_is_no_unicode_harms_nobody(path: str, quiet_node: Node) -> None:
    me = user(sub="\ud800")
    async with websockets.asyncio.client.connect(quiet_node.ws(f"{path}?token={me}"), proxy=None) as socket:
        await socket.send(as_text("ping"))
        async with asyncio.timeout(10):
            while '"pong"' not in str(await socket.recv()):
                pass
    await until(lambda: quiet_node.metric("trunkline_connections") == 0)
    assert "Traceback" not in quiet_node.output()


async def test_a_client_that_a_bug_meets_is_let_go(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    async with inside(redis_url, prefix) as (node, inner):
        with monkeypatch.context() as spoilt:
            spoilt.setattr(Connection, "start", fail)
            async with websockets.asyncio.client.connect(node.ws("/api/v1/ws"), proxy=None) as socket:
                await socket.wait_closed()
                assert socket.close_code == 1011
        await until(lambda: not inner.connections)
        assert "a bug ended a connection" in caplog.text
        async with freeagentics(node) as client:
            assert await client.synchronise() == []


def as_text(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "data": data})
