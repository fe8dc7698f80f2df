"""Publishing: once, in order, whatever is lost, restarted or killed on the way."""

import asyncio
from importlib import resources
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from broker import Broker, Event, Invalid, Unavailable
from broker.events import pack
from broker.keyspace import Keyspace
from broker.local import LocalRedis
from broker.positions import is_after, order
from broker.producer import MAX_CALL_EVENTS

from .proxy import proxy
from .support import private_redis, until

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"
SCRIPT = resources.files("broker").joinpath("scripts/publish.lua").read_text()


def progress(step: int, agent: str = "agent-123", **more: Any) -> Event:
    return Event(
        type="task.progress", workspace_id=WORKSPACE, agent_id=agent, data={"task_id": "task-456", "step": step} | more
    )


async def logged(broker: Broker) -> list[Event]:
    """All that stands in the workspace's log."""
    events: list[Event] = []
    end, is_last = "0-0", False
    while not is_last:
        page, end, is_last, _ = await broker.log.page(WORKSPACE, end)
        events += [event.event() for event in page]
    return events


async def steps(broker: Broker) -> list[int]:
    return [event.data["step"] for event in await logged(broker)]


async def test_an_event_gets_a_position_and_stands_in_the_log_as_it_was_said(redis_url: str, prefix: str) -> None:
    event = progress(3, output="Processing 1000 rows...", extra={"kept": [1, None]})
    event.timestamp = "2026-03-27T10:30:45Z"
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        position = await broker.publish(event)
        event.id = position
        assert await logged(broker) == [event]


