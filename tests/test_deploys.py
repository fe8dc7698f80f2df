"""Deploys: how a node leaves, what it gives back, and what its clients and the balancers see of it."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from websockets import ConnectionClosed
from websockets.exceptions import InvalidStatus

from broker import Broker, Event
from broker.keyspace import Keyspace

from .agnt5 import HALF, WHOLE, Shop, opened, refusal, types
from .freeagentics import freeagentics
from .lean import LeanClient
from .rest import SCOPE, Rest
from .roll import figures
from .roll.fleet import Fleet, needs, nginx_before
from .roll.run import Plan, roll
from .support import SECRET, Node, http, maxicore, private_redis, token, until

pytestmark = pytest.mark.anyio

StartNode = Callable[..., Node]


def progress(step: int, agent: str = "agent-1") -> Event:
    return Event(type="task.progress", workspace_id="ws-456", agent_id=agent, data={"task_id": "t", "step": step})


async def is_leaving(node: Node) -> bool:
    return (await asyncio.to_thread(http, node.http("/ready")))[0] == 503


async def left(node: Node, seconds: float = 15) -> int:
    """The exit status."""
    return await asyncio.to_thread(node.wait, seconds)


# --- While the balancer notices ---


async def test_a_leaving_node_serves_who_is_in_and_sends_newcomers_away_in_the_handshake(
    start_node: StartNode, redis_url: str, prefix: str
) -> None:
    node = start_node(drain_wait_seconds=30)
    async with opened([node]) as shop, maxicore(node) as client, Broker.connect(redis_url, prefix=prefix) as broker:
        await client.subscribe()
        await client.synchronise()
        node.signal(signal.SIGTERM)
        await until(lambda: is_leaving(node))
        assert http(node.http("/ready"))[1]["retry-after"] == "1"
        assert http(node.http("/live"))[0] == 200
        for newcomer in (maxicore(node), freeagentics(node)):
            with pytest.raises(InvalidStatus) as refused:
                await newcomer.__aenter__()
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["Retry-After"] == "1"
        answer = await refusal(node, shop.endpoint, shop.key)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert json.loads(answer.body)["error"]["code"] == "UNAVAILABLE"
        await broker.publish(progress(1))
        assert (await client.receive())["step"] == 1


async def test_a_kept_connection_is_closed_with_its_next_answer(start_node: StartNode) -> None:
    node = start_node(drain_wait_seconds=30)
    with contextlib.closing(HTTPConnection("127.0.0.1", node.port, timeout=10)) as kept:

        def ask() -> HTTPResponse:
            kept.request("GET", "/live")
            answer = kept.getresponse()
            assert answer.read() == b"live\n"
            return answer

        assert ask().headers["Connection"] is None
        kept_socket = kept.sock
        node.signal(signal.SIGTERM)
        await until(lambda: is_leaving(node))
        assert kept.sock is kept_socket, "it was closed before it was asked"
        assert ask().headers["Connection"] == "close"


async def test_a_request_that_is_under_way_is_answered_though_the_node_has_left_its_address(
    start_node: StartNode,
) -> None:
    node = start_node(drain_seconds=0)
    body = json.dumps({"name": "Late", "workspace_id": "ws-456"}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(
        f"POST /v2/agents HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token(scope=SCOPE)}\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")  # somebody waits for the body
    node.signal(signal.SIGTERM)
    await until(lambda: http(node.http("/live"))[0] == 0)
    writer.write(body)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b"\r\nconnection: close\r\n" in answer
    writer.close()
    assert await left(node) == 0


# --- Being asked again ---


async def test_to_be_asked_again_changes_nothing(start_node: StartNode) -> None:
    node = start_node(drain_seconds=1)
    clients = [await LeanClient.connect(node) for _ in range(30)]
    asked = time.monotonic()
    node.signal(signal.SIGTERM)
    await until(lambda: is_leaving(node))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        node.signal(number)
    await asyncio.wait([client.lost for client in clients], timeout=10)
    assert {client.code for client in clients} == {1012}
    assert max(client.closed_at for client in clients) - asked > 0.7
    assert await left(node) == 0


async def test_a_second_interrupt_sends_everybody_away_at_once_with_a_farewell(start_node: StartNode) -> None:
    node = start_node(drain_wait_seconds=60, drain_seconds=60)
    async with freeagentics(node) as client, maxicore(node) as other:
        node.signal(signal.SIGINT)
        await until(lambda: is_leaving(node))
        node.signal(signal.SIGINT)
        assert (await client.until("disconnect_warning"))["data"]["close_code"] == 1012
        assert (await client.closed())[0] == 1012
        assert (await other.closed())[0] == 1012
        assert await left(node) == 0


async def test_a_node_without_clients_any_more_does_not_wait_for_its_window_to_end(start_node: StartNode) -> None:
    node = start_node(drain_seconds=600)
    async with maxicore(node), maxicore(node):
        node.signal(signal.SIGTERM)
        await until(lambda: is_leaving(node))
    assert await left(node) == 0


# --- What is given back ---


@pytest.fixture
async def keyed(redis_url: str, prefix: str) -> AsyncIterator[tuple[Redis, Keyspace]]:
    async with Redis.from_url(redis_url) as redis:
        yield redis, Keyspace(prefix)


async def test_all_that_a_node_held_is_given_back_when_it_has_gone(
    start_node: StartNode, keyed: tuple[Redis, Keyspace]
) -> None:
    redis, keys = keyed
    node = start_node(drain_seconds=0)
    own = token(agent_id="agent-1", scope="events:read events:write")
    async with opened([node]) as shop, freeagentics(node) as client, maxicore(node, own), shop.client():
        await client.subscribe(["metrics_update"])
        await client.until("metrics_update")  # it leads
        await until(lambda: redis.exists(keys.listening("ws-456", "agent-1")))
        await until(lambda: redis.exists(keys.sweeper))
        places = [name async for name in redis.scan_iter(f"{keys.prefix}:connections:*")]
        assert [await redis.zcard(name) for name in places] == [1] * len(places)
        assert len(places) == 3, "a user's, an address' and an endpoint's"
        node.signal(signal.SIGTERM)
        assert await left(node) == 0
    held = [*places, keys.election("ws-456"), keys.sweeper, keys.nodes]
    assert await redis.exists(*held) == 0
    # An agent that has said goodbye has a grace in which another node may have it.
    assert await redis.hexists(keys.farewells("ws-456"), "agent-1")
    assert await redis.pttl(keys.listening("ws-456", "agent-1")) < 7000


# --- When Redis is away ---


async def everybody(node: Node, shop: Shop, lives: contextlib.AsyncExitStack) -> list[Any]:
    """A client of each kind, an agent's own connection among them."""
    own = token(agent_id="agent-1", scope="events:read events:write")
    contexts: list[Any] = [maxicore(node), maxicore(node, own), freeagentics(node), shop.client()]
    clients = [await lives.enter_async_context(context) for context in contexts]
    for client in clients:
        await client.synchronise()
    return clients


