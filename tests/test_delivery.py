"""Delivery over a fleet: every client gets what its filters say, once and in order, whatever is killed meanwhile."""

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from broker import Broker, Event

from .lean import LeanClient
from .support import Node, maxicore, private_redis, token, until

pytestmark = pytest.mark.anyio

StartNode = Callable[..., Node]

WORKSPACES = ("ws-1", "ws-2")
AGENTS = [f"agent-{number}" for number in range(50)]


def event(number: int, producer: int) -> Event:
    """The events of the large run: every agent of every workspace, several types, tasks that belong to agents."""
    agent = number * 7 % 50
    task = {"task_id": f"task-{number % 20}"}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("task.started", task | {"description": "Process data file"}),
        ("task.progress", task | {"step": number, "total_steps": producer, "output": "x" * 64}),
        ("task.completed", task | {"result": {"success": True}, "credits_used": 1}),
        ("agent.online", {}),
        ("task.failed", task | {"error": {"code": "E", "message": "m"}}),
    ]
    kind, data = kinds[number % 5]
    return Event(type=kind, workspace_id=WORKSPACES[number % 3 % 2], agent_id=AGENTS[agent], data=data)


def model(asked: list[dict[str, Any]], published: dict[str, Event]) -> dict[str, list[str]]:
    """What a client with these subscriptions must get: positions in order, per workspace. Knows nothing of our code."""
    expected: dict[str, list[str]] = {}
    for position in sorted(published, key=lambda one: [int(part) for part in one.split("-")]):
        said = published[position]
        for filters in asked:
            values = {
                "workspace_id": said.workspace_id,
                "agent_id": said.agent_id,
                "task_id": said.data.get("task_id"),
                "event_types": said.type,
            }
            if all(
                values[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in filters.items()
            ):
                expected.setdefault(said.workspace_id, []).append(position)
                break
    return expected


FILTERS: list[list[dict[str, Any]]] = [
    [{}],
    [{"workspace_id": "ws-1"}],
    [{"workspace_id": "ws-2", "event_types": ["task.completed", "task.failed"]}],
    [{"agent_id": "agent-3"}],
    [{"agent_id": ["agent-1", "agent-2", "agent-48"], "workspace_id": ["ws-1"]}],
    [{"task_id": "task-7"}],
    [{"agent_id": "agent-21"}, {"task_id": ["task-0", "task-1"]}, {"event_types": "agent.online"}],
    [{"agent_id": "agent-7", "task_id": "task-1", "event_types": "task.progress"}, {"agent_id": "agent-8"}],
    [{"agent_id": "nobody"}],
    [{"agent_id": "agent-4", "workspace_id": "ws-2"}, {"agent_id": "agent-4", "workspace_id": "ws-1"}],
]


async def test_a_hundred_thousand_events_reach_every_client_exactly_as_its_filters_say(
    prefix: str, start_node: StartNode
) -> None:
    each = 50_000
    with private_redis() as redis:
        settings = {"redis_url": redis.url, "log_events": 200_000, "max_backlog_bytes": 256 * 1024 * 1024, "fast": 1}
        nodes = [start_node(**settings), start_node(**settings)]
        both = token(*WORKSPACES)
        clients = []
        for number, asked in enumerate(FILTERS * 2):
            client = await LeanClient.connect(nodes[number % 2 ^ number // 10], both, "envelope=flat")
            for filters in asked:
                client.subscribe(**filters)
            await client.synchronise()
            clients.append((asked, client))
        # By position and workspace: positions of two workspaces may be equal.
        published: dict[tuple[str, str], Event] = {}

        async def produce(producer: int) -> None:
            async with Broker.connect(redis.url, prefix=prefix, log_events=200_000) as broker:
                for first in range(0, each, 500):
                    events = [event(number, producer) for number in range(first, first + 500)]
                    for position, said in zip(await broker.publish_many(events), events, strict=True):
                        assert position is not None
                        assert published.setdefault((said.workspace_id, position), said) is said
                    await asyncio.sleep(0.01)

        kills = {"trunkline-feed": 0, "trunkline": 0, "trunkline-node-reads": 0}
        over = asyncio.Event()

        async def kill() -> None:
            client: Any = Redis.from_url(redis.url, decode_responses=True)
            while not over.is_set():
                await asyncio.sleep(0.25)
                for one in await client.client_list():
                    if one["name"] in kills:
                        kills[one["name"]] += await client.client_kill_filter(_id=one["id"])
            await client.aclose()

        killing = asyncio.create_task(kill())
        await asyncio.gather(produce(0), produce(1))
        over.set()
        await killing
        assert len(published) == 2 * each
        assert min(kills["trunkline-feed"], kills["trunkline"]) >= 4

        positions: dict[str, dict[str, Event]] = {name: {} for name in WORKSPACES}
        for (name, position), said in published.items():
            positions[name][position] = said
        for asked, client in clients:
            expected = {}
            for name in WORKSPACES:
                expected |= model(asked, positions[name])
            total = sum(map(len, expected.values()))
            await until(lambda c=client, t=total: len(c.payloads) >= t + 1 or c.code, 60, f"{total} events")
            await client.synchronise()
            got: dict[str, list[str]] = {}
            for message in client.events():
                got.setdefault(message["workspace_id"], []).append(message["event_id"])
            assert got == expected, asked
            assert client.code is None
            client.close()
        assert sum(node.metric("trunkline_gaps_total", outcome="said") for node in nodes) == 0
        assert all(node.metric("trunkline_feed_reconnects_total") >= 4 for node in nodes)


def progress(step: int, agent: str = "agent-1", **more: Any) -> Event:
    return Event(
        type="task.progress", workspace_id="ws-456", agent_id=agent, data={"task_id": "t", "step": step} | more
    )


async def test_a_client_comes_back_to_another_node_and_gets_what_it_missed_once(
    redis_url: str, prefix: str, start_node: StartNode
) -> None:
    nodes = [start_node(), start_node()]
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        over = False

        async def publish() -> int:
            step = 0
            while not over:
                await broker.publish_many([progress(step + more, f"agent-{more % 2}") for more in range(10)])
                step += 10
                await asyncio.sleep(0.001)
            return step

        publishing = asyncio.create_task(publish())
        seen: list[int] = []
        since = None
        for visit in range(12):
            client = await LeanClient.connect(nodes[visit % 2])
            client.subscribe(since=since, agent_id="agent-1")
            await client.synchronise()
            count = len(client.payloads)
            await until(lambda c=client, n=count: len(c.payloads) > n + 50)
            client.close()
            await client.lost
            events = client.events()
            assert all(message["type"] == "task.progress" for message in events)
            seen += [message["step"] for message in events]
            since = events[-1]["event_id"]
            await asyncio.sleep(random.uniform(0, 0.1))
        over = True
        total = await publishing
        assert seen == [step for step in range(seen[0], total) if step % 2][: len(seen)]


async def test_many_who_resume_at_once_share_one_walk_and_each_gets_everything(
    redis_url: str, prefix: str, start_node: StartNode
) -> None:
    node = start_node(fast=1)
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        positions = await broker.publish_many([progress(step, f"agent-{step % 4}") for step in range(4000)])
        before = (await broker.redis.info("commandstats")).get("cmdstat_xrange", {"calls": 0})["calls"]
        clients = await asyncio.gather(*(LeanClient.connect(node, query="envelope=flat") for _ in range(100)))
        for number, client in enumerate(clients):
            client.subscribe(since=positions[number], agent_id=f"agent-{number % 4}")
        for number, client in enumerate(clients):
            await client.synchronise()
            wanted = [step for step in range(number + 1, 4000) if step % 4 == number % 4]
            assert [message["step"] for message in client.events()] == wanted
            client.close()
        after = (await broker.redis.info("commandstats"))["cmdstat_xrange"]["calls"]
        # Two reads each to see that its position is valid; the walks are shared.
        assert after - before <= 2 * 100 + 100


async def test_a_position_that_left_the_log_is_answered_by_a_gap_and_then_live(
    redis_url: str, prefix: str, node: Node
) -> None:
    async with Broker.connect(redis_url, prefix=prefix, log_events=10) as broker, maxicore(node) as client:
        positions = await broker.publish_many([progress(step) for step in range(30)])
        await client.subscribe(since=positions[5])
        said = await client.receive()
        assert (said["type"], said["since"], said["oldest"]) == ("resume.gap", positions[5], positions[20])
        await client.synchronise()
        await broker.publish(progress(30))
        assert (await client.receive())["step"] == 30


async def test_a_node_that_is_told_to_go_says_farewell_spread_over_its_window(
    redis_url: str, prefix: str, start_node: StartNode
) -> None:
    node = start_node(drain_seconds=3, drain_wait_seconds=0.5, fast=1)
    clients = await asyncio.gather(*(LeanClient.connect(node) for _ in range(500)))
    assert node.metric("trunkline_connections", dialect="maxicore") == 500
    told = time.monotonic()
    node.signal(15)
    await until(lambda: is_refused(node), 3, "a newcomer is refused")
    await asyncio.wait([client.lost for client in clients], timeout=15)
    assert await asyncio.to_thread(node.wait) == 0
    assert {client.code for client in clients} == {1012}
    times = sorted(client.closed_at - told for client in clients)
    assert times[0] >= 0.5
    assert times[-1] <= 0.5 + 3 + 1
    # Spread: no half second has more than twice its share.
    for start in range(8):
        assert sum(start / 2 <= at - 0.5 < start / 2 + 0.5 for at in times) <= 2 * 500 / 6


async def is_refused(node: Node) -> bool:
    """True when a newcomer hears 503."""
    client = await LeanClient.connect(node)
    client.close()
    return client.status == 503


async def test_who_stops_reading_is_closed_and_a_thousand_others_notice_nothing(
    redis_url: str, prefix: str, start_node: StartNode
) -> None:
    node = start_node(max_backlog_bytes=256 * 1024, fast=1)
    others = await asyncio.gather(*(LeanClient.connect(node, query="envelope=flat", timed=True) for _ in range(1000)))
    slow = await LeanClient.connect(node)
    for client in (*others, slow):
        client.subscribe(agent_id="agent-1")
    slow.subscribe(agent_id="agent-flood")
    await asyncio.gather(*(client.synchronise() for client in (*others, slow)))

    async def lags(events: int) -> list[float]:
        """Publish at a steady rate; how long each event took to each of the others."""
        sent = []
        counts = [len(client.payloads) for client in others]
        for step in range(events):
            sent.append(time.time())
            await broker.publish(progress(step, output="x" * 2000))
            await asyncio.sleep(0.05)
        await until(lambda: all(len(c.payloads) >= n + events for c, n in zip(others, counts, strict=True)), 30)
        return [
            arrived - at
            for client, count in zip(others, counts, strict=True)
            for arrived, at in zip(client.times[count : count + events], sent, strict=True)  # type: ignore[index]
        ]

    async with Broker.connect(redis_url, prefix=prefix) as broker:
        calm = await lags(20)
        slow.pause()
        flooding = asyncio.create_task(lags(60))
        # More than the kernel takes for a client that does not read, so that our own bound is reached.
        for _ in range(40):
            await broker.publish_many([progress(0, "agent-flood", output="x" * 60_000) for _ in range(5)])
            await asyncio.sleep(0.02)
        await until(lambda: node.metric("trunkline_slow_consumers_total", dialect="maxicore") == 1)
        slow.resume()
        await asyncio.wait_for(slow.lost, 10)
        flooded = await flooding
    assert slow.code == 1013
    assert len(flooded) == 60_000
    assert statistics.quantiles(flooded, n=100)[98] <= 3 * statistics.quantiles(calm, n=100)[98] + 0.05
    for client in others:
        client.close()
