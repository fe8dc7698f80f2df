"""The feed: what Redis published is handed on once and in order, whatever happens to the connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest
from redis.asyncio import Redis

from broker import Broker, Event, Filter, Invalid, address
from broker import feed as feeds
from broker import follower as followers
from broker.errors import Unavailable
from broker.events import Carried
from broker.feed import Feed
from broker.lines import Gap, Taker, Want
from broker.local import LocalRedis, find_redis_server
from broker.resp import NOBODY, Refusal, connect
from broker.watch import watch

from .proxy import proxy
from .support import private_redis, until
from .topologies import Server, redis_server_7

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"


class Taken(Taker):
    """Everything a feed handed on."""

    def __init__(self) -> None:
        self.events: list[Carried] = []
        self.gaps: list[Gap] = []
        self.gaps_behind: list[int] = []  # so many events
        self.rejected: list[Invalid] = []
        self.batches: list[int] = []
        self.healed = 0
        self.connections: list[bool] = []

    def on_events(self, events: list[Carried]) -> None:
        self.events += events
        self.batches.append(len(events))

    def on_gap(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self.gaps_behind.append(len(self.events))

    def on_rejected(self, error: Invalid) -> None:
        self.rejected.append(error)

    def on_healed(self, events: int) -> None:
        self.healed += events

    def on_connection(self, *, is_up: bool) -> None:
        self.connections.append(is_up)

    def steps(self, agent: str | None = None) -> list[int]:
        return [event.event().data["step"] for event in self.events if agent in (None, event.agent_id)]


def progress(step: int, agent: str | None = "agent-1", workspace: str = WORKSPACE) -> Event:
    return Event(type="task.progress", workspace_id=workspace, agent_id=agent, data={"task_id": "t", "step": step})


@contextlib.asynccontextmanager
async def running(broker: Broker, *wants: Want) -> AsyncIterator[tuple[Feed, Taken]]:
    """A feed that has joined `wants`."""
    taken = Taken()
    feed = Feed(broker.address, broker.keys, broker.log, taken)
    task = asyncio.create_task(feed.run())
    try:
        await join(feed, *wants)
        yield feed, taken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def join(feed: Feed, *wants: Want) -> None:
    async with asyncio.timeout(5):
        joined = feed.want(wants)
        if joined is not None:
            await joined


async def say(broker: Broker, channel: str, message: bytes) -> None:
    """As any Redis client can."""
    await broker.redis.execute_command(broker.keys.publish, channel, message)


async def kill_feed(broker: Broker) -> None:
    """Cut the subscription as Redis does to a client it is tired of."""
    for client in await broker.redis.client_list():
        if client["name"] == "trunkline-feed":
            await broker.redis.client_kill_filter(_id=client["id"])


async def test_events_of_a_workspace_arrive_in_order_with_their_positions(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (feed, taken):
        positions = await broker.publish_many([progress(step, f"agent-{step % 3}") for step in range(300)])
        await until(lambda: len(taken.events) == 300)
        assert [event.id for event in taken.events] == positions
        assert feed.position(WORKSPACE, None) == positions[-1]
        assert max(taken.batches) > 1


async def test_agents_alone_are_followed_when_nobody_wants_the_workspace(redis_url: str, prefix: str) -> None:
    wants = [(WORKSPACE, "agent-1"), (WORKSPACE, "agent-2"), (WORKSPACE, "")]
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, *wants) as (feed, taken):
        assert feed.channels == 3
        events = [progress(step, [None, "agent-1", "agent-2", "agent-3"][step % 4]) for step in range(100)]
        positions = await broker.publish_many(events)
        await until(lambda: len(taken.events) == 75)
        assert taken.steps() == [step for step in range(100) if step % 4 != 3]
        assert feed.position(WORKSPACE, ["agent-1"]) == positions[97]
        assert feed.position(WORKSPACE, ["agent-1", "agent-2"]) == positions[98]
        # With a hole somewhere, who knows what came between the one's last event and the other's.
        feed._healer.hold(feed._workspaces[WORKSPACE])
        assert feed.position(WORKSPACE, ["agent-1", "agent-2"]) is None
        assert feed.position(WORKSPACE, ["agent-1"]) == positions[97]


async def test_a_redis_that_still_loads_its_data_mixes_up_no_answers(prefix: str) -> None:
    """It lets subscribe, and refuses most else: that of a PING may not be taken for a refused SUBSCRIBE."""
    with private_redis(appendonly="yes", key_load_delay=200) as redis:  # µs; it listens between thousands of them
        async with (
            Broker.connect(redis.url, prefix=prefix) as broker,
            running(broker, (WORKSPACE, None)) as (feed, taken),
        ):
            await broker.publish(progress(0))
            await until(lambda: taken.steps() == [0])
            async with broker.redis.pipeline(transaction=False) as pipe:
                for number in range(5000):
                    pipe.set(f"{prefix}:other:{number}", "")
                await pipe.execute()
            await asyncio.to_thread(redis.stop)
            starting = asyncio.create_task(asyncio.to_thread(redis.start))
            is_loading = False
            while not starting.done():
                refused, times, pongs = await subscribed(broker)
                is_loading |= any(isinstance(pong, hiredis.ReplyError) for pong in pongs)
                assert refused == []
                assert not any(isinstance(time, hiredis.ReplyError) for time in times)
            await starting
            assert is_loading
            position = await broker.publish(progress(1))
            await until(lambda: taken.steps() == [0, 1])
            assert feed.position(WORKSPACE, None) == position


async def subscribed(broker: Broker) -> tuple[list[object], list[object], list[object]]:
    """What is answered to SUBSCRIBE (only when it is refused), TIME and PING over a new connection."""
    refused: list[object] = []
    times: list[object] = []
    pongs: list[object] = []
    with contextlib.suppress(Unavailable, OSError):
        connection, _ = await connect(broker.address, NOBODY, "test")
        answers = [Refusal(refused.append), times.append, pongs.append]
        connection.ask(("SUBSCRIBE", "a"), ("TIME",), ("PING",), answers=answers)
        await connection.call(("TIME",))
        connection.close("seen")
    return refused, times, pongs


async def test_going_from_agents_to_the_workspace_and_back_loses_and_doubles_nothing(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LINGER_SECONDS", 0.05)
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        running(broker, (WORKSPACE, "agent-1")) as (feed, taken),
    ):
        done = False

        async def publish() -> int:
            step = 0
            while not done:
                await broker.publish_many([progress(step + more) for more in range(20)])
                step += 20
                await asyncio.sleep(0)
            return step

        publishing = asyncio.create_task(publish())
        for _ in range(20):
            await join(feed, (WORKSPACE, None))
            await asyncio.sleep(0.02)
            feed.unwant([(WORKSPACE, None)])
            await asyncio.sleep(0.02)
        done = True
        total = await publishing
        await until(lambda: len(taken.events) >= total)
        assert taken.steps() == list(range(total))


async def test_a_killed_connection_is_healed_from_the_log(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        running(broker, (WORKSPACE, None), ("ws-2", "agent-1"), ("ws-2", "agent-2")) as (_, taken),
    ):
        for first in range(0, 2000, 100):
            events = [progress(first + more) for more in range(100)]
            events += [progress(first + more, f"agent-{more % 3}", "ws-2") for more in range(100)]
            await broker.publish_many(events)
            if first % 300 == 0:
                await kill_feed(broker)
        await until(lambda: len(taken.events) >= 2000 + 1320, 15)
        mine = [event for event in taken.events if event.workspace_id == WORKSPACE]
        others = [event.event().data["step"] for event in taken.events if event.workspace_id == "ws-2"]
        assert [event.event().data["step"] for event in mine] == list(range(2000))
        assert others == [first + more for first in range(0, 2000, 100) for more in range(100) if more % 3]
        assert taken.gaps == []
        assert taken.connections.count(False) >= 5
        assert taken.healed > 0


async def test_what_the_log_has_lost_meanwhile_is_told_as_a_gap(redis: LocalRedis, prefix: str) -> None:
    async with (
        proxy(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix, log_events=50) as publisher,
        Broker.connect(middle.url, prefix=prefix) as broker,
        running(broker, (WORKSPACE, None), ("ws-2", "agent-1"), ("ws-2", "agent-2"), ("ws-2", "agent-3")) as (_, taken),
    ):
        seen = await publisher.publish_many([progress(step) for step in range(10)])
        others = [progress(0, f"agent-{number}", "ws-2") for number in (1, 2, 3)]
        before = await publisher.publish_many(others)
        await until(lambda: len(taken.events) == 13)
        middle.pause()
        await publisher.publish_many([progress(step) for step in range(10, 200)])
        lines = [progress(step, f"agent-{1 + (step > 20)}", "ws-2") for step in range(1, 200)]
        await publisher.publish_many(lines)
        middle.cut()
        middle.go_on()
        await until(lambda: len(taken.events) == 13 + 50 + 50)
        mine, theirs = ([event for event in taken.events if event.workspace_id == name] for name in (WORKSPACE, "ws-2"))
        assert [gap for gap in taken.gaps if gap.workspace == WORKSPACE] == [
            Gap(WORKSPACE, None, seen[-1], mine[10].id)
        ]
        assert [event.event().data["step"] for event in mine] == [*range(10), *range(150, 200)]
        # Of one agent nothing is left, and of one a part. Both is told before any of it; a third one missed nothing.
        gaps = {gap.agents: (gap, behind) for gap, behind in zip(taken.gaps, taken.gaps_behind, strict=True)}
        for agent, since in zip(("agent-1", "agent-2"), before, strict=False):
            gap, behind = gaps[frozenset((agent,))]
            assert gap == Gap("ws-2", frozenset((agent,)), str(since), theirs[3].id)
            assert theirs[3] not in taken.events[:behind]
        assert len(taken.gaps) == 3


async def test_a_redis_that_lost_its_history_is_told_as_a_reset(prefix: str) -> None:
    with private_redis() as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
            (position,) = await broker.publish_many([progress(1)])
            await until(lambda: taken.events)
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            await broker.publish(progress(2))
            await until(lambda: taken.steps() == [1, 2] and taken.gaps)
            assert [(gap.since, gap.agents, gap.is_reset) for gap in taken.gaps] == [(position, None, True)]
            await broker.publish(progress(3))
            await until(lambda: taken.steps() == [1, 2, 3])


async def test_what_a_redis_still_has_of_its_history_does_not_come_again(prefix: str) -> None:
    """The last events were healed from the log: of what came live before, nothing says where to go on."""
    with Server(find_redis_server()) as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
            for step in range(3):
                await broker.publish(progress(step))
            await until(lambda: len(taken.events) == 3)
            for last in (10, 20):
                await kill_feed(broker)
                await broker.publish_many([progress(step) for step in range(len(taken.events), last)])
                await until(lambda last=last: len(taken.events) == last)
                if last == 10:
                    await broker.redis.execute_command("SAVE")
            assert taken.healed
            await asyncio.to_thread(redis.kill)
            await asyncio.to_thread(redis.start)
            await until(lambda: taken.gaps)
            await broker.publish(progress(20))
            await until(lambda: taken.steps() == list(range(21)))
            assert len(taken.gaps) == 1


async def test_a_log_that_is_still_read_from_the_old_master_heals_nothing(prefix: str) -> None:
    with private_redis() as old, private_redis() as new:
        async with (
            proxy(old.port) as heard,
            proxy(old.port) as read,
            Redis(port=new.port) as promoted,
            Broker.connect(read.url, prefix=prefix) as reader,
        ):
            taken = Taken()
            feed = Feed(address.read(heard.url), reader.keys, reader.log, taken)
            task = asyncio.create_task(feed.run())
            await join(feed, (WORKSPACE, None))
            await reader.publish(progress(0))
            await until(lambda: taken.steps() == [0])
            await promoted.replicaof("127.0.0.1", old.port)
            await until(lambda: has_all(promoted))
            await promoted.replicaof("NO", "ONE")
            async with Broker.connect(new.url, prefix=prefix) as publisher:
                await publisher.publish(progress(1))
                heard.target = new.port
                heard.cut()
                await until(lambda: feed.is_held(WORKSPACE))
                await publisher.publish(progress(2))
                read.target = new.port
                read.cut()
                await until(lambda: taken.steps() == [0, 1, 2])
            assert (taken.rejected, taken.gaps) == ([], [])
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def has_all(replica: Redis) -> bool:
    return bool((await replica.info("replication"))["master_link_status"] == "up")


async def test_a_user_without_a_password_is_who_subscribes_too(prefix: str) -> None:
    with Server(redis_server_7()) as redis:
        redis.ask("ACL SETUSER", "node", "on", "nopass", "~*", "&*", "+@all")
        url = redis.url.replace("redis://", "redis://node@")
        async with Broker.connect(url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)):
            ours = {one["user"] for one in redis.ask("CLIENT LIST") if one["name"]}
            assert ours == {"node"}


async def test_a_deaf_connection_is_noticed_and_made_anew(
    redis: LocalRedis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(followers, "SILENCE_SECONDS", 0.5)
    async with (
        proxy(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as publisher,
        Broker.connect(middle.url, prefix=prefix) as broker,
        running(broker, (WORKSPACE, None)) as (_, taken),
    ):
        middle.pause()
        await publisher.publish(progress(1))
        await until(lambda: False in taken.connections)
        middle.go_on()
        await until(lambda: taken.steps() == [1])


async def test_the_check_finds_what_never_arrived(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "CHECK_SECONDS", 0.2)
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        await broker.publish(progress(1))
        await until(lambda: taken.events)
        # An event that was logged, though its message never went out: as after a crash inside the script.
        body = b'"prev":"%s","agent_prev":"%s","type":"task.progress","workspace_id":"ws-456","agent_id":"agent-1"'
        body += b',"task_id":"t","timestamp":"2026-03-27T10:30:45Z","data":{"step":2}}'
        last = str(taken.events[-1].id).encode()
        position = await broker.redis.xadd(broker.keys.log(WORKSPACE), {"e": body % (last, last)})
        await broker.redis.hset(broker.keys.workspace(WORKSPACE), "position", position)
        await until(lambda: taken.steps() == [1, 2])


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"type":"task.progress"}', b'{"type":"nobody.knows","data":{}}',
     b'{"type":"task.progress","data":[]}', b'{"type":"task.progress","data":{"task_id":"t","output":"\xff"}}',
     b'{"type":"task.progress","data":{"task_id":7}}', b'{"type":"task.progress","data":{"task_id":"t","type":"x"}}',
     b'{"type":"task.progress","workspace_id":"other","data":{"task_id":"t"}}',
     b'{"type":"task.progress","data":{"task_id":"t","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
     b'{"id":"not a position","prev":"0-0","type":"task.progress","data":{"task_id":"t"}}'],
)  # fmt: skip
async def test_a_message_that_is_no_event_is_dropped_and_what_follows_is_not(
    redis_url: str, prefix: str, message: bytes
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (feed, taken):
        await say(broker, broker.keys.channel(WORKSPACE), message)
        await broker.publish(progress(1))
        await until(lambda: taken.events)
        await feed.settle(WORKSPACE)
        assert taken.steps() == [1]
        assert taken.gaps == []


async def test_a_forged_position_cannot_deafen_the_feed(redis_url: str, prefix: str) -> None:
    forged = b'{"id":"99999999999999-0","prev":"%b","type":"task.progress","data":{"task_id":"t","step":0}}'
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        position = await broker.publish(progress(1))
        await say(broker, broker.keys.channel(WORKSPACE), forged % str(position).encode())
        await broker.publish(progress(2))
        await until(lambda: taken.gaps)
        await broker.publish(progress(3))
        await until(lambda: 3 in taken.steps())


async def test_a_plain_publish_is_handed_on_live_without_a_position(redis_url: str, prefix: str) -> None:
    message = b'{"type":"task.progress","data":{"task_id":"task-456","agent_id":"agent-1","step":3}}'
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        await say(broker, broker.keys.channel(WORKSPACE), message)
        await until(lambda: taken.events)
        (event,) = taken.events
        assert (event.id, event.agent_id, event.task_id, bytes(event.data)) == (
            None,
            "agent-1",
            "task-456",
            b'{"step":3}',
        )


async def test_channels_nobody_wants_are_left_after_a_while(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LINGER_SECONDS", 0.1)
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        running(broker, (WORKSPACE, "agent-1"), ("ws-2", None)) as (feed, _),
    ):
        feed.unwant([(WORKSPACE, "agent-1"), ("ws-2", None)])
        await until(lambda: feed.channels == 0)
        await until(lambda: nothing_subscribed(broker))
        await join(feed, (WORKSPACE, "agent-1"))
        assert feed.channels == 1


async def nothing_subscribed(broker: Broker) -> bool:
    return await broker.redis.pubsub_channels(f"{broker.keys.prefix}:*") == []


async def test_many_channels_are_joined_in_few_commands(redis: LocalRedis, prefix: str) -> None:
    wants = [(f"ws-{number}", None) for number in range(3000)]
    client: Any = Redis.from_url(redis.url)
    before = (await client.info("commandstats")).get("cmdstat_subscribe", {"calls": 0})["calls"]
    async with Broker.connect(redis.url, prefix=prefix) as broker, running(broker, *wants) as (feed, taken):
        assert feed.channels == 3000
        after = (await client.info("commandstats"))["cmdstat_subscribe"]["calls"]
        assert after - before <= 8
        await broker.publish_many([progress(1, workspace=name) for name, _ in wants])
        await until(lambda: len(taken.events) == 3000)
    await client.aclose()


async def test_watching_from_a_position_gives_history_then_what_is_live(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        positions = await broker.publish_many([progress(step, f"agent-{step % 2}") for step in range(1200)])
        wanted = Filter(workspaces=frozenset({WORKSPACE}), agents=frozenset({"agent-1"}))
        seen: list[int] = []
        async with contextlib.aclosing(watch(broker, wanted, positions[99])) as events:
            async for event in events:
                assert isinstance(event, Event)
                seen.append(event.data["step"])
                if len(seen) == 10:
                    await broker.publish_many([progress(step, f"agent-{step % 2}") for step in range(1200, 1300)])
                if len(seen) == 600:
                    break
        assert seen == list(range(101, 1300, 2))


async def test_a_plain_publish_on_an_agents_channel_arrives_though_somebody_watches_the_whole_workspace(
    redis_url: str, prefix: str
) -> None:
    wants = [(WORKSPACE, None), (WORKSPACE, "agent-1")]
    plain = b'{"type":"task.progress","data":{"task_id":"t","step":%d}}'
    live = progress(2)
    live.ephemeral = True
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, *wants) as (feed, taken):
        await say(broker, broker.keys.channel(WORKSPACE, "agent-1"), plain % 1)
        await broker.publish_many([live, progress(3)])
        await say(broker, broker.keys.channel(WORKSPACE, "agent-1"), plain % 4)
        await say(broker, broker.keys.channel(WORKSPACE), plain % 5)
        await until(lambda: len(taken.events) >= 5)
        feed.unwant([(WORKSPACE, None)])
        await broker.publish(progress(6))
        await until(lambda: taken.steps()[-1] == 6)
        assert taken.steps() == [1, 2, 3, 4, 5, 6]


async def test_a_change_of_channels_between_the_two_copies_of_an_event_neither_doubles_nor_loses_it(
    redis_url: str, prefix: str
) -> None:
    wants = [(WORKSPACE, None), (WORKSPACE, "agent-1")]
    async with Broker.connect(redis_url, prefix=prefix) as broker, running(broker, *wants) as (feed, taken):
        follower = feed._workspaces[WORKSPACE].follower
        assert follower is not None

        def copies(step: int) -> tuple[list[bytes], list[bytes]]:
            """What the script publishes for one event: on the workspace's channel, then on the agent's."""
            message = b'{"id":"1-%d","prev":"%b","agent_prev":"%b","type":"task.progress","agent_id":"agent-1",'
            message += b'"task_id":"t","timestamp":"2026-03-27T10:30:45Z","data":{"step":%d}}'
            before = b"0-0" if step == 1 else b"1-%d" % (step - 1)
            message %= (step, before, before, step)
            channels = broker.keys.channel(WORKSPACE), broker.keys.channel(WORKSPACE, "agent-1")
            whole, agent = ([follower._words.message, channel.encode(), message] for channel in channels)
            return whole, agent

        for step in range(1, 7, 2):
            first, second = copies(step)
            follower.on_pushes([first])
            feed.unwant([(WORKSPACE, None)])
            follower.on_pushes([second])
            await feed.settle(WORKSPACE)
            first, second = copies(step + 1)
            follower.on_pushes([first])
            joined = feed.want([(WORKSPACE, None)])
            follower.on_pushes([second])
            if joined is not None:
                await joined
        assert taken.steps() == [1, 2, 3, 4, 5, 6]
        assert taken.gaps == []


async def test_who_wants_the_workspace_during_an_outage_takes_nothing_from_those_who_want_an_agent(
    redis: LocalRedis, prefix: str
) -> None:
    """What was missed meanwhile still comes on the line that was heard before."""
    async with (
        proxy(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as publisher,
        Broker.connect(middle.url, prefix=prefix) as broker,
        running(broker, (WORKSPACE, "agent-1")) as (feed, taken),
    ):
        await publisher.publish(progress(0))
        await until(lambda: taken.steps() == [0])
        middle.pause()
        middle.cut()
        await until(lambda: not feed.is_connected)
        await publisher.publish(progress(1))
        joined = feed.want([(WORKSPACE, None)])
        assert joined is not None
        middle.go_on()
        await joined
        await publisher.publish(progress(2))
        await until(lambda: taken.steps()[-1] == 2)
        assert taken.steps() == [0, 1, 2]