async def test_a_node_leaves_in_peace_though_redis_has_gone(start_node: StartNode, prefix: str) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url, drain_seconds=0.2)
        async with contextlib.AsyncExitStack() as lives:
            clients = await everybody(node, await lives.enter_async_context(opened([node])), lives)
            await asyncio.to_thread(redis.stop)
            node.signal(signal.SIGTERM)
            assert [(await client.closed())[0] for client in clients] == [1012] * len(clients)
            assert await left(node, 10) == 0
            await asyncio.to_thread(redis.start)
    assert "Traceback" not in node.output()


def has_left(node: Node) -> list[int]:
    """Ask it once more. Answers the exit status when there is one."""
    assert node.process is not None
    node.signal(signal.SIGTERM)
    status = node.process.poll()
    return [] if status is None else [status]


async def test_a_node_that_is_asked_again_and_again_while_redis_takes_nothing_back_leaves_in_peace(
    start_node: StartNode,
) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url, drain_seconds=0.2)
        async with contextlib.AsyncExitStack() as lives:
            clients = await everybody(node, await lives.enter_async_context(opened([node])), lives)
            os.kill(redis.pid, signal.SIGSTOP)
            node.signal(signal.SIGTERM)
            assert [(await client.closed())[0] for client in clients] == [1012] * len(clients)
            assert await until(lambda: has_left(node), 15, "the node to leave") == [0]
            os.kill(redis.pid, signal.SIGCONT)
    assert "Traceback" not in node.output()


# --- A fleet that is restarted, node by node ---


def test_crowding_is_the_busiest_second_wherever_it_begins_to_an_even_share() -> None:
    assert figures.crowding([], 10) == 0
    assert figures.crowding([number / 8 for number in range(80)], 10) == 1
    assert figures.crowding([0.0, 0.6, 1.2, 1.5, 3.0, 3.9], 6) == 3


def test_in_a_measured_roll_nobody_is_away_for_long_and_nothing_is_lost() -> None:
    """`make roll` on a small scale."""
    needs("haproxy")
    plan = Plan(
        clients=200, residents=20, workspaces=10, events_per_second=100, calm_seconds=0.5, drain_wait_seconds=0.5,
        drain_seconds=2,
    )  # fmt: skip
    outcome = roll(plan)
    before, first, second, after, killed = figures.read(outcome.journal, outcome.phases)
    assert outcome.journal.wrong.total() == outcome.journal.gaps == 0
    assert [one.moved for one in (before, first, second, after, killed)] == [0, 100, 200, 0, 200]
    assert (first.closes, second.closes) == ({1012: 100}, {1012: 200})
    for one in (first, second):
        assert one.longest_absence < 5
        assert one.crowding <= 2
        assert not one.refused


