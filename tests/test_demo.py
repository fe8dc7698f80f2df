"""The demo agents obey: what a user asks of them is seen as events a moment later."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from broker import Broker, Event, address, presence
from broker.catalog import CATALOG
from broker.commands import Reply, commander, listener
from broker.commands.commander import Commander
from broker.keyspace import Keyspace
from broker.positions import START
from gateway import demo
from gateway.demo import AGENTS, WORKSPACE

from .support import until

pytestmark = pytest.mark.anyio

AGENT = AGENTS[1]


class Stage:
    """The demo, playing, and a user who commands its agents."""

    def __init__(self, broker: Broker, commander: Commander, replies: list[Reply]) -> None:
        self.broker, self.commander, self.replies = broker, commander, replies

    async def ask(self, name: str, /, **parameters: Any) -> Reply:
        key = await self.commander.send(
            WORKSPACE, AGENT, name, parameters, request_id="req-1", sender="user-1", seconds=20
        )
        found: list[Reply] = await until(lambda: [reply for reply in self.replies if reply.key == key])
        return found[0]

    async def told(self, *kinds: str) -> list[Event]:
        """What the agent said so far."""
        carried, end, is_last = [], START, False
        while not is_last:
            events, end, is_last, _ = await self.broker.log.page(WORKSPACE, end)
            carried += events
        return [one.event() for one in carried if one.agent_id == AGENT and (not kinds or one.type in kinds)]

    async def statuses(self) -> list[tuple[str, str, str]]:
        said = [event.data for event in await self.told("agent_status")]
        return [(data["old_status"], data["new_status"], data["reason"]) for data in said if "_by_" in data["reason"]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "BLOCK_MS", 50)
    monkeypatch.setattr(commander, "BLOCK_MS", 50)
    monkeypatch.setattr(demo, "_pause", lambda _longest=1.0: 0.01)


@contextlib.asynccontextmanager
async def playing(url: str, prefix: str) -> AsyncIterator[Stage]:
    where, replies = address.read(url), []
    async with Broker.connect(url, prefix=prefix) as broker:
        commander = Commander(broker.redis, where, Keyspace(prefix), "n1", replies.append)
        tasks = [asyncio.create_task(demo.perform(broker)), asyncio.create_task(commander.run())]
        try:
            await until(lambda: broker.redis.exists(broker.keys.listening(WORKSPACE, AGENT)))
            yield Stage(broker, commander, replies)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_stop_silences_an_agent_until_start_or_restart(redis_url: str, prefix: str) -> None:
    async with playing(redis_url, prefix) as stage:
        for way in ("start", "restart"):
            assert (await stage.ask("stop", graceful=True)).outcome == "done"
            told = await stage.told()
            assert told[-1].data | {"old_status": ""} == {
                "old_status": "", "new_status": "stopped", "reason": "stopped_by_user",
            }  # fmt: skip
            # Others go on; it does not.
            end = (await stage.broker.log.heads(WORKSPACE, [None]))[None]
            await until(lambda end=end: _has_grown(stage, end))
            assert await stage.told() == told
            assert (await stage.ask(way)).outcome == "done"
            await until(lambda told=told: _says_more(stage, len(told) + 3))
        said = await stage.statuses()
        assert said[1:2] + said[3:] == [
            ("stopped", "active", "started_by_user"),
            ("stopped", "restarting", "restarted_by_user"),
            ("restarting", "active", "restarted_by_user"),
        ]


async def _has_grown(stage: Stage, end: str) -> bool:
    return len((await stage.broker.log.page(WORKSPACE, end, 100)).events) > 50


async def _says_more(stage: Stage, number: int) -> bool:
    return len(await stage.told()) >= number


async def test_its_status_is_told_to_who_asks_and_to_nobody_else(redis_url: str, prefix: str) -> None:
    async with playing(redis_url, prefix) as stage:
        await stage.ask("stop")
        before = await stage.told()
        reply = await stage.ask("get_status")
        assert reply.result == {"old_status": "stopped", "new_status": "stopped", "reason": "requested"}
        assert await stage.told() == before


async def test_a_new_configuration_is_told_whatever_its_keys_are(redis_url: str, prefix: str) -> None:
    async with playing(redis_url, prefix) as stage:
        config = {"model": "large-1", "type": "x", "workspace_id": "ws-other", "agent_id": 5, "name": None}
        assert (await stage.ask("update_config", **config)).outcome == "done"
        (updated,) = await stage.told("agent_updated")
        assert (updated.workspace_id, updated.agent_id, updated.data) == (WORKSPACE, AGENT, {"config": config})


async def test_agents_that_come_and_go_are_told_of_by_presence_and_silent_while_they_are_away(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RESTLESS", (AGENT,))
    monkeypatch.setattr(demo, "STAY_SECONDS", (0.5, 1.0))
    monkeypatch.setattr(demo, "AWAY_SECONDS", (1.0, 1.5))
    monkeypatch.setattr(presence, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(presence, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(listener, "BEAT_SECONDS", 0.1)
    async with playing(redis_url, prefix) as stage:
        broker = stage.broker
        sweeping = asyncio.create_task(presence.Sweeper(broker.redis, broker.keys, broker.presence, "n1").run())

        async def is_back() -> bool:
            return len(await stage.told("agent.online")) >= 2

        await until(is_back, 30)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        kinds = [event.type for event in await stage.told()]
        assert kinds[kinds.index("agent.offline") :][:3] == ["agent.offline", "agent_status", "agent.online"]


async def test_the_demo_worker_and_its_client_make_every_event_type_of_workflows(redis_url: str, prefix: str) -> None:
    expected = {name for name, kind in CATALOG.items() if kind.dialect == "agnt5"}
    seen: set[str] = set()
    end = START

    async def look(stage: Stage) -> bool:
        nonlocal end
        page, end, _, _ = await stage.broker.log.page(WORKSPACE, end, 1000)
        seen.update(event.type for event in page if event.agent_id == demo.ENDPOINT)
        return seen == expected

    async with playing(redis_url, prefix) as stage:
        await until(lambda: look(stage), 30)


async def test_an_agent_is_made_changed_and_deleted_again(redis_url: str, prefix: str) -> None:
    async with playing(redis_url, prefix) as stage:

        async def life() -> list[str]:
            page = await stage.broker.log.page(WORKSPACE, START, 1000)
            (made, *_) = [event for event in page.events if event.type == "agent_created"] or [None]
            return [event.type for event in page.events if made is not None and event.agent_id == made.agent_id]

        assert await until(lambda: _whole(life())) == [
            "agent_created",
            "agent_updated",
            "agent_updated",
            "agent_deleted",
        ]


async def _whole(life: Awaitable[list[str]]) -> list[str] | None:
    kinds = await life
    told = [kind for kind in kinds if kind.startswith("agent_") and kind != "agent_status"]
    return told if len(told) == 4 else None
