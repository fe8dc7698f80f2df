"""Vitals: one node tells a workspace's metrics each second, whoever comes, goes and dies; alerts are raised once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from time import monotonic
from typing import Any

import pytest

from broker import Broker, Event, Filter, Unavailable
from broker.election import Election
from broker.events import Carried
from broker.feed import Feed
from broker.lines import Taker
from broker.local import LocalRedis
from broker.watch import watch
from gateway.settings import Settings
from gateway.vitals import Vitals
from gateway.vitals import desk as desk_module

from .proxy import proxy
from .support import private_redis, until

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"
OTHER = "ws-other"
QUIET = {
    "alert_cpu_percent": 0.0,
    "alert_memory_percent": 0.0,
    "alert_queue_length": 0,
    "alert_response_seconds": 0.0,
    "alert_failure_percent": 0.0,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds in one, but for the lease: that is Redis' time."""
    monkeypatch.setattr("gateway.vitals.turns.TURN_SECONDS", 0.1)
    monkeypatch.setattr("gateway.vitals.turns.BEAT_SECONDS", 0.2)
    monkeypatch.setattr("gateway.vitals.turns.IDLE_BEAT_SECONDS", 0.5)
    monkeypatch.setattr("gateway.vitals.alerts.RAISE_SECONDS", 0.3)
    monkeypatch.setattr("gateway.vitals.alerts.CLEAR_SECONDS", 1.0)


in_less_time = pytest.mark.usefixtures("quick")


class Side(Taker):
    """A node as far as vitals go: broker, feed, taps and `Vitals`. Its queue's length tells who published."""

    def __init__(self, broker: Broker, queue: int, **settings: Any) -> None:
        self.broker = broker
        self.queue = queue
        self.feed = Feed(broker.address, broker.keys, broker.log, self)
        self.taps: list[tuple[str, Callable[[list[Carried]], None]]] = []
        self.failures: set[str] = set()  # workspaces whose queue cannot be read
        all_settings = Settings(redis_url=broker.address.url, **(QUIET | settings))
        self.vitals = Vitals(broker, f"node-{queue}", all_settings, tap=self.tap, queue_length=self.queue_length)
        self.tasks: list[asyncio.Task[None]] = []

    def tap(self, workspace: str, take: Callable[[list[Carried]], None]) -> Callable[[], None]:
        entry = (workspace, take)
        self.taps.append(entry)
        self.feed.want([(workspace, None)])

        def end() -> None:
            self.taps.remove(entry)
            self.feed.unwant([(workspace, None)])

        return end

    def on_events(self, events: list[Carried]) -> None:
        for workspace, take in list(self.taps):
            if mine := [event for event in events if event.workspace_id == workspace]:
                take(mine)

    async def queue_length(self, workspace: str) -> int:
        if workspace in self.failures:
            raise RuntimeError("a bug")
        return self.queue

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []


@asynccontextmanager
async def side(url: str, prefix: str, queue: int, **settings: Any) -> AsyncIterator[Side]:
    """A running node."""
    async with Broker.connect(url, prefix=prefix) as broker:
        node = Side(broker, queue, **settings)
        node.tasks = [asyncio.create_task(node.feed.run()), asyncio.create_task(node.vitals.run())]
        try:
            yield node
        finally:
            await node.stop()


