"""What is left of agents that were deleted, and of their neighbours: in Redis, in the log and at a node's feed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from broker import Broker, Event, Unavailable
from broker import follower as feed_module
from broker.agents import AgentMissing, purge
from broker.agents.model import Draft, Patch
from broker.commands.exchange import pack_command
from broker.credentials import Credentials, Outcome
from broker.events import Carried, pack
from broker.local import LocalRedis
from broker.positions import START
from broker.producer import Fence
from broker.script import Script

from .proxy import proxy
from .support import Node, maxicore, until
from .test_feed import progress, running

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"
OURS = frozenset({WORKSPACE})


async def made(broker: Broker, name: str = "Alpha") -> str:
    return (await broker.agents.create(WORKSPACE, Draft(name=name, workspace_id=WORKSPACE))).id


async def logged(broker: Broker) -> list[Carried]:
    """All that stands in the workspace's log."""
    events: list[Carried] = []
    end, is_last = START, False
    while not is_last:
        page, end, is_last, _ = await broker.log.page(WORKSPACE, end)
        events += page
    return events


async def publish(broker: Broker, pattern: str, **agents: str) -> list[str]:
    """An event for each letter of `pattern`, of the agent with that name; their positions."""
    positions = await broker.publish_many([progress(n, agents[letter]) for n, letter in enumerate(pattern)])
    return [position or "" for position in positions]


async def dumped(broker: Broker, prefix: str) -> dict[bytes, bytes]:
    return {name: await broker.redis.dump(name) for name in await broker.redis.keys(f"{prefix}:*")}


def is_whole(events: list[Carried]) -> bool:
    """Whether each event follows the one before it."""
    return [event.prev for event in events[1:]] == [event.id for event in events[:-1]]


async def live_with(broker: Broker, agent: str, execution: str) -> str:
    """Give an agent everything that there is of one; answers an API key of its own."""
    redis, keys = broker.redis, broker.keys
    await broker.publish_many([progress(step, agent) for step in range(3)])
    await redis.set(keys.listening(WORKSPACE, agent), "listener")
    body = {"key": f"key-{agent}", "node": "n1", "request_id": "r", "name": "stop", "parameters": {}, "sender": "u"}
    command = b'{"deadline":9000000000000,' + pack_command(**body)  # type: ignore[arg-type]
    await redis.xadd(keys.commands(WORKSPACE, agent), {"c": command})
    await redis.xadd(keys.commands(WORKSPACE, agent), {"c": "broken"})
    await redis.zadd(keys.waiting(WORKSPACE), {f"key-{agent}": 9e12})
    await redis.xadd(keys.runs(WORKSPACE, agent), {"x": execution})
    for run, state in ((execution, "running"), (f"{execution}-old", "completed")):
        await redis.hset(keys.run(WORKSPACE, run), mapping={"endpoint": agent, "state": state})
        await redis.set(keys.end(WORKSPACE, run), "1-0 …")
    await redis.zadd(keys.queued(WORKSPACE), {execution: 9e12})
    for name in (keys.held, keys.served):
        await redis.zadd(name(WORKSPACE, agent), {execution: 9e12})
    await redis.set(keys.returned(WORKSPACE, agent), 1)
    await redis.xadd(keys.cancels(WORKSPACE, agent), {"x": execution})
    await redis.zadd(keys.connection(WORKSPACE, agent, "ws_*[1]"), {execution: 1})
    return (await Credentials(redis, keys).create(agent, WORKSPACE)).key


