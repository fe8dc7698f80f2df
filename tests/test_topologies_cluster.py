"""In a cluster: commands find their node, each workspace is heard at one, and neither a failover nor a moving slot
loses, doubles or reorders anything without a word."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from redis.exceptions import RedisError

from broker import Broker, Unavailable
from broker import feed as feeds
from broker.address import read
from broker.healing import MAX_HEALERS
from broker.keyspace import Keyspace
from broker.local import LocalRedis
from broker.topology.clients import client
from broker.topology.cluster import Map
from broker.topology.slots import slot_of
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.replay import MAX_WALKS, Replays, Resume

from .support import free_port, until
from .test_feed import WORKSPACE, join, progress, running, say
from .test_replay import Walker
from .test_topologies_sentinel import publishing, steps_of
from .topologies import Cluster, Server, redis_server_7

pytestmark = pytest.mark.anyio

# One in each third of the slots, and so at each master to begin with.
NAMES = ("ws-456", "ws-2", "ws-3")


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    with Cluster() as found:
        yield found


@pytest.fixture
def cluster(made: Cluster) -> Cluster:
    """All of it is up, whatever the test before did."""
    made.mend()
    return made


def slot(prefix: str, workspace: str = WORKSPACE) -> int:
    return slot_of(Keyspace(prefix).log(workspace))


async def test_each_master_has_its_own_part_of_what_is_wanted(cluster: Cluster, prefix: str) -> None:
    names = [f"ws-{number}" for number in range(60)]
    owners = [cluster.master_of(slot(prefix, name)) for name in names]
    assert len(set(owners)) == 3
    async with (
        Broker.connect(cluster.url, prefix=prefix) as broker,
        running(broker, *((name, None) for name in names)) as (feed, taken),
    ):
        await broker.publish_many([progress(step, workspace=name) for step in range(5) for name in names])
        await until(lambda: len(taken.events) == 300)
        for name in names:
            assert steps_of(taken, name) == [0, 1, 2, 3, 4]
        for server in set(owners):
            heard = server.ask("PUBSUB SHARDCHANNELS", f"{prefix}:*")
            assert len(heard) == owners.count(server)
        feed.unwant([(name, None) for name in names])


async def test_any_client_can_publish_where_the_workspace_is(cluster: Cluster, prefix: str) -> None:
    async with Broker.connect(cluster.url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        await say(broker, broker.keys.channel(WORKSPACE), b'{"type":"task.progress","data":{"task_id":"t","step":1}}')
        await until(lambda: taken.steps() == [1])


async def test_events_survive_the_death_of_a_master(cluster: Cluster, prefix: str) -> None:
    victim = cluster.master_of(slot(prefix))
    async with (
        Broker.connect(cluster.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, *((name, None) for name in NAMES), (WORKSPACE, "agent-1")) as (feed, taken),
    ):
        async with publishing(broker, *NAMES) as steps:
            await until(lambda: steps[0] >= 200)
            await asyncio.to_thread(victim.kill)
            await until(lambda: not feed.is_whole)
            assert feed.is_connected
            before = steps[0]
            await until(lambda: steps[0] > before + 200, 30)
            await until(lambda: feed.is_whole, 20)
        for name in NAMES:
            await until(lambda name=name: steps_of(taken, name)[-1:] == [steps[0] - 1], 20)
            seen = steps_of(taken, name)
            assert seen == sorted(set(seen)), "doubled or out of order"
            assert seen == list(range(steps[0])) or name in {gap.workspace for gap in taken.gaps}, "lost without a word"


async def test_what_a_failover_loses_is_said(cluster: Cluster, prefix: str) -> None:
    victim = cluster.master_of(slot(prefix))
    async with (
        Broker.connect(cluster.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, (WORKSPACE, None)) as (_, taken),
    ):
        await broker.publish_many([progress(step) for step in range(10)])
        replica = replica_of(cluster, victim)
        await until(lambda: victim.ask("WAIT", 1, 1000) == 1)
        # The replica hears nothing any more: what the master takes now is lost with it.
        replica.signal(signal.SIGSTOP)
        victim.ask("CLIENT KILL", "TYPE", "replica")
        lost = await broker.publish_many([progress(step) for step in range(10, 20)])
        await until(lambda: len(taken.events) == 20)
        await asyncio.to_thread(victim.kill)
        replica.signal(signal.SIGCONT)
        await broker.publish(progress(20))
        await until(lambda: taken.steps()[-1] == 20 and taken.gaps, 30)
        assert [(gap.workspace, gap.since, gap.is_reset) for gap in taken.gaps] == [(WORKSPACE, lost[-1], True)]
        assert taken.steps() == list(range(21))


def replica_of(cluster: Cluster, master: Server) -> Server:
    port = int(master.ask("ROLE")[2][0][1])
    return next(server for server in cluster.servers if server.port == port)


async def test_a_slot_moves_there_and_back_under_load(cluster: Cluster, prefix: str) -> None:
    number = slot(prefix)
    home = cluster.master_of(number)
    away = cluster.other_than(home)
    wants = [(WORKSPACE, None), (WORKSPACE, "agent-1"), ("ws-2", None)]
    async with (
        Broker.connect(cluster.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, *wants) as (feed, taken),
    ):
        async with publishing(broker, WORKSPACE, "ws-2") as steps:
            for target in (away, home, away, home):
                before = steps[0]
                await asyncio.to_thread(cluster.move, number, target)
                await until(lambda before=before: steps[0] > before + 50, 20)
        for name in (WORKSPACE, "ws-2"):
            await until(lambda name=name: len(steps_of(taken, name)) >= steps[0])
            assert steps_of(taken, name) == list(range(steps[0]))
        assert taken.gaps == []
        assert all(taken.connections), "no connection had to be made anew"
        newest = [event.id for event in taken.events if event.workspace_id == WORKSPACE][-1]
        assert feed.position(WORKSPACE, None) == feed.position(WORKSPACE, ["agent-1"]) == newest


async def test_a_slot_that_is_long_on_its_way_keeps_the_others_going(cluster: Cluster, prefix: str) -> None:
    number = slot(prefix)
    source = cluster.master_of(number)
    target = cluster.other_than(source)
    wants = [(WORKSPACE, None), ("ws-2", None)]
    async with (
        Broker.connect(cluster.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, *wants) as (feed, taken),
    ):
        await broker.publish_many([progress(0), progress(0, workspace="ws-2")])
        cluster.begin_move(number, target)
        cluster.move_keys(number, source, target)
        waiting = asyncio.create_task(broker.publish_many([progress(1)]))
        await broker.publish(progress(1, workspace="ws-2"))
        # What is read where one half of the keys has gone is found at the other.
        assert [event.event().data["step"] for event in (await broker.log.page(WORKSPACE, "0-0")).events] == [0]
        assert not waiting.done()
        joining = asyncio.create_task(join(feed, (WORKSPACE, "agent-1")))
        await until(lambda: steps_of(taken, "ws-2") == [0, 1])
        cluster.end_move(number, source, target)
        await waiting
        await joining
        await until(lambda: steps_of(taken, WORKSPACE) == [0, 1])
        assert taken.gaps == []
    await asyncio.to_thread(cluster.move, number, source)


async def test_many_commands_at_once_follow_a_slot_that_is_on_its_way(cluster: Cluster, prefix: str) -> None:
    name = f"{prefix}:{{{WORKSPACE}}}"
    number = slot_of(name)
    source = cluster.master_of(number)
    target = cluster.other_than(source)
    async with client(read(cluster.url), "test") as redis:
        await asyncio.gather(*(redis.set(f"{name}:{one}", one) for one in range(50)))
        cluster.begin_move(number, target)
        cluster.move_keys(number, source, target)
        found: Any = await asyncio.gather(*(redis.get(f"{name}:{one}") for one in range(50)))
        assert found == [b"%d" % one for one in range(50)]
        async with redis.pipeline(transaction=False) as pipe:
            for one in range(50):
                pipe.get(f"{name}:{one}")
                pipe.set(f"{prefix}:elsewhere:{one}", one)
            assert (await pipe.execute())[::2] == found
        cluster.end_move(number, source, target)
        assert await redis.get(f"{name}:7") == b"7"
    await asyncio.to_thread(cluster.move, number, source)


async def test_a_pipeline_is_answered_in_its_order_whatever_its_slots(cluster: Cluster, prefix: str) -> None:
    async with client(read(cluster.url), "test") as redis, redis.pipeline(transaction=False) as pipe:
        for one in range(30):
            pipe.set(f"{prefix}:{one}", one)
            pipe.get(f"{prefix}:{one}")
        pipe.time()
        *answers, (seconds, _) = await pipe.execute()
        assert answers[1::2] == [b"%d" % one for one in range(30)]
        assert seconds > 1_700_000_000
        pipe.incr(f"{prefix}:text")
        pipe.set(f"{prefix}:text", "x")
        pipe.incr(f"{prefix}:text")
        first, second, third = await pipe.execute(raise_on_error=False)
        assert (first, second) == (1, True)
        assert isinstance(third, RedisError)


async def test_a_halted_master_holds_up_nobody_elses_workspaces(cluster: Cluster, prefix: str) -> None:
    victim = cluster.master_of(slot(prefix))
    ranges = cluster.slots_of(victim)
    all_names = [f"ws-{number}" for number in range(200)]
    names = [name for name in all_names if any(first <= slot(prefix, name) <= last for first, last in ranges)]
    other = next(name for name in all_names if name not in names)
    assert len(names) > 2 * MAX_HEALERS == 2 * MAX_WALKS
    async with (
        Broker.connect(cluster.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, *((name, None) for name in (WORKSPACE, other, *names))) as (feed, taken),
    ):
        replays = Replays(broker.log, feed, Hub(), Metrics())
        await broker.publish_many([progress(0), *(progress(0, workspace=name) for name in (other, *names))])
        victim.signal(signal.SIGSTOP)
        # Many holes are being filled there, and many clients resume.
        for name in names:
            feed._healer.hold(feed._workspaces[name])
            feed._healer.heal(feed._workspaces[name])
        walking = [asyncio.create_task(walk(replays, name)) for name in names]
        await asyncio.sleep(0.1)
        try:
            async with asyncio.timeout(2):
                await walk(replays, other)
                feed._healer.hold(feed._workspaces[other])
                feed._healer.heal(feed._workspaces[other])
                await broker.publish(progress(1, workspace=other))
                await until(lambda: steps_of(taken, other) == [0, 1])
            async with Broker.connect(cluster.url, prefix=prefix, patience_seconds=30) as newcomer:
                await newcomer.publish(progress(1))
            await until(lambda: steps_of(taken, WORKSPACE) == [0, 1], 20)
            for each in (*walking, *(walk._task for walk in replays._walks.values())):
                each.cancel()
        finally:
            victim.signal(signal.SIGCONT)
            with contextlib.suppress(RedisError):
                victim.ask("PING")


async def walk(replays: Replays, workspace: str) -> None:
    """As somebody who resumes at the beginning of its log."""
    await replays._walk(cast(Resume, Walker(workspace=workspace)), workspace)


async def test_many_who_find_the_map_stale_at_once_ask_for_it_together(cluster: Cluster) -> None:
    def asked() -> int:
        return sum(map(asked_for_slots, cluster.servers))

    slots, before = Map(read(cluster.url)), asked()

    async def lose() -> None:
        """As a command to a node that has died."""
        await slots.owner(0)
        slots.is_stale = True

    await asyncio.gather(*(lose() for _ in range(100)))
    assert 1 <= asked() - before <= 2


@pytest.mark.parametrize("slots", [None, (0, 16383)])
async def test_a_node_that_has_left_or_stands_in_the_past_misleads_nobody(
    cluster: Cluster, prefix: str, slots: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that there are no slots, or that all are its own, as of an epoch that is over."""
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.05)
    with Server(redis_server_7(), cluster_enabled="yes", cluster_port=free_port()) as other:
        if slots is not None:
            other.ask("CLUSTER ADDSLOTSRANGE", *slots)
        url = f"{cluster.url.partition(',')[0]},127.0.0.1:{other.port}"
        wants = [(name, None) for name in NAMES]
        async with Broker.connect(url, prefix=prefix) as broker, running(broker, *wants) as (_, taken):
            await until(lambda: asked_for_slots(other))
            await broker.publish_many([progress(1, workspace=name) for name in NAMES])
            await until(lambda: len(taken.events) == 3)
            assert taken.connections == [True] * 3


