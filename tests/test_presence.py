"""Presence: one `agent.online` however many signs of life, one `agent.offline` when they have ended, by Redis' time."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from broker import Broker, Event, patience, presence
from broker.agents import AgentMissing
from broker.agents.model import Draft
from broker.commands import listener
from broker.presence import Sweeper

from .support import private_redis, until

pytestmark = pytest.mark.anyio

WORKSPACE, AGENT = "ws-456", "agent-123"
OURS = frozenset({WORKSPACE})
RELAYED = ("agent.online", "agent.offline", "agent_deleted")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grace that tests can wait for."""
    monkeypatch.setattr(presence, "GRACE_SECONDS", 0.6)
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(presence, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(listener, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(listener, "BLOCK_MS", 20)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE", 0.05)


@asynccontextmanager
async def connected(url: str, prefix: str, *, sweepers: int = 0) -> AsyncIterator[Broker]:
    """A broker, and so many nodes that look for who has gone."""
    async with Broker.connect(url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        tasks = [asyncio.create_task(_sweeper(broker, f"n{number}").run()) for number in range(sweepers)]
        try:
            yield broker
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _sweeper(broker: Broker, node: str) -> Sweeper:
    return Sweeper(broker.redis, broker.keys, broker.presence, node)


async def told(broker: Broker, agent: str = AGENT) -> list[str]:
    """What was told of an agent in the relay's words: its online events, and its offline ones by their reasons."""
    return [event.data.get("reason", event.type) for event in await _events(broker, agent) if event.type in RELAYED]


async def statuses(broker: Broker, agent: str = AGENT) -> list[dict[str, Any]]:
    """The same in FreeAgentics' words."""
    return [event.data for event in await _events(broker, agent) if event.type == "agent_status"]


async def _events(broker: Broker, agent: str) -> list[Event]:
    page = await broker.log.page(WORKSPACE, "0-0", 1000)
    return [event for event in (carried.event() for carried in page.events) if event.agent_id == agent]


async def lapse(broker: Broker, agent: str = AGENT, workspace: str = WORKSPACE) -> None:
    """As if the last sign of life of an agent were longer ago than the grace."""
    await broker.redis.zadd(broker.keys.presence(workspace), {agent: 1})


async def swept(broker: Broker, *workspaces: str) -> list[int]:
    """Tell who has gone by now."""
    return await broker.presence.sweep(workspaces or [WORKSPACE], await _redis_time(broker))


async def _redis_time(broker: Broker) -> float:
    seconds, microseconds = await broker.redis.time()
    return float(seconds + microseconds / 1e6)


# -- coming and going


async def test_however_many_signs_of_life_there_are_an_agent_comes_once(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as one, connected(redis_url, prefix) as other:
        await asyncio.gather(*(broker.agents.present(AGENT) for broker in (one, other) for _ in range(20)))
        assert await told(one) == ["agent.online"]


async def test_who_gives_no_more_signs_of_life_has_gone_once_however_many_sweep(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        await broker.agents.present(AGENT)
        await lapse(broker)
        await asyncio.gather(*(swept(broker) for _ in range(20)))
        assert await told(broker) == ["agent.online", "Client timed out"]
        assert await swept(broker) == [0]


async def test_the_grace_counts_from_the_last_sign_of_life(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix, sweepers=2) as broker:
        seconds, microseconds = await broker.redis.time()
        await broker.agents.present(AGENT)
        ends = await broker.redis.zscore(broker.keys.presence(WORKSPACE), AGENT)
        assert ends is not None
        assert 600 <= ends - (seconds * 1000 + microseconds // 1000) < 5_600
        await until(lambda: _is_told(broker, 2))
        seconds, microseconds = await broker.redis.time()
        assert seconds * 1000 + microseconds / 1000 >= ends
        assert await told(broker) == ["agent.online", "Client timed out"]


async def _is_told(broker: Broker, number: int, agent: str = AGENT) -> bool:
    return len(await told(broker, agent)) >= number


async def test_a_goodbye_says_why_and_counts_as_a_sign_of_life(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "GRACE_SECONDS", 15.0)
    async with connected(redis_url, prefix) as broker:
        await broker.agents.present(AGENT)
        name = broker.keys.presence(WORKSPACE)
        ends = await broker.redis.zscore(name, AGENT) or 0.0
        await broker.redis.zadd(name, {AGENT: ends - 10_000})
        await broker.presence.leave(WORKSPACE, [AGENT, "agent-never-here"])
        assert (await broker.redis.zscore(name, AGENT) or 0.0) >= ends
        await swept(broker)
        assert await told(broker) == ["agent.online"]
        await lapse(broker)
        await swept(broker)
        assert await told(broker) == ["agent.online", "Client disconnected"]
        assert not await broker.redis.exists(broker.keys.farewells(WORKSPACE))
        assert await told(broker, "agent-never-here") == []


async def test_who_comes_back_within_the_grace_has_never_gone(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as one, connected(redis_url, prefix) as other:
        await one.agents.present(AGENT)
        await one.presence.leave(WORKSPACE, [AGENT])
        await other.agents.present(AGENT)
        await swept(one)
        assert await told(one) == ["agent.online"]
        await lapse(one)  # the goodbye that was taken back is no reason any more
        await swept(one)
        assert await told(one) == ["agent.online", "Client timed out"]


async def test_what_ends_while_somebody_sweeps_is_left_for_the_next_time(redis_url: str, prefix: str) -> None:
    """Who stands still in the midst of it has not seen whether they have given a sign of life."""
    async with connected(redis_url, prefix) as broker:
        began = await _redis_time(broker)
        await broker.agents.present(AGENT)
        await broker.redis.zadd(broker.keys.presence(WORKSPACE), {AGENT: int(began * 1000) + 1})
        await until(lambda: _is_past(broker, began + 0.002))
        assert await broker.presence.sweep([WORKSPACE], began) == [1]
        assert await swept(broker) == [0]
        assert await told(broker) == ["agent.online", "Client timed out"]


async def _is_past(broker: Broker, seconds: float) -> bool:
    return await _redis_time(broker) > seconds


async def test_who_comes_back_before_anybody_was_told_has_never_gone(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        await broker.agents.present(AGENT)
        await lapse(broker)
        await broker.agents.present(AGENT)
        assert await told(broker) == ["agent.online"]
        await lapse(broker)
        await swept(broker)
        await broker.agents.present(AGENT)
        assert await told(broker) == ["agent.online", "Client timed out", "agent.online"]


async def test_clients_of_freeagentics_hear_of_it_as_a_status(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        for _ in range(2):
            await broker.agents.present(AGENT)
        await broker.presence.leave(WORKSPACE, [AGENT])
        await lapse(broker)
        for _ in range(2):
            await swept(broker)
        assert await statuses(broker) == [
            {"old_status": "offline", "new_status": "online", "reason": "Client connected"},
            {"old_status": "online", "new_status": "offline", "reason": "Client disconnected"},
        ]


async def test_an_agent_in_error_stays_so_whether_it_is_here_or_not(redis_url: str, prefix: str) -> None:
    error = Event(type="agent_status", workspace_id=WORKSPACE, agent_id=AGENT, data={"new_status": "error"})
    async with connected(redis_url, prefix) as broker:
        await broker.publish(error)
        await broker.agents.present(AGENT)
        await lapse(broker)
        await swept(broker)
        assert await told(broker) == ["agent.online", "Client timed out"]
        assert await statuses(broker) == [error.data]


async def test_events_of_presence_stand_in_the_chain_of_all_events(redis_url: str, prefix: str) -> None:
    agent = 'a/"ü\\'
    async with connected(redis_url, prefix) as broker:
        await broker.publish(Event(type="task.started", workspace_id=WORKSPACE, agent_id=agent, data={"task_id": "t"}))
        await broker.agents.present(agent)
        await broker.publish(Event(type="task.started", workspace_id=WORKSPACE, agent_id=agent, data={"task_id": "t"}))
        await lapse(broker, agent)
        await swept(broker)
        events = (await broker.log.page(WORKSPACE, "0-0", 10)).events
        assert [event.type for event in events] == [
            "task.started", "agent.online", "agent_status", "task.started", "agent.offline", "agent_status",
        ]  # fmt: skip
        assert {event.agent_id for event in events} == {agent}
        assert [event.prev for event in events[1:]] == [event.id for event in events[:-1]]
        assert [event.agent_prev for event in events[1:]] == [event.id for event in events[:-1]]
        for head in (broker.keys.workspace(WORKSPACE), broker.keys.agent(WORKSPACE, agent)):
            assert (await broker.redis.hget(head, "position") or b"").decode() == events[-1].id


async def test_positions_grow_though_the_log_has_gone_and_the_clock_went_back(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        await broker.redis.hset(broker.keys.workspace(WORKSPACE), "position", "99999999999999-7")
        await broker.agents.present(AGENT)
        events = (await broker.log.page(WORKSPACE, "0-0", 10)).events
        assert [event.id for event in events] == ["99999999999999-8", "99999999999999-9"]


async def test_a_clock_that_goes_back_lets_nobody_stay(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        await broker.agents.present(AGENT)
        name = broker.keys.presence(WORKSPACE)
        await broker.redis.zadd(name, {AGENT: 99_999_999_999_999})
        assert await swept(broker) == [1]
        seconds, _ = await broker.redis.time()
        assert (await broker.redis.zscore(name, AGENT) or 0.0) <= (seconds + 1) * 1000 + 600
        assert await told(broker) == ["agent.online"]


async def test_hundreds_who_go_together_are_all_told(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        agents = [f"agent-{number}" for number in range(250)]
        assert await broker.presence.renew(WORKSPACE, agents) == [True] * 250
        await broker.redis.zadd(broker.keys.presence(WORKSPACE), dict.fromkeys(agents, 1))
        assert await swept(broker, "ws-empty", WORKSPACE) == [0, 0]
        page = await broker.log.page(WORKSPACE, "0-0", 1000)
        assert len([event for event in page.events if event.type == "agent.offline"]) == 250


# -- the sweeper


async def test_a_sweeper_that_dies_has_a_successor(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LEASE_SECONDS", 0.5)
    async with connected(redis_url, prefix, sweepers=1) as broker:
        await broker.redis.set(broker.keys.sweeper, "a node that was killed", px=500)
        await broker.agents.present(AGENT)
        await until(lambda: _is_told(broker, 2))
        assert await broker.redis.get(broker.keys.sweeper) == b"n0"
        await until(lambda: _is_forgotten(broker))
    async with connected(redis_url, prefix) as broker:
        assert not await broker.redis.exists(broker.keys.sweeper), "who leaves lets another one in at once"


async def _is_forgotten(broker: Broker) -> bool:
    return not await broker.redis.exists(broker.keys.workspaces)


async def test_who_lives_through_an_outage_of_redis_has_never_gone(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with private_redis() as redis:
        async with connected(redis.url, prefix, sweepers=2) as broker:
            listening = asyncio.create_task(_listen(broker))
            await until(lambda: _is_told(broker, 1))
            before = await broker.redis.zscore(broker.keys.presence(WORKSPACE), AGENT) or 0.0
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                await until(lambda: "cannot look for agents" in caplog.text, 15)
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            await until(lambda: _is_renewed(broker, before + 2000))
            assert await told(broker) == ["agent.online"]
            listening.cancel()
            await until(lambda: _is_told(broker, 2))
            assert (await told(broker))[1:] == ["Client disconnected"]


async def test_who_lives_has_never_gone_though_redis_stood_still_for_a_moment(prefix: str) -> None:
    """Shorter than anybody waits for Redis, so that no call fails; longer than the grace."""
    with private_redis() as redis:
        async with connected(redis.url, prefix, sweepers=2) as broker:
            await broker.agents.present("agent-gone")
            await until(lambda: _is_told(broker, 2, "agent-gone"), what="they sweep")
            listening = [asyncio.create_task(_listen(broker, f"agent-{number}")) for number in range(3)]
            await until(lambda: _is_told(broker, 1, "agent-2"))
            for _ in range(3):
                before = await broker.redis.zscore(broker.keys.presence(WORKSPACE), "agent-2") or 0.0
                await broker.redis.client_pause(1000)
                await until(partial(_is_renewed, broker, before + 1500, "agent-2"))
            for number in range(3):
                assert await told(broker, f"agent-{number}") == ["agent.online"]
            for task in listening:
                task.cancel()
            await until(lambda: _is_told(broker, 2, "agent-2"))


async def test_a_workspace_that_is_forgotten_while_somebody_comes_is_found_all_the_same(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(redis_url, prefix) as broker:
        each = broker.presence._each

        async def swept_meanwhile(*arguments: Any) -> list[int]:
            await _sweeper(broker, "n0")._sweep(await _redis_time(broker))
            assert await _is_forgotten(broker)
            return await each(*arguments)

        monkeypatch.setattr(broker.presence, "_each", swept_meanwhile)
        await broker.agents.present(AGENT)
        assert await broker.redis.smembers(broker.keys.workspaces) == {WORKSPACE.encode()}


# -- listeners


async def test_who_listens_for_commands_is_present_until_it_leaves(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix, sweepers=2) as one, connected(redis_url, prefix) as other:
        both = [asyncio.create_task(_listen(broker)) for broker in (one, other)]
        await until(lambda: _is_told(one, 1))
        before = await one.redis.zscore(one.keys.presence(WORKSPACE), AGENT) or 0.0
        await until(lambda: _is_renewed(one, before + 600))  # longer than the grace
        both[0].cancel()
        await until(lambda: _is_renewed(one, before + 1300))
        assert await told(one) == ["agent.online"]
        both[1].cancel()
        await until(lambda: _is_told(one, 2))
        assert await told(one) == ["agent.online", "Client disconnected"]


async def _listen(broker: Broker, agent: str = AGENT) -> None:
    async with aclosing(broker.commands(agent)) as commands:
        async for _ in commands:
            pass


async def _is_renewed(broker: Broker, past: float, agent: str = AGENT) -> bool:
    return (await broker.redis.zscore(broker.keys.presence(WORKSPACE), agent) or 0.0) > past


# -- agents of the registry


async def made(broker: Broker) -> str:
    return (await broker.agents.create(WORKSPACE, Draft(name="Alpha", workspace_id=WORKSPACE))).id


async def test_the_registry_knows_who_is_present(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        agent = await made(broker)
        await broker.agents.present(agent)
        assert (await broker.agents.get(OURS, agent)).status == "online"
        assert (await broker.agents.list(OURS, status="online")).total == 1
        await lapse(broker, agent)
        assert (await broker.agents.get(OURS, agent)).status == "offline"
        assert (await broker.agents.list(OURS, status="online")).total == 0


@pytest.mark.parametrize("purge", [False, True])
async def test_a_deleted_agent_has_gone_and_makes_no_key_any_more(redis_url: str, prefix: str, *, purge: bool) -> None:
    async with connected(redis_url, prefix) as broker:
        agent = await made(broker)
        await broker.agents.present(agent)
        await broker.presence.leave(WORKSPACE, [agent])
        await broker.agents.delete(OURS, agent, purge=purge)
        left = ["Agent deleted", "user_request"]
        assert (await told(broker, agent))[-2:] == (left if not purge else left[1:])
        before = {name: await broker.redis.dump(name) for name in await broker.redis.keys(f"{prefix}:*")}
        with pytest.raises(AgentMissing):
            await broker.agents.present(agent)
        async with asyncio.timeout(5), aclosing(broker.commands(agent)) as commands:
            assert [command async for command in commands] == []
        await broker.presence.leave(WORKSPACE, [agent])
        await swept(broker)
        after = {name: await broker.redis.dump(name) for name in await broker.redis.keys(f"{prefix}:*")}
        assert after == before


async def test_who_listens_for_an_agent_that_is_deleted_hears_its_end(redis_url: str, prefix: str) -> None:
    async with connected(redis_url, prefix) as broker:
        agent = await made(broker)
        listening = asyncio.create_task(_until_the_end(broker, agent))
        await until(lambda: broker.redis.exists(broker.keys.listening(WORKSPACE, agent)))
        await broker.agents.delete(OURS, agent, purge=True)
        async with asyncio.timeout(5):
            await listening
        assert await told(broker, agent) == ["user_request"]


async def _until_the_end(broker: Broker, agent: str) -> None:
    async with aclosing(broker.commands(agent)) as commands:
        async for _ in commands:
            pass