async def test_purge_leaves_no_key_of_the_agent_and_every_key_of_its_neighbours(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        neighbour = await made(broker, "Neighbour")
        kept_key = await live_with(broker, neighbour, "exec_n")
        # An execution or a publisher may be called as an agent is; a workspace may begin as another does.
        agent = await made(broker)
        await broker.redis.hset(broker.keys.run(WORKSPACE, agent), mapping={"endpoint": neighbour})
        await broker.redis.hset(broker.keys.run(f"{WORKSPACE}0", "exec"), mapping={"endpoint": agent})
        before = await dumped(broker, prefix)
        key = await live_with(broker, agent, "exec_a")
        await broker.agents.delete(OURS, agent, purge=True)

        after = await dumped(broker, prefix)
        keys = broker.keys
        shared = (keys.log(WORKSPACE), keys.workspace(WORKSPACE), keys.agents(WORKSPACE), keys.offline(WORKSPACE))
        shared += (keys.producer(WORKSPACE, ""),)
        gone = (keys.agent(WORKSPACE, agent), keys.pairing(""))
        for name, value in before.items():
            if not name.decode().startswith(gone + shared):
                assert after.get(name) == value, name
        new = {name.decode().removeprefix(f"{prefix}:") for name in after.keys() - before.keys()}
        assert new == {"deleted:{ws-456}", "revocations:{keys}"}
        named = {name.decode().removeprefix(f"{prefix}:") for name in after if agent.encode() in name}
        assert named == {f"run:{{ws-456}}:{agent}"}
        credentials = Credentials(broker.redis, broker.keys)
        assert (await credentials.check(agent, key)).outcome is Outcome.ENDPOINT_UNKNOWN
        assert (await credentials.check(neighbour, kept_key)).outcome is Outcome.OPENS


class Killed(BaseException):
    """As a process that ends: nothing it would have done is done."""


async def test_a_purge_that_is_killed_anywhere_is_finished_by_another(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_calls = 0

    def dies_of(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def died(*given: Any, **options: Any) -> Any:
            nonlocal left_calls
            left_calls -= 1
            if left_calls < 0:
                raise Killed
            return await call(*given, **options)

        return died

    async with Broker.connect(redis_url, prefix=prefix) as broker:
        is_through, calls = False, 0
        while not is_through:
            agent = await made(broker)
            await live_with(broker, agent, "exec")
            left_calls = calls
            with monkeypatch.context() as patch, contextlib.suppress(Killed):
                patch.setattr(Redis, "execute_command", dies_of(Redis.execute_command))
                patch.setattr(Pipeline, "execute", dies_of(Pipeline.execute))
                await broker.agents.delete(OURS, agent, purge=True)
                is_through = True
            if not is_through:
                await broker.agents.delete(OURS, agent, purge=True)
            names = {name.decode().removeprefix(f"{prefix}:") for name in await broker.redis.keys(f"{prefix}:*")}
            assert {name for name in names if not name.startswith("producer:")} == {
                "log:{ws-456}", "workspace:{ws-456}", "deleted:{ws-456}", "revocations:{keys}",
            }, f"killed after {calls} calls"  # fmt: skip
            calls += 1
        assert calls > 20


async def test_several_who_purge_the_same_endpoint_leave_nothing_of_it(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        for _ in range(4):
            await live_with(broker, agent, "exec")
        await broker.agents.delete(OURS, agent)
        deletes = [broker.agents.delete(OURS, agent, purge=True) for _ in range(5)]
        for outcome in await asyncio.gather(*deletes, return_exceptions=True):
            assert outcome is None or isinstance(outcome, AgentMissing)
        assert await broker.redis.keys(f"{prefix}:key*") == []


async def test_an_endpoint_of_another_workspace_that_is_called_alike_stays(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent, credentials = await made(broker), Credentials(broker.redis, broker.keys)
        key = (await credentials.create(agent, "ws-other")).key
        await broker.redis.xadd(broker.keys.runs(WORKSPACE, agent), {"x": "exec"})
        await broker.agents.delete(OURS, agent, purge=True)
        assert (await credentials.check(agent, key)).outcome is Outcome.OPENS
        assert not await broker.redis.exists(broker.keys.runs(WORKSPACE, agent))


async def test_purged_events_leave_the_log_and_the_rest_stays_a_chain(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stretch in (1, 2, 3, 200):
        monkeypatch.setattr(purge, "STRETCH_ENTRIES", stretch)
        workspace_prefix = f"{prefix}{stretch}"
        async with Broker.connect(redis_url, prefix=workspace_prefix) as broker:
            agent = await made(broker)
            positions = await publish(broker, "aabbabaaabb", a=agent, b="b")
            lives = await broker.redis.pttl(broker.keys.log(WORKSPACE))
            await broker.agents.delete(OURS, agent, purge=True)
            events = await logged(broker)
            kept = [position for position, letter in zip(positions, "aabbabaaabb", strict=True) if letter == "b"]
            assert [event.id for event in events[:-1]] == kept
            assert (events[-1].type, events[-1].agent_id) == ("agent_deleted", agent)
            assert events[0].prev == START
            assert is_whole(events)
            assert abs(await broker.redis.pttl(broker.keys.log(WORKSPACE)) - lives) < 5000
            await publish(broker, "bb", b="b")
            assert is_whole(await logged(broker))


async def test_a_position_of_a_purged_event_is_a_gap_and_any_other_is_none(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        first, second, third = await publish(broker, "bab", a=agent, b="b")
        await broker.agents.delete(OURS, agent, purge=True)
        valid = {since: (await broker.log.bounds(WORKSPACE, since)).is_valid for since in (START, first, second, third)}
        assert valid == {START: True, first: True, second: False, third: True}


async def test_an_event_that_only_speaks_of_the_agent_stays(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        about = {"task_id": agent, "output": f'"agent_id":"{agent}"', "more": {"agent_id": agent}}
        await broker.publish(Event(type="task.progress", workspace_id=WORKSPACE, agent_id="b", data=about))
        # As others may write it, who call publish.lua themselves; and what is no event at all.
        log = broker.keys.log(WORKSPACE)
        own = b'"prev":"0-0","type":"task.progress","data":{"task_id":"t","agent_id":"%s"}}' % agent.encode()
        await broker.redis.xadd(log, {"e": own})
        await broker.redis.xadd(log, {"x": f'"{agent}" {{'})
        await broker.agents.delete(OURS, agent, purge=True)
        entries = await broker.redis.xrange(log)
        assert [next(iter(fields)) for _, fields in entries] == [b"e", b"x", b"e"]
        assert b"agent_deleted" in entries[-1][1][b"e"]


async def stretch(broker: Broker, agent: str, stays: str, rest: list[bytes]) -> list[bytes]:
    """One call of purge.lua for two entries, as its header says."""
    keys = broker.keys
    names = [keys.log(WORKSPACE), keys.purging(WORKSPACE, agent), keys.workspace(WORKSPACE)]
    return list(await Script(broker.redis, "purge").run(names, [agent, stays, 2, 60, *rest]))


async def test_large_events_are_purged_a_few_at_a_time(redis_url: str, prefix: str) -> None:
    """Redis would stand still for half a second for two hundred of them."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        large = {"task_id": "t", "output": "x" * 200_000}
        for name in (agent, "b") * 15:
            await broker.publish(Event(type="task.progress", workspace_id=WORKSPACE, agent_id=name, data=large))
        keys = broker.keys
        names = [keys.log(WORKSPACE), keys.purging(WORKSPACE, agent), keys.workspace(WORKSPACE)]
        rest, calls = await Script(broker.redis, "purge").run(names, [agent, "", 200, 60]), 1
        assert await broker.redis.xlen(names[1]) <= 10
        while rest:
            rest, calls = await Script(broker.redis, "purge").run(names, [agent, "", 200, 60, *rest]), calls + 1
        assert calls == 4
        events = await logged(broker)
        assert [event.agent_id for event in events] == ["b"] * 15
        assert is_whole(events)


async def test_a_log_that_is_cut_while_it_is_purged_stays_cut(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix, log_events=20) as broker:
        agent = await made(broker)
        await publish(broker, "ab" * 9, a=agent, b="b")
        await broker.agents.delete(OURS, agent)
        stays = (await logged(broker))[-1].id or ""
        rest = await stretch(broker, agent, stays, [])
        await publish(broker, "b" * 15, b="b")
        while rest:
            rest = await stretch(broker, agent, stays, rest)
        events = await logged(broker)
        # Two of its events, the ones that stay behind it, and the new ones.
        assert [event.agent_id for event in events] == ["b"] * 2 + [agent] + ["b"] * 15
        assert is_whole(events)


async def test_a_purge_begins_anew_where_its_copy_cannot_go_on(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await publish(broker, "bababb", a=agent, b="b")
        first = await stretch(broker, agent, "", [])
        second = await stretch(broker, agent, "", first)
        assert await stretch(broker, agent, "", first) == [b""], "the stretch was copied, its answer lost"
        assert await stretch(broker, agent, "", []) == first, "the first one came again, late"
        assert await stretch(broker, agent, "", second) == [b""], "what was copied between is not there"
        assert await stretch(broker, agent, "", [b"1", *first[1:]]) == [b""], "another purge was done"
        await broker.redis.delete(broker.keys.purging(WORKSPACE, agent))
        assert await stretch(broker, agent, "", first) == [b""], "the copy has expired"


async def test_a_log_of_nothing_but_purged_events_is_none(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await publish(broker, "aaa", a=agent)
        rest = await stretch(broker, agent, "", [])
        while rest:
            rest = await stretch(broker, agent, "", rest)
        assert not await broker.redis.exists(broker.keys.log(WORKSPACE))


async def test_two_who_purge_the_same_agent_purge_it_and_nothing_else(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "STRETCH_ENTRIES", 3)
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await publish(broker, "ab" * 20, a=agent, b="b")
        await broker.agents.delete(OURS, agent)
        deletes = [broker.agents.delete(OURS, agent, purge=True) for _ in range(4)]
        await asyncio.gather(*deletes, return_exceptions=True)
        events = await logged(broker)
        assert [event.agent_id for event in events] == ["b"] * 20 + [agent]
        assert is_whole(events)


async def test_purges_and_publishers_at_the_same_time_lose_nothing_of_anybody_else(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "STRETCH_ENTRIES", 7)
    async with Broker.connect(redis_url, prefix=prefix) as broker, Broker.connect(redis_url, prefix=prefix) as other:
        gone = [await made(broker, f"a{number}") for number in range(4)]
        stays = await made(broker, "stays")
        letters = dict(zip("abcds", [*gone, stays], strict=True))
        expected = [
            p
            for p, letter in zip(await publish(broker, "sabcd" * 40, **letters), "sabcd" * 40, strict=True)
            if letter == "s"
        ]

        async def go_on() -> None:
            for _ in range(20):
                expected.extend(await publish(other, "ss", s=stays))

        deletes = [
            one.agents.delete(OURS, agent, purge=True) for one, agent in zip((broker, other) * 2, gone, strict=True)
        ]
        await asyncio.gather(go_on(), *deletes)
        events = await logged(broker)
        assert [event.id for event in events if event.type == "task.progress"] == expected
        assert {event.agent_id for event in events if event.type == "agent_deleted"} == set(gone)
        assert is_whole(events)
        assert await broker.redis.keys(f"{prefix}:purging:*") == []


async def test_lost_answers_purge_nothing_else(redis: LocalRedis, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "STRETCH_ENTRIES", 5)
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        for lost in range(1, 13):
            agent = await made(broker)
            await publish(broker, "ab" * 8, a=agent, b="b")
            call = asyncio.create_task(broker.agents.delete(OURS, agent, purge=True))
            for _ in range(lost):
                await asyncio.sleep(0)
            middle.lose_answers(1 + lost % 3)
            await call
            middle.lose_answers(0)
        events = await logged(broker)
        assert len([event for event in events if event.agent_id == "b"]) == 12 * 8
        assert len([event for event in events if event.agent_id != "b"]) == 12
        assert is_whole(events)


async def test_a_purge_that_was_cut_short_or_comes_late_is_finished_by_another(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        agent = await made(broker)
        await publish(broker, "ab", a=agent, b="b")
        await broker.agents.delete(OURS, agent)
        assert [event.agent_id for event in await logged(broker)] == [agent, agent, "b", agent]
        with pytest.raises(AgentMissing):
            await broker.agents.delete(OURS, agent)
        middle.pause()
        with pytest.raises(Unavailable):
            await broker.agents.delete(OURS, agent, purge=True)
        middle.go_on()
        await broker.agents.delete(OURS, agent, purge=True)
        assert [event.agent_id for event in await logged(broker)] == ["b", agent]
        with pytest.raises(AgentMissing):
            await broker.agents.delete(OURS, agent, purge=True)


async def test_the_log_of_a_workspace_may_be_gone_when_it_is_purged(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await broker.agents.delete(OURS, agent)
        await broker.redis.delete(broker.keys.log(WORKSPACE))
        await broker.agents.delete(OURS, agent, purge=True)
        assert await logged(broker) == []


# -- late events


@pytest.mark.parametrize("is_purged", [False, True])
async def test_late_events_of_a_deleted_agent_are_live_only_and_make_no_key(
    redis_url: str, prefix: str, is_purged: bool
) -> None:
    def late(agent: str) -> list[Event]:
        used = {"task_id": "t", "credits_used": 5}
        failed = {"new_status": "error"}
        return [
            progress(1, agent),
            Event(type="task.completed", workspace_id=WORKSPACE, agent_id=agent, data=used),
            Event(type="agent_status", workspace_id=WORKSPACE, agent_id=agent, data=failed),
            Event(type="agent_status", workspace_id=WORKSPACE, agent_id=agent, data=failed, ephemeral=True),
        ]

    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        agent = await made(broker)
        await broker.publish(progress(0, agent))
        await broker.agents.delete(OURS, agent, purge=is_purged)
        name = broker.keys.agent(WORKSPACE, agent)
        before, log = await broker.redis.hgetall(name), await logged(broker)
        positions = await broker.publish_many([*late(agent), progress(2, "b")])
        assert [position is None for position in positions] == [True] * 4 + [False]
        assert await broker.redis.hgetall(name) == before
        assert before.keys() == (set() if is_purged else {b"position", b"deleted"})
        assert not await broker.redis.exists(broker.keys.errors(WORKSPACE))
        assert len(await logged(broker)) == len(log) + 1
        await until(lambda: len(taken.events) == 8)
        assert [event.type for event in taken.events[3:]] == [event.type for event in late(agent)] + ["task.progress"]
        assert taken.gaps == []


async def test_a_run_of_a_deleted_agent_ends_all_the_same(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await broker.agents.delete(OURS, agent)
        run, held = broker.keys.run(WORKSPACE, "exec_1"), broker.keys.held(WORKSPACE, agent)
        end = broker.keys.end(WORKSPACE, "exec_1")
        await broker.redis.hset(run, mapping={"holder": "h", "state": "running"})
        ended = Event(
            type="execution_completed", workspace_id=WORKSPACE, agent_id=agent, data={"execution_id": "exec_1"}
        )
        promise = broker.producer.send(pack(ended), Fence(run, held, end, "h", "exec_1", "completed"))
        await until(promise.done)
        assert promise.result() is None
        assert await broker.redis.hgetall(run) == {b"state": b"completed"}
        assert not await broker.redis.exists(end)


async def test_a_deleted_agent_is_never_present_again(redis_url: str, prefix: str) -> None:
    """Its token may live for years; of the agent itself nothing is kept after 7 days but that it was deleted."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await broker.agents.delete(OURS, agent)
        assert 0 < await broker.redis.ttl(broker.keys.agent(WORKSPACE, agent)) <= 7 * 24 * 3600
        assert await broker.redis.ttl(broker.keys.deleted(WORKSPACE)) == -1
        await broker.redis.delete(broker.keys.agent(WORKSPACE, agent))
        with pytest.raises(AgentMissing):
            await broker.agents.present(agent, workspace_id=WORKSPACE)


async def test_positions_grow_though_the_log_expired_and_the_clock_went_back(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        await broker.redis.delete(broker.keys.log(WORKSPACE))
        await broker.redis.hset(broker.keys.workspace(WORKSPACE), "position", "99999999999999-7")
        await broker.agents.update(OURS, agent, Patch(name="Beta"))
        assert [event.id for event in await logged(broker)] == ["99999999999999-8"]


# -- a node's feed


@pytest.mark.parametrize("wanted", [None, "b"], ids=["workspace", "neighbour"])
async def test_a_feed_tells_of_no_loss_when_others_are_purged_while_it_watches(
    redis_url: str, prefix: str, wanted: str | None
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, wanted)) as (_, taken):
        agent = await made(broker)
        await publish(broker, "abab", a=agent, b="b")
        await broker.agents.delete(OURS, agent, purge=True)
        await publish(broker, "bb", b="b")
        await until(lambda: len(taken.steps("b")) == 4)
        assert taken.gaps == []


@pytest.mark.parametrize("wanted", [None, "b"], ids=["workspace", "neighbour"])
async def test_a_feed_tells_of_no_loss_when_others_were_purged_while_it_was_away(
    redis: LocalRedis, prefix: str, wanted: str | None
) -> None:
    async with (
        proxy(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as broker,
        Broker.connect(middle.url, prefix=prefix) as away,
        running(away, (WORKSPACE, wanted)) as (feed, taken),
    ):
        agent = await made(broker)
        await publish(broker, "abab", a=agent, b="b")
        await until(lambda: len(taken.steps("b")) == 2)
        middle.pause()
        middle.cut()
        await until(lambda: not feed.is_connected)
        await publish(broker, "aabab", a=agent, b="b")
        await broker.agents.delete(OURS, agent, purge=True)
        await publish(broker, "b", b="b")
        middle.go_on()
        await until(lambda: len(taken.steps("b")) == 5)
        assert taken.gaps == []
        if wanted is None:
            assert taken.events[-2].type == "agent_deleted"


@pytest.mark.parametrize("seen", ["ab", "aba", "abaa"])
async def test_a_feed_that_stands_at_a_purged_event_tells_of_no_loss_either(
    redis: LocalRedis, prefix: str, seen: str
) -> None:
    async with (
        proxy(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as broker,
        Broker.connect(middle.url, prefix=prefix) as away,
        running(away, (WORKSPACE, None)) as (feed, taken),
    ):
        agent = await made(broker)
        await publish(broker, seen, a=agent, b="b")
        await until(lambda: len(taken.events) == 1 + len(seen))
        middle.pause()
        middle.cut()
        await until(lambda: not feed.is_connected)
        await publish(broker, "aabab", a=agent, b="b")
        await broker.agents.delete(OURS, agent, purge=True)
        await publish(broker, "b", b="b")
        middle.go_on()
        await until(lambda: len(taken.steps("b")) == 4)
        assert taken.gaps == []


async def test_a_feed_of_a_purged_agent_tells_of_no_loss_that_there_was_not(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "CHECK_SECONDS", 0.05)
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        async with running(broker, (WORKSPACE, agent)) as (feed, taken):
            await publish(broker, "abab", a=agent, b="b")
            await broker.agents.delete(OURS, agent, purge=True)
            await until(lambda: feed.position(WORKSPACE, {agent}) == START, what="its head is looked at again")
            assert [event.type for event in taken.events] == ["task.progress"] * 2 + ["agent_deleted"]
            assert taken.gaps == []


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_feed_that_was_away_when_its_agent_was_purged_hears_of_that_and_of_the_loss(
    redis: LocalRedis, prefix: str, is_cut: bool
) -> None:
    async with (
        proxy(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as broker,
        Broker.connect(middle.url, prefix=prefix) as away,
    ):
        agent = await made(broker)
        async with running(away, (WORKSPACE, agent)) as (feed, taken):
            positions = await publish(broker, "aa", a=agent)
            await until(lambda: len(taken.events) == 2)
            middle.pause()
            middle.cut()
            await until(lambda: not feed.is_connected)
            await publish(broker, "aba", a=agent, b="b")
            await broker.agents.delete(OURS, agent, purge=True)
            if is_cut:  # also what said that it was deleted
                await publish(broker, "b", b="b")
                await broker.redis.xtrim(broker.keys.log(WORKSPACE), maxlen=1, approximate=False)
            middle.go_on()
            await until(lambda: taken.gaps)
            assert [(gap.since, gap.is_reset) for gap in taken.gaps] == [(positions[-1], False)]
            await until(lambda: feed.position(WORKSPACE, {agent}) == START)
            assert [event.type for event in taken.events[2:]] == ([] if is_cut else ["agent_deleted"])


# -- a node's clients


async def test_clients_that_come_back_while_others_are_purged_miss_nothing(
    start_node: Callable[..., Node], redis_url: str, prefix: str
) -> None:
    node = start_node()

    async def resume(since: str) -> tuple[list[str], list[str]]:
        """The positions of what a client is sent of `b` after `since`, until its task is done; and since when gaps."""
        async with maxicore(node) as client:
            await client.subscribe(since=since, agent_id="b")
            while (await client.receive())["type"] != "task.completed":
                pass
            gaps = [message["since"] for message in client.messages if message["type"] == "resume.gap"]
            return [m["event_id"] for m in client.messages if m["type"] == "task.progress"], gaps

    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent = await made(broker)
        positions = await publish(broker, "baa" * 400, a=agent, b="b")
        theirs = positions[::3]
        starts = theirs[:200:20]
        clients = [asyncio.create_task(resume(since)) for since in starts]
        purging = asyncio.create_task(broker.agents.delete(OURS, agent, purge=True))
        for _ in range(20):
            theirs += await publish(broker, "bb", b="b")
        await purging
        late = asyncio.create_task(resume(positions[1]))
        await until(lambda: node.metric("trunkline_resumes_total") >= len(starts) + 1)
        await broker.publish(Event(type="task.completed", workspace_id=WORKSPACE, agent_id="b", data={"task_id": "t"}))
        for since, client in zip(starts, clients, strict=True):
            assert await client == (theirs[theirs.index(since) + 1 :], [])
        assert await late == ([], [positions[1]])
