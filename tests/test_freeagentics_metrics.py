"""The figures that dashboards show: one elected node tells them each second, and another when it dies."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
import redis.asyncio

from broker import Event
from broker.keyspace import Keyspace

from .freeagentics import QUIET, FreeAgentics, freeagentics, user
from .support import Node, until
from .wire.helpers import producer

pytestmark = pytest.mark.anyio

Message = dict[str, Any]
StartNode = Callable[..., Node]

WORKSPACE = "ws-456"

SYSTEM = {"cpu_usage": float, "memory_usage": float, "active_agents": int, "queue_length": int}
AGENT = {
    "status": str, "inference_rate": float, "avg_response_time": float, "success_rate": float, "current_load": float,
}  # fmt: skip


def assert_shape(update: Message) -> None:
    """The document's "Real-time Metrics", and no position: it is live only."""
    assert update.keys() == {"type", "timestamp", "workspace_id", "data"}
    assert update["data"].keys() == {"system", "agents"}
    for shown, figures in (
        (SYSTEM, update["data"]["system"]),
        *((AGENT, figures) for figures in update["data"]["agents"].values()),
    ):
        assert figures.keys() == shown.keys()
        for name, kind in shown.items():
            assert isinstance(figures[name], (int, float) if kind is float else kind), name


class Watcher:
    """Reads all that a client is sent."""

    def __init__(self, client: FreeAgentics) -> None:
        self.client = client
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for text in self.client.socket:
            self.client.messages.append(json.loads(text))

    def seen(self, kind: str) -> list[Message]:
        return [message for message in self.client.messages if message["type"] == kind]

    @property
    def updates(self) -> list[Message]:
        return self.seen("metrics_update")

    def missed_after(self, moment: str) -> list[Message]:
        return [update for update in self.updates if update["timestamp"] > moment]


def gaps(updates: list[Message]) -> list[float]:
    """Seconds between one update and the next, as the node tells them."""
    moments = [datetime.fromisoformat(update["timestamp"]).timestamp() for update in updates]
    return [later - earlier for earlier, later in pairwise(moments)]


async def test_one_node_of_the_fleet_tells_the_figures_and_another_when_it_dies(start_node: StartNode) -> None:
    """Once a second, to the watchers of all nodes alike; an alert once, and not by the next leader again."""
    thresholds = QUIET | {"alert_memory_percent": 0.1}
    first, second = start_node(**thresholds), start_node(**thresholds)
    async with producer(first) as broker, freeagentics(second) as there:
        async with freeagentics(first) as here:
            wanted = ["metrics", "performance_alert"]
            await here.subscribe(wanted)
            await here.until("metrics_update")  # the first node leads
            await there.subscribe(wanted)
            await broker.publish_many(work(WORKSPACE))
            watchers = [Watcher(here), Watcher(there)]
            await until(lambda: all(watcher.seen("performance_alert") for watcher in watchers), what="the alert")
            before = len(watchers[1].updates)
            await until(lambda: len(watchers[1].updates) == before + 3)
            seen = watchers[1].updates
            since = seen[0]["timestamp"]
            # Messages of one batch reach both; which client reads first is chance.
            await until(lambda: watchers[0].missed_after(since)[: len(seen) - 1] == seen[1:])
            assert all(0.5 < gap < 1.9 for gap in gaps(seen)), gaps(seen)
            first.signal(9)
            await asyncio.wait([watcher.reading for watcher in watchers[:1]])
            assert watchers[0].reading.exception() is not None
        last = seen[-1]["timestamp"]
        watcher = watchers[1]
        died = len(watcher.updates)
        await until(lambda: len(watcher.updates) > died + 1, 12, "the other node leads")
        taken_over = gaps([seen[-1], *watcher.missed_after(last)])
        assert max(taken_over) <= 10
        # It knows what was before it, and goes on alone.
        assert watcher.updates[-1]["data"]["agents"].keys() == {"a", "b"}
        after = len(watcher.updates)
        await until(lambda: len(watcher.updates) == after + 4)
        assert all(0.5 < gap < 1.9 for gap in gaps(watcher.updates[after:])), gaps(watcher.updates[after:])
        alerts = [watcher.seen("performance_alert") for watcher in watchers]
        watcher.reading.cancel()
    for update in watcher.updates:
        assert_shape(update)
    assert alerts[0] == alerts[1]
    [alert] = alerts[1]
    assert_alert(alert)


def work(workspace: str) -> list[Event]:
    """What two agents do: one has ended an inference, the other one says that it waits."""

    def event(kind: str, agent: str, **data: Any) -> Event:
        return Event(type=kind, workspace_id=workspace, agent_id=agent, data=data)

    return [
        event("inference_started", "a", inference_id="1"),
        event("inference_completed", "a", inference_id="1", processing_time=0.25),
        event("agent_status", "a", new_status="active"),
        event("agent_status", "b", old_status="active", new_status="idle"),
    ]


def assert_alert(alert: Message) -> None:
    """The document's "Performance Alert"."""
    data = alert["data"]
    assert data.keys() >= {
        "alert_id", "severity", "type", "message", "affected_components", "current_value", "threshold",
        "recommended_action",
    }  # fmt: skip
    assert (data["type"], data["threshold"]) == ("high_memory_usage", 0.1)
    assert data["severity"] in ("warning", "error")
    assert data["current_value"] >= data["threshold"]
    assert alert["event_id"]


async def test_figures_are_told_while_somebody_watches_and_not_a_moment_longer(start_node: StartNode) -> None:
    """They are those of the workspace's agents. Who subscribes to something else does not count."""
    node = start_node(**QUIET)
    keys = Keyspace(node.prefix)
    async with (
        producer(node) as broker,
        redis.asyncio.from_url(node.redis_url) as plain,
        plain.pubsub() as channel,
        freeagentics(node, user()) as bystander,
        freeagentics(node, user("ws-of-another")) as stranger,
    ):
        await channel.subscribe(keys.channel(WORKSPACE))
        await channel.get_message(timeout=5)
        await bystander.subscribe(["agent_status", "system_alerts"])
        await stranger.subscribe(["metrics"])
        await broker.publish_many(work(WORKSPACE))
        async with freeagentics(node) as watcher:
            await watcher.subscribe(["metrics"])
            agents = (await watcher.until("metrics_update"))["data"]["agents"]
            assert agents["a"]["status"] == "active"
            assert agents["a"]["avg_response_time"] == 0.25
            assert agents["a"]["success_rate"] == 1.0
            assert agents["b"] == {
                "status": "idle", "inference_rate": 0.0, "avg_response_time": 0.0, "success_rate": 1.0,
                "current_load": 0.0,
            }  # fmt: skip
            await watcher.unsubscribe(events=["metrics"])
            await until(lambda: nobody_leads(plain, keys))
            await watcher.subscribe(["metrics"])
            await watcher.until("metrics_update")
        await until(lambda: nobody_leads(plain, keys))
        while await channel.get_message(timeout=0):
            pass
        # For two turns of the node nothing more is published.
        assert await channel.get_message(timeout=2.2) is None
        assert [message["type"] for message in await bystander.synchronise()] == ["agent_status"] * 2
        assert all(message["data"]["agents"] == {} for message in await stranger.synchronise())


async def nobody_leads(plain: "redis.asyncio.Redis", keys: Keyspace) -> bool:
    return not await plain.exists(keys.election(WORKSPACE))