def asked_for_slots(server: Server) -> int:
    return int(server.ask("INFO", "commandstats").get("cmdstat_cluster|slots", {"calls": 0})["calls"])


async def test_a_cluster_that_is_down_is_asked_in_its_own_time(prefix: str) -> None:
    with Server(redis_server_7(), cluster_enabled="yes", cluster_port=free_port()) as alone:
        alone.ask("CLUSTER ADDSLOTSRANGE", 1, 16383)
        since = time.monotonic()
        url = f"redis+cluster://127.0.0.1:{alone.port}"
        async with Broker.connect(url, prefix=prefix) as broker:
            started = asyncio.create_task(start_joining(broker))
            await until(lambda: refused(alone) >= 4)
            assert time.monotonic() - since > 2 * feeds.HURRY_SECONDS
            alone.ask("CLUSTER ADDSLOTS", 0)
            await started


async def start_joining(broker: Broker) -> None:
    async with running(broker, (WORKSPACE, None)):
        pass


def refused(server: Server) -> int:
    return int(server.ask("INFO", "commandstats").get("cmdstat_hget", {"rejected_calls": 0})["rejected_calls"])


async def test_a_replica_alone_is_enough_to_find_the_cluster(cluster: Cluster, prefix: str) -> None:
    replica = next(server for server in cluster.servers if server.role == "slave")
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{replica.port}"
    async with Broker.connect(url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        await broker.publish(progress(1))
        await until(lambda: taken.steps() == [1])


async def test_a_server_that_is_no_cluster_is_said(redis: LocalRedis) -> None:
    with pytest.raises(Unavailable, match="cluster support disabled"):
        async with Broker.connect(f"redis+cluster://127.0.0.1:{redis.port}"):
            raise AssertionError


async def test_channels_that_nobody_wants_any_more_are_left(
    cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LINGER_SECONDS", 0.1)
    wants = [(name, agent) for name in NAMES for agent in (None, "agent-1")]
    async with Broker.connect(cluster.url, prefix=prefix) as broker, running(broker, *wants) as (feed, taken):
        feed.unwant(wants)
        await until(lambda: feed.channels == 0)
        await until(lambda: not any(one.ask("PUBSUB SHARDCHANNELS", f"{prefix}:*") for one in cluster.servers))
        await join(feed, *wants)
        await broker.publish_many([progress(1, workspace=name) for name in NAMES])
        await until(lambda: len(taken.events) == 3)
        assert all(taken.connections)