async def test_when_no_node_has_room_newcomers_are_told_when_to_come_again(tmp_path: Path) -> None:
    """By the nodes themselves, as far as the balancer has an answer of theirs."""
    needs("haproxy")
    async with contextlib.AsyncExitStack() as lives:
        fleet = lives.enter_context(Fleet(jwt_secret=SECRET, drain_wait_seconds=60))
        nginx = lives.enter_context(nginx_before(tmp_path, *(node.port for node in fleet.nodes)))
        fronts = [Node(fleet.redis.url, "trunkline", port=one.port) for one in (fleet.balancer, nginx)]
        shop = await lives.enter_async_context(opened(fronts))
        for node in fleet.nodes:
            node.process.send_signal(signal.SIGTERM)
        down = [f"Server nodes/{node.name} is DOWN" for node in fleet.nodes]
        await until(lambda: all(words in fleet.balancer.output() for words in down))
        answer = await refusal(fronts[0], shop.endpoint, shop.key)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert json.loads(answer.body)["error"]["code"] == "UNAVAILABLE"
        assert (await refusal(fronts[1], shop.endpoint, shop.key)).headers["Retry-After"] == "1"
        for node in fleet.nodes:
            node.process.kill()
            node.process.wait()
        for answer in await asyncio.gather(*(refusal(front, shop.endpoint, shop.key) for front in fronts)):
            assert answer.status in (502, 503)
            assert answer.headers["Retry-After"] == "1"


class Front:
    """A balancer before the fleet, and all that its clients see from first to last."""

    def __init__(self, fleet: Any, member: Any) -> None:
        self.node = Node(fleet.redis.url, "trunkline", port=member.port)
        self.is_over = False
        self.steps: list[list[int]] = [[] for _ in range(10)]
        self.farewells: list[int | None] = []
        self.newcomers = 0
        self.requests = 0

    async def watch(self, steps: list[int]) -> None:
        """As a good client does: come back from the last event seen, until the last of all."""
        since = None
        while steps[-1:] != [-1]:
            async with maxicore(self.node) as client:
                await client.subscribe(since=since, workspace_id="ws-456")
                try:
                    while steps[-1:] != [-1]:
                        event = await client.receive(30)
                        assert event["type"] == "task.progress"
                        since = event["event_id"]
                        steps.append(event["data"]["step"])
                except ConnectionClosed:
                    self.farewells.append(client.socket.close_code)

    async def come(self) -> None:
        """Somebody new, again and again; `maxicore` raises when a handshake is refused."""
        while not self.is_over:
            async with maxicore(self.node) as newcomer:
                await newcomer.synchronise()
            self.newcomers += 1

    async def ask(self) -> None:
        """Requests, each on a connection of its own; a balancer may send the first again, the second never."""
        rest = Rest(self.node)
        agent = {"name": "New", "workspace_id": "ws-456"}
        while not self.is_over:
            for method, body, status in (("GET", None, 200), ("POST", agent, 201)):
                answer = await asyncio.to_thread(rest.ask, method, "/v2/agents", body)
                assert answer.status == status, answer
                self.requests += 1
            await asyncio.sleep(0.05)


def restart_each(fleet: Any) -> None:
    """As a deploy does."""
    for node in fleet.nodes:
        fleet.stop(node)
        fleet.start_again(node)


async def test_a_rolling_restart_behind_each_balancer_refuses_nobody_and_leaves_nobody_without_an_answer(
    tmp_path: Path,
) -> None:
    needs("haproxy")
    settings = {"drain_wait_seconds": 0.5, "drain_seconds": 1, "max_requests_per_minute": -1}
    async with contextlib.AsyncExitStack() as lives:
        fleet = lives.enter_context(Fleet(jwt_secret=SECRET, **settings))
        nginx = lives.enter_context(nginx_before(tmp_path, *(node.port for node in fleet.nodes)))
        fronts = [Front(fleet, fleet.balancer), Front(fleet, nginx)]
        shop = await lives.enter_async_context(opened([front.node for front in fronts]))
        crew = await lives.enter_async_context(shop.crew())
        runner = await lives.enter_async_context(shop.client(0))
        execution = await runner.start("wait", connection_id="ws_1")
        await runner.until("task_end")

        async with asyncio.TaskGroup() as tasks, Broker.connect(fleet.redis.url) as broker:
            for front in fronts:
                for steps in front.steps:
                    tasks.create_task(front.watch(steps))
                tasks.create_task(front.come())
                tasks.create_task(front.ask())
            published = 0
            rolling = None
            while rolling is None or not rolling.done():
                await broker.publish(progress(published))
                published += 1
                if rolling is None and all(steps for front in fronts for steps in front.steps):
                    rolling = tasks.create_task(asyncio.to_thread(restart_each, fleet))
                await asyncio.sleep(0.02)
            for front in fronts:
                front.is_over = True
            await broker.publish(progress(-1))

        for front in fronts:
            for steps in front.steps:
                assert steps == [*range(steps[0], published), -1]
            assert set(front.farewells) == {1012}
            assert len(front.farewells) >= len(front.steps)
            assert min(front.newcomers, front.requests) > 20

        assert (await runner.closed())[0] == 1012
        assert types(runner.of(execution)) == HALF
        again = await lives.enter_async_context(shop.client(1))
        await again.resume("ws_1", runner.of(execution)[-1]["event_id"])
        crew.go.set()
        assert (await again.end(execution))["type"] == "execution_completed"
        assert types(runner.of(execution) + again.of(execution)) == WHOLE
        assert crew.begun == [execution]
