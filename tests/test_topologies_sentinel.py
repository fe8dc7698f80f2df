"""Behind sentinels: a failover loses nothing that the new master has, and says what it has not."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from broker import Broker, Event, Unavailable
from broker import feed as feeds
from broker.address import read
from broker.feed import Feed
from broker.topology import sentinel
from broker.topology.clients import client

from .support import until
from .test_feed import WORKSPACE, Taken, progress, running
from .topologies import SERVICE, Sentinel, Sentinels, Server, wait

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def behind() -> Iterator[Sentinels]:
    with Sentinels() as found:
        yield found


@pytest.fixture
def sentinels(behind: Sentinels) -> Sentinels:
    """All of it is up, whatever the test before did."""
    behind.mend()
    return behind


@contextlib.asynccontextmanager
async def publishing(broker: Broker, *workspaces: str, pause: float = 0.002) -> AsyncIterator[list[int]]:
    """Publish steps to each workspace until the end; all are acknowledged then. Gives how many there are so far."""
    steps, is_over = [0], False

    async def publish() -> None:
        while not is_over:
            events = [progress(steps[0] + more, workspace=name) for more in range(5) for name in workspaces]
            await broker.publish_many(events)
            steps[0] += 5
            await asyncio.sleep(pause)

    task = asyncio.create_task(publish())
    try:
        yield steps
    finally:
        is_over = True
        await task


def steps_of(taken: Taken, workspace: str) -> list[int]:
    return [event.event().data["step"] for event in taken.events if event.workspace_id == workspace]


async def test_events_survive_the_death_of_the_master(sentinels: Sentinels, prefix: str) -> None:
    master = sentinels.master
    async with (
        Broker.connect(sentinels.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, (WORKSPACE, None), ("ws-2", "agent-1")) as (_, taken),
    ):
        async with publishing(broker, WORKSPACE, "ws-2") as steps:
            await until(lambda: steps[0] >= 200)
            # What was acknowledged has reached the replicas: the failover has nothing to lose.
            await broker.redis.wait(2, 1000)
            await asyncio.to_thread(master.kill)
            before = steps[0]
            await until(lambda: steps[0] > before + 200, 30)
        for name in (WORKSPACE, "ws-2"):
            await until(lambda name=name: len(steps_of(taken, name)) >= steps[0])
            missing = set(range(steps[0])) - set(steps_of(taken, name))
            assert steps_of(taken, name) == sorted(set(steps_of(taken, name))), "doubled or out of order"
            assert not missing or taken.gaps, "lost without a word"
        assert taken.connections[0] is True
        assert False in taken.connections
        assert taken.connections[-1] is True


async def test_what_a_failover_loses_is_said(sentinels: Sentinels, prefix: str) -> None:
    master = sentinels.master
    replicas = [server for server in sentinels.servers if server is not master]
    async with (
        Broker.connect(sentinels.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, (WORKSPACE, None)) as (_, taken),
    ):
        kept = await broker.publish_many([progress(step) for step in range(10)])
        await broker.redis.wait(2, 1000)
        # The replicas hear nothing any more: what the master takes now is lost with it.
        for replica in replicas:
            replica.signal(signal.SIGSTOP)
        master.ask("CLIENT KILL", "TYPE", "replica")
        lost = await broker.publish_many([progress(step) for step in range(10, 20)])
        await until(lambda: len(taken.events) == 20)
        await asyncio.to_thread(master.kill)
        for replica in replicas:
            replica.signal(signal.SIGCONT)
        await broker.publish(progress(20))
        await until(lambda: taken.steps()[-1] == 20, 30)
        await until(lambda: taken.gaps)
        assert [(gap.since, gap.is_reset) for gap in taken.gaps] == [(lost[-1], True)]
        assert taken.steps() == list(range(21))
        bounds = [await broker.log.bounds(WORKSPACE, position) for position in (kept[-1], lost[-1])]
        assert [each.is_valid for each in bounds] == [True, False]


async def test_a_master_that_is_demoted_is_left_within_seconds(sentinels: Sentinels, prefix: str) -> None:
    master = sentinels.master
    async with (
        Broker.connect(sentinels.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, (WORKSPACE, None)) as (feed, taken),
    ):
        await broker.publish(progress(0))
        await broker.redis.wait(2, 1000)
        # Nobody is cut off: it hangs, as seen from here, and the sentinels agree on another one meanwhile.
        master.signal(signal.SIGSTOP)
        await asyncio.to_thread(wait, lambda: sentinels.master is not master, "another master")
        await until(lambda: feed.is_connected and standing(feed) != master.port, 10)
        async with Broker.connect(sentinels.url, prefix=prefix) as newcomer:
            await newcomer.publish(progress(1))
            await until(lambda: taken.steps() == [0, 1])
            master.signal(signal.SIGCONT)
            await newcomer.publish(progress(2))
            await until(lambda: taken.steps() == [0, 1, 2])
        assert taken.gaps == []


def standing(feed: Feed) -> int:
    """The port of the server that is followed."""
    return next(host.port for host in feed._followers)


async def test_a_master_that_is_cut_off_with_a_sentinel_of_its_own_is_left_and_not_returned_to(
    sentinels: Sentinels, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both live, and say what was so before the failover."""
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(sentinel, "LOOK_SECONDS", 0.1)
    first = sentinels.master
    with Server(first.program) as past, Sentinel(first.program, past.port, None) as witness:
        past.ask("REPLICAOF", "127.0.0.1", first.port)
        await asyncio.to_thread(wait, lambda: past.ask("ROLE")[3] == b"connected", "a replica")
        past.ask("REPLICAOF", "NO", "ONE")
        if int(sentinels.sentinels[0].ask("SENTINEL MASTER", SERVICE)["config-epoch"]) == 0:  # no test before had one
            sentinels.sentinels[0].ask("SENTINEL FAILOVER", SERVICE)
            await asyncio.to_thread(wait, lambda: sentinels.master is not first, "another master")
        url = f"redis+sentinel://127.0.0.1:{witness.port},{sentinels.hosts}/{SERVICE}"
        async with (
            Broker.connect(url, prefix=prefix) as broker,
            Broker.connect(sentinels.master.url, prefix=prefix) as other,
            Redis(port=witness.port) as asked,
            running(broker, (WORKSPACE, None)) as (feed, taken),
        ):
            await until(lambda: standing(feed) == sentinels.master.port)
            await until(lambda: is_at(broker, sentinels.master))
            before = await questions(asked)
            for step in range(20):
                await (broker if step % 2 else other).publish(progress(step))
            await until(lambda: has_asked_more(asked, before))
            await until(lambda: taken.steps() == list(range(20)))
            assert (taken.gaps, taken.connections) == ([], [True, False, True])