async def test_positions_of_a_workspace_only_grow(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        positions = await broker.publish_many([progress(step) for step in range(250)])
        assert None not in positions
        assert sorted(positions, key=order) == positions  # type: ignore[arg-type]
        assert len(set(positions)) == 250


async def test_an_ephemeral_event_has_no_position_and_is_not_logged(redis_url: str, prefix: str) -> None:
    metrics = Event(type="metrics_update", workspace_id=WORKSPACE, data={"system": {"cpu_usage": 1.5}})
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        marked = progress(2)
        marked.ephemeral = True
        positions = await broker.publish_many([progress(1), marked, metrics, progress(3)])
        assert [position is None for position in positions] == [False, True, True, False]
        assert await steps(broker) == [1, 3]


async def test_events_published_at_the_same_time_share_calls_and_keep_their_order(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        before = (await broker.redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
        await asyncio.gather(*(broker.publish(progress(step)) for step in range(5 * MAX_CALL_EVENTS)))
        after = (await broker.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert await steps(broker) == list(range(5 * MAX_CALL_EVENTS))
        assert after - before <= 8


async def test_an_invalid_event_names_its_field_and_nothing_of_its_call_happens(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        with pytest.raises(Invalid, match=r"^\$\.data\.step: expected int"):
            await broker.publish(progress("three"))  # type: ignore[arg-type]
        with pytest.raises(Invalid, match=r"^\[1\]\.data\.step: expected int"):
            await broker.publish_many([progress(1), progress("two")])  # type: ignore[arg-type]
        assert await logged(broker) == []


async def test_a_lost_answer_is_asked_for_again_and_nothing_is_doubled(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        await broker.publish(progress(0))
        for step in range(1, 21):
            middle.lose_answers(step % 3)
            await broker.publish(progress(step))
        assert middle.lost >= 10
        middle.lose_answers(0)
        assert await steps(broker) == list(range(21))


async def test_a_restarted_redis_that_has_forgotten_the_script_is_told_it_again(prefix: str) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker:
            await broker.publish_many([progress(step) for step in range(10)])
            publishing = [asyncio.create_task(broker.publish(progress(step))) for step in range(10, 20)]
            await asyncio.to_thread(redis.stop)
            publishing += [asyncio.create_task(broker.publish(progress(step))) for step in range(20, 30)]
            await asyncio.to_thread(redis.start)
            await asyncio.gather(*publishing)
            assert await steps(broker) == list(range(30))


async def test_a_redis_that_forgot_the_producer_meets_it_under_a_new_id(prefix: str) -> None:
    with private_redis() as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker:
            await broker.publish_many([progress(step) for step in range(10)])
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            await broker.publish_many([progress(step) for step in range(10, 20)])
            assert await steps(broker) == list(range(10, 20))


async def test_unavailable_leaves_a_publish_in_doubt_and_calling_again_is_safe(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix, patience_seconds=0.4) as broker:
        await broker.publish(progress(0))
        middle.lose_answers(10_000)
        with pytest.raises(Unavailable):
            await broker.publish(progress(1))
        with pytest.raises(Unavailable):
            await broker.publish_many([progress(step) for step in range(2, 300)])
        middle.lose_answers(0)
        # Equal events, made anew: what a retrying caller does.
        again = [await broker.publish(progress(1)), *await broker.publish_many([progress(s) for s in range(2, 300)])]
        assert await steps(broker) == list(range(300))
        assert [event.id for event in await logged(broker)][1:] == again


async def test_a_retry_after_a_part_was_applied_gets_the_old_positions_for_that_part(
    redis: LocalRedis, prefix: str
) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix, patience_seconds=0.3) as broker:
        events = [progress(step) for step in range(50 * MAX_CALL_EVENTS)]

        async def fail_soon() -> None:
            async with Broker.connect(redis.url) as beside:
                await until(lambda: beside.redis.keys(f"{prefix}:log:*"))
            middle.pause()

        failing = asyncio.create_task(fail_soon())
        with pytest.raises(Unavailable):
            await broker.publish_many(events)
        await failing
        middle.go_on()
        positions = await broker.publish_many(events)
        assert await steps(broker) == list(range(len(events)))
        assert [event.id for event in await logged(broker)] == positions


async def test_equal_events_are_different_events_when_nothing_failed(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        positions = {await broker.publish(progress(1)) for _ in range(3)}
        assert len(positions) == 3


async def test_a_cancelled_publish_may_be_retried(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        await broker.publish(progress(0))
        middle.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await broker.publish(progress(1))
        middle.go_on()
        await broker.publish(progress(1))
        assert await steps(broker) == [0, 1]


async def test_killed_connections_lose_double_and_reorder_nothing(redis: LocalRedis, prefix: str) -> None:
    async with Broker.connect(redis.url, prefix=prefix) as broker:
        killer = Redis.from_url(redis.url, decode_responses=True)
        done = asyncio.Event()

        async def kill() -> None:
            while not done.is_set():
                for client in await killer.client_list():
                    if client["name"] == "trunkline":
                        await killer.client_kill_filter(_id=client["id"])
                await asyncio.sleep(0.01)

        killing = asyncio.create_task(kill())
        for first in range(0, 10_000, 500):
            await broker.publish_many([progress(step) for step in range(first, first + 500)])
        done.set()
        await killing
        await killer.aclose()
        assert await steps(broker) == list(range(10_000))


# -- publish.lua, branch by branch


async def call(broker: Broker, number: int, *events: Event, producer: str = "p1", command: str = "PUBLISH") -> Any:
    """One call of the script as its header says, by hand."""
    keys: Keyspace = broker.keys
    packed = [pack(event) for event in events]
    agents = list(dict.fromkeys(one.agent for one in packed))
    names = [keys.log(WORKSPACE), keys.workspace(WORKSPACE), keys.producer(WORKSPACE, producer)]
    names += [keys.agent(WORKSPACE, agent) for agent in agents]
    arguments: list[Any] = [number, 1000, 3600, 60, 600, command, keys.channel(WORKSPACE), len(agents)]
    arguments += [keys.channel(WORKSPACE, agent) for agent in agents]
    for one in packed:
        arguments += [agents.index(one.agent) + 1, one.kind, one.stamp + one.rest]
    return await broker.redis.eval(SCRIPT, len(names), *names, *arguments)


async def test_the_next_number_is_applied_the_same_number_is_answered_again(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        hidden = progress(2)
        hidden.ephemeral = True
        first = await call(broker, 1, progress(1), hidden, progress(3))
        assert first[1] == b""
        assert await call(broker, 1, progress(1), hidden, progress(3)) == first
        assert len(await logged(broker)) == 2


@pytest.mark.parametrize("number", [0, 1, 4])
async def test_any_other_number_is_out_of_order(redis_url: str, prefix: str, number: int) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        await call(broker, 1, progress(1))
        await call(broker, 2, progress(2))
        with pytest.raises(ResponseError, match="OUT_OF_ORDER 2"):
            await call(broker, number, progress(9))
        assert await steps(broker) == [1, 2]


async def test_a_message_names_the_positions_before_it(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        a, b, c = await call(broker, 1, progress(1, "a"), progress(2, "b"), progress(3, "a"))
        page = await broker.log.page(WORKSPACE, "0-0")
        assert [(event.prev, event.agent_prev) for event in page.events] == [
            ("0-0", "0-0"),
            (a.decode(), "0-0"),
            (b.decode(), a.decode()),
        ]
        assert page.end == c.decode()


async def test_activity_and_credits_of_an_agent_are_counted_once(redis_url: str, prefix: str) -> None:
    def completed(used: int) -> Event:
        data = {"task_id": "t", "credits_used": used}
        return Event(type="task.completed", workspace_id=WORKSPACE, agent_id="agent-123", data=data)

    async with Broker.connect(redis_url, prefix=prefix) as broker:
        for _ in range(3):
            positions = await call(broker, 1, completed(40), completed(2))
        agent = await broker.redis.hgetall(broker.keys.agent(WORKSPACE, "agent-123"))
        assert agent[b"credits_used"] == b"42"
        assert agent[b"position"] == positions[1]
        assert int(agent[b"last_activity"]) > 0


async def test_the_log_is_bounded_by_count_and_age(prefix: str, redis_url: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix, log_events=10, log_seconds=3600) as broker:
        await broker.publish_many([progress(step) for step in range(25)])
        assert await steps(broker) == list(range(15, 25))
    async with Broker.connect(redis_url, prefix=prefix, log_seconds=1) as broker:
        await asyncio.sleep(1.1)
        await broker.publish(progress(99))
        assert await steps(broker) == [99]
        assert 0 < await broker.redis.ttl(broker.keys.log(WORKSPACE)) <= 1


async def test_positions_grow_though_the_log_expired_and_the_clock_went_back(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        await broker.publish(progress(1))
        future = "99999999999999-7"
        await broker.redis.delete(broker.keys.log(WORKSPACE))
        await broker.redis.hset(broker.keys.workspace(WORKSPACE), "position", future)
        first, second = await broker.publish_many([progress(2), progress(3)])
        assert first == "99999999999999-8"
        assert second is not None
        assert is_after(second, first)


async def test_every_key_has_a_lifetime(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        await broker.publish_many(
            [progress(1), Event(type="entity_created", workspace_id=WORKSPACE, data={"entity_id": "e"})]
        )
        keys = await broker.redis.keys(f"{prefix}:*")
        assert len(keys) == 5
        assert all([await broker.redis.ttl(key) > 0 for key in keys])


async def test_an_unreachable_redis_is_unavailable_and_its_password_stays_unsaid() -> None:
    with pytest.raises(Unavailable) as failure:
        async with Broker.connect("redis://user:hunter2@127.0.0.1:1/0"):
            pass
    assert "hunter2" not in str(failure.value)
    assert "127.0.0.1:1" in str(failure.value)