class Seen:
    """What a client of one workspace sees, with the moment at which it came."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []

    def of(self, kind: str) -> list[Event]:
        return [event for _, event in self.events if event.type == kind]

    @property
    def queues(self) -> list[int]:
        """Who told the metrics, one after the other."""
        return [event.data["system"]["queue_length"] for event in self.of("metrics_update")]

    @property
    def agents(self) -> dict[str, Any]:
        """The newest figures of the agents."""
        metrics = self.of("metrics_update")
        return metrics[-1].data["agents"] if metrics else {}

    @property
    def alerts(self) -> list[str]:
        return [event.data["type"] for event in self.of("performance_alert")]

    async def more(self, number: int, seconds: float = 10.0) -> list[int]:
        """Wait for so many more metrics; answers who told them."""
        before = len(self.queues)
        await until(lambda: len(self.queues) >= before + number, seconds)
        return self.queues[before:]


@asynccontextmanager
async def seeing(url: str, prefix: str, workspace: str = WORKSPACE) -> AsyncIterator[Seen]:
    seen = Seen()

    async def see(broker: Broker) -> None:
        async for event in watch(broker, Filter(workspaces=frozenset({workspace}))):
            if isinstance(event, Event):
                seen.events.append((monotonic(), event))

    async with Broker.connect(url, prefix=prefix) as broker:
        task = asyncio.create_task(see(broker))
        try:
            await until(lambda: broker.redis.pubsub_numsub(broker.keys.channel(workspace)))
            yield seen
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def two_sides(url: str, prefix: str, **settings: Any) -> AsyncIterator[tuple[Side, Side, Seen]]:
    async with (
        side(url, prefix, 1, **settings) as first,
        side(url, prefix, 2, **settings) as second,
        seeing(url, prefix) as seen,
    ):
        yield first, second, seen


def said(kind: str, agent: str = "agent_123", **data: Any) -> Event:
    return Event(type=kind, workspace_id=WORKSPACE, agent_id=agent, data=data)


async def test_the_metrics_of_what_is_watched_are_told_each_second(redis_url: str, prefix: str) -> None:
    async with side(redis_url, prefix, 23) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        await seen.more(1)
        await node.broker.publish(said("agent_status", new_status="active"))
        await node.broker.publish(said("inference_started", "agent_456", inference_id="i"))
        await node.broker.publish(said("inference_failed", "agent_456", inference_id="i", processing_time=0.5))
        await until(lambda: len(seen.agents) == 2)
        data = seen.of("metrics_update")[-1].data
        assert list(data) == ["system", "agents"]
        assert list(data["system"]) == ["cpu_usage", "memory_usage", "active_agents", "queue_length"]
        assert 0 <= data["system"]["cpu_usage"] <= 100
        assert 0 < data["system"]["memory_usage"] < 100
        assert (data["system"]["active_agents"], data["system"]["queue_length"]) == (1, 23)
        assert data["agents"]["agent_123"]["status"] == "active"
        assert data["agents"]["agent_456"]["success_rate"] == 0.0
        await seen.more(3)
        times = [at for at, event in seen.events if event.type == "metrics_update"]
        assert times[-1] - times[0] == pytest.approx(len(times) - 1, abs=0.5)
        assert all(event.id is None for event in seen.of("metrics_update"))


@in_less_time
async def test_nothing_is_told_of_what_nobody_watches(redis_url: str, prefix: str) -> None:
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        node.vitals.watch([WORKSPACE])
        await seen.more(1)
        node.vitals.unwatch([WORKSPACE])
        await seen.more(2)  # one watcher is left
        node.vitals.unwatch([WORKSPACE])
        assert node.vitals.leads == 0
        await until(lambda: not node.taps)
        told = len(seen.queues)

        async def is_free() -> bool:
            return not await node.broker.redis.exists(node.broker.keys.election(WORKSPACE))

        await until(is_free, 1.0)
        node.vitals.watch([OTHER])
        async with seeing(redis_url, prefix, OTHER) as others:
            await others.more(2)
        assert len(seen.queues) <= told + 1  # one may have been on its way


async def test_every_node_says_how_it_fares_though_nobody_watches(redis_url: str, prefix: str) -> None:
    async with side(redis_url, prefix, 1) as first, side(redis_url, prefix, 2):

        async def beating() -> set[bytes]:
            return set(await first.broker.redis.hkeys(first.broker.keys.nodes))

        async def has_both() -> bool:
            return await beating() == {b"node-1", b"node-2"}

        await until(has_both)
        assert not await first.broker.redis.exists(first.broker.keys.election(WORKSPACE))
        await first.stop()
        assert await beating() == {b"node-2"}


async def test_exactly_one_of_two_nodes_tells(redis_url: str, prefix: str) -> None:
    async with two_sides(redis_url, prefix) as (first, second, seen):
        first.vitals.watch([WORKSPACE])
        second.vitals.watch([WORKSPACE])
        told = await seen.more(5)
        assert len(set(told)) == 1
        times = [at for at, event in seen.events if event.type == "metrics_update"]
        assert times[-1] - times[0] == pytest.approx(len(times) - 1, abs=0.5)
        assert first.vitals.leads + second.vitals.leads == 1


@in_less_time
async def test_a_node_that_leaves_is_followed_at_once_and_the_figures_go_on(redis_url: str, prefix: str) -> None:
    async with two_sides(redis_url, prefix) as (first, second, seen):
        first.vitals.watch([WORKSPACE])
        await seen.more(1)
        await first.broker.publish(said("agent_status", new_status="training"))
        for number in range(10):
            await first.broker.publish(said("inference_started", inference_id=f"i{number}"))
        for number in range(10):
            await first.broker.publish(said("inference_completed", inference_id=f"i{number}", processing_time=2))
        await until(lambda: seen.agents.get("agent_123", {}).get("inference_rate"))
        second.vitals.watch([WORKSPACE])
        await seen.more(2)
        started = monotonic()
        await first.stop()
        await until(lambda: seen.queues[-1] == 2)
        assert monotonic() - started < 3
        figures = seen.agents["agent_123"]
        assert figures["status"] == "training"
        assert figures["avg_response_time"] == 2.0
        assert figures["inference_rate"] > 0.3  # read from the log, with its times
        await second.broker.publish(said("agent_status", new_status="idle"))
        await until(lambda: seen.agents["agent_123"]["status"] == "idle")


async def test_a_leader_cut_off_from_redis_is_followed_within_ten_seconds_and_both_never_tell(
    redis: LocalRedis, redis_url: str, prefix: str
) -> None:
    async with proxy(redis.port) as middle, AsyncExitStack() as stack:
        first = await stack.enter_async_context(side(middle.url, prefix, 1))
        second = await stack.enter_async_context(side(redis_url, prefix, 2))
        seen = await stack.enter_async_context(seeing(redis_url, prefix))
        first.vitals.watch([WORKSPACE])
        await seen.more(2)
        second.vitals.watch([WORKSPACE])
        middle.pause()
        started = monotonic()
        await until(lambda: seen.queues[-1] == 2, 10)
        assert monotonic() - started < 10
        middle.go_on()
        assert await seen.more(4) == [2] * 4
        assert first.vitals.leads == 0


@in_less_time
async def test_a_node_whose_turn_comes_after_its_lease_says_nothing(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        await seen.more(1)
        desk, _ = node.vitals._desks[WORKSPACE]
        renewed = asyncio.Event()

        def renew_too_late(lease_end: float) -> None:
            type(desk).renew(desk, monotonic() - 1)
            renewed.set()

        monkeypatch.setattr(desk, "renew", renew_too_late)
        told = len(seen.queues)
        for _ in range(2):
            renewed.clear()
            await renewed.wait()
        monkeypatch.undo()
        assert len(seen.queues) == told
        await seen.more(2)


@in_less_time
async def test_all_goes_on_after_a_restart_of_redis(prefix: str) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        async with side(redis.url, prefix, 1) as node, seeing(redis.url, prefix) as seen:
            node.vitals.watch([WORKSPACE])
            await node.broker.publish(said("agent_status", new_status="training"))
            await seen.more(2)
            await asyncio.to_thread(redis.stop)
            await until(lambda: node.vitals.leads == 0)
            await until(lambda: not node.taps)
            told = len(seen.queues)
            await asyncio.to_thread(redis.start)
            await until(lambda: len(seen.queues) > told + 2, 20)
            assert seen.agents["agent_123"]["status"] == "training"
            await node.broker.publish(said("agent_status", new_status="idle"))
            await until(lambda: seen.agents["agent_123"]["status"] == "idle")


@in_less_time
async def test_one_workspaces_failure_is_its_own(redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with side(redis_url, prefix, 1) as node, AsyncExitStack() as stack:
        seen = await stack.enter_async_context(seeing(redis_url, prefix))
        others = await stack.enter_async_context(seeing(redis_url, prefix, OTHER))
        node.failures.add(OTHER)
        node.vitals.watch([WORKSPACE, OTHER])
        await seen.more(3)
        assert others.queues == []
        node.failures.clear()
        await others.more(1)
        assert any("a bug" in record.message for record in caplog.records)
        assert not any(OTHER in record.getMessage() for record in caplog.records)


@in_less_time
async def test_a_tap_that_fails_is_tried_again(redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        tap, node.vitals._tap = node.vitals._tap, lambda workspace, take: 1 // 0  # type: ignore[assignment, return-value]
        node.vitals.watch([WORKSPACE])
        await until(lambda: "begin anew" in caplog.text)
        node.vitals._tap = tap
        await seen.more(1)


@in_less_time
async def test_a_bug_in_an_election_or_a_beat_does_not_end_the_node(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        await seen.more(1)
        monkeypatch.setattr("gateway.vitals.turns.measure", lambda: 1 // 0)
        monkeypatch.setattr(node.vitals._election, "lead", lambda names: 1 // 0)
        await until(lambda: "election did not take place" in caplog.text and "load is not told" in caplog.text)
        monkeypatch.undo()
        await seen.more(2)


# -- alerts


@in_less_time
async def test_an_alert_is_raised_once_and_stands_in_the_log(redis_url: str, prefix: str) -> None:
    async with side(redis_url, prefix, 120, alert_queue_length=100) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        for turn in range(20):
            await seen.more(1)
            node.queue = 120 if turn % 2 or turn < 10 else 95  # it dances
        (alert,) = seen.of("performance_alert")
        assert alert.id is not None
        assert alert.data.pop("alert_id").startswith("alert_")
        assert alert.data == {
            "severity": "error",
            "type": "long_queue",
            "message": "More than 100 runs and commands waiting",
            "affected_components": ["task_queue"],
            "current_value": 120,
            "threshold": 100,
            "recommended_action": "Start more agents or workers",
        }


@in_less_time
async def test_a_new_leader_neither_repeats_nor_forgets_an_alert(redis_url: str, prefix: str) -> None:
    settings = {"alert_queue_length": 1, "alert_failure_percent": 50.0}
    async with two_sides(redis_url, prefix, **settings) as (first, second, seen):
        first.vitals.watch([WORKSPACE])
        await until(lambda: second.broker.redis.exists(second.broker.keys.alerts(WORKSPACE)))
        second.vitals.watch([WORKSPACE])
        await first.stop()
        await until(lambda: seen.queues[-1] == 2)
        for number in range(6):
            await second.broker.publish(said("inference_failed", inference_id=f"i{number}"))
        await until(lambda: len(seen.alerts) > 1)
        assert seen.alerts == ["long_queue", "many_failures"]
        election = Election(second.broker.redis, second.broker.keys, "x")

        async def are_handed_down() -> bool:
            return (await election.inherit(WORKSPACE)).raised == {"long_queue", "many_failures"}

        await until(are_handed_down)


@in_less_time
async def test_an_alert_that_could_not_be_published_is_raised_later(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with side(redis_url, prefix, 7, alert_queue_length=5) as node, seeing(redis_url, prefix) as seen:
        publish, lost = node.broker.publish_many, []

        async def lose(events: Any) -> Any:
            if len(events) > 1 and not lost:
                lost.extend(events)
                raise Unavailable("as if")
            return await publish(events)

        monkeypatch.setattr(node.broker, "publish_many", lose)
        node.vitals.watch([WORKSPACE])
        await until(lambda: seen.alerts == ["long_queue"])
        assert lost


# -- catching up


@in_less_time
async def test_events_that_come_while_the_log_is_read_count_once(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        log, page = node.broker.log, node.broker.log.page
        number = 0

        async def publish_one() -> None:
            nonlocal number
            number += 1
            await node.broker.publish(said("inference_completed", inference_id=f"i{number}"))

        async def slow_page(*arguments: Any) -> Any:
            for _ in range(3):
                await publish_one()
            result = await page(*arguments)
            for _ in range(3):
                await publish_one()
            return result

        for _ in range(100):
            await publish_one()
        monkeypatch.setattr(log, "page", slow_page)
        node.vitals.watch([WORKSPACE])
        await seen.more(3)
        monkeypatch.undo()
        await publish_one()
        told = len(seen.queues)
        await until(lambda: len(seen.queues) > told + 1)
        agent = node.vitals._desks[WORKSPACE][0]._meter._agents["agent_123"]
        assert agent.total.ended == number > 100


@in_less_time
async def test_a_hole_in_what_flows_is_filled_from_the_log(redis_url: str, prefix: str) -> None:
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        await seen.more(3)
        taps, node.taps = node.taps, []  # deaf
        await node.broker.publish(said("agent_status", "a", new_status="training"))
        await until(lambda: seen.of("agent_status"))
        await seen.more(2)
        assert seen.agents == {}
        node.taps = taps
        await node.broker.publish(said("agent_status", "b", new_status="training"))
        await until(lambda: len(seen.agents) == 2)


@in_less_time
@pytest.mark.parametrize("seconds", [-1.0, 1.0])
async def test_a_log_too_long_to_read_does_not_keep_a_leader_from_telling(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(desk_module, "HISTORY_SECONDS", seconds)
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        await node.broker.publish_many([said("agent_status", f"a{number}", new_status="x") for number in range(200)])
        node.vitals.watch([WORKSPACE])
        await seen.more(1)
        assert len(seen.agents) == (200 if seconds > 0 else 0)
        await seen.more(2)
        await node.broker.publish(said("agent_status", "b", new_status="y"))
        await until(lambda: "b" in seen.agents)


@in_less_time
async def test_what_is_held_is_bounded(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_HELD_EVENTS", 3)
    async with side(redis_url, prefix, 1) as node, seeing(redis_url, prefix) as seen:
        node.vitals.watch([WORKSPACE])
        await seen.more(1)
        desk, _ = node.vitals._desks[WORKSPACE]
        assert desk._held is not None  # it looks once more
        await node.broker.publish_many([said("agent_status", f"a{number}", new_status="x") for number in range(10)])
        await until(lambda: len(seen.agents) == 10)