async def is_at(broker: Broker, server: Server) -> bool:
    return bool((await broker.redis.info("server"))["tcp_port"] == server.port)


async def questions(witness: Redis) -> int:
    """Each comes over a connection of its own."""
    return int((await witness.info("stats"))["total_connections_received"])


async def has_asked_more(witness: Redis, before: int) -> bool:
    return await questions(witness) > before + 1


async def test_a_name_that_no_sentinel_knows_is_said(sentinels: Sentinels) -> None:
    url = sentinels.url.replace(SERVICE, "others")
    with pytest.raises(Unavailable, match=r"others of the sentinels .*No such master"):
        async with Broker.connect(url):
            raise AssertionError


async def test_a_sentinel_that_is_away_does_not_matter(sentinels: Sentinels, prefix: str) -> None:
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinels.sentinels[0].port}/{SERVICE}/3"
    async with Broker.connect(url, prefix=prefix) as broker, running(broker, (WORKSPACE, None)) as (_, taken):
        await broker.publish(Event(type="agent.online", workspace_id=WORKSPACE, agent_id="agent-1"))
        await until(lambda: taken.events)
        assert [one["db"] for one in sentinels.master.ask("CLIENT LIST") if one["name"] == "trunkline-feed"] == ["3"]
    async with client(read(url), "test") as redis:
        assert (await redis.role())[0] == b"master"


async def test_a_demoted_master_refuses_a_publish_which_is_then_made_at_the_new_one(
    sentinels: Sentinels, prefix: str
) -> None:
    old = sentinels.master
    new = next(server for server in sentinels.servers if server is not old)
    async with Broker.connect(sentinels.url, prefix=prefix, patience_seconds=30) as broker:
        first = await broker.publish(progress(0))
        await broker.redis.wait(2, 1000)
        new.ask("REPLICAOF", "NO", "ONE")
        # By hand no connection is closed, as sentinels do: only the answer says it.
        old.ask("REPLICAOF", "127.0.0.1", new.port)
        before = refusals(old)
        waiting = asyncio.create_task(broker.publish(progress(1)))
        await until(lambda: refusals(old) > before)
        assert not waiting.done()
        sentinels.name(new)
        second = await waiting
        assert [event.id for event in (await broker.log.page(WORKSPACE, "0-0")).events] == [first, second]
        assert (await broker.redis.role())[0] == b"master"


def refusals(server: Server) -> int:
    """Redis 6.2 does not tell one error of a script from another."""
    return int(server.ask("INFO", "stats")["total_error_replies"])
