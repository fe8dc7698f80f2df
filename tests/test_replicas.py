"""Publishes that replicas must have: answered when they do, said when they do not, and made again when lost."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from broker import Broker, Invalid
from broker.errors import Unreplicated
from broker.keyspace import Keyspace
from broker.local import find_redis_server
from broker.replicas import Call, judge
from broker.topology.slots import slot_of
from gateway.cli import publishing

from .support import until
from .test_cli import Shell
from .test_feed import WORKSPACE, progress, running
from .test_topologies_cluster import replica_of
from .topologies import Cluster, Sentinels, Server, wait

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """A master and its replica."""
    program = find_redis_server()
    with Server(program, repl_diskless_sync_delay=0) as master, Server(program) as replica:
        replica.ask("REPLICAOF", "127.0.0.1", master.port)
        yield master, replica


@pytest.fixture
async def master(pair: tuple[Server, Server]) -> Server:
    await until(lambda: pair[1].ask("ROLE")[3] == b"connected")
    return pair[0]


@pytest.fixture
def replica(pair: tuple[Server, Server]) -> Server:
    return pair[1]


@contextlib.contextmanager
def halted(server: Server) -> Iterator[None]:
    """It is there, and does nothing."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


async def logged(broker: Broker, workspace: str = WORKSPACE) -> list[int]:
    """All that stands in the log, by step."""
    steps: list[int] = []
    end, is_last = "0-0", False
    while not is_last:
        page, end, is_last, _ = await broker.log.page(workspace, end)
        steps += [event.event().data["step"] for event in page]
    return steps


async def test_an_event_is_answered_when_the_replica_has_it(master: Server, replica: Server, prefix: str) -> None:
    async with Broker.connect(master.url, prefix=prefix) as broker, Redis.from_url(replica.url) as behind:
        for step in range(50):
            position = await broker.publish(progress(step), min_replicas=1)
            (entry,) = await behind.xrevrange(broker.keys.log(WORKSPACE), count=1)
            assert entry[0].decode() == position
        many = [progress(step, workspace=name) for step in range(250) for name in (WORKSPACE, "ws-2")]
        positions = await broker.publish_many(many, min_replicas=1)
        assert await behind.xlen(broker.keys.log(WORKSPACE)) == 300
        assert await behind.xlen(broker.keys.log("ws-2")) == 250
        assert None not in positions


async def test_a_thousand_who_wait_share_a_few_rounds(master: Server, prefix: str) -> None:
    async with Broker.connect(master.url, prefix=prefix) as broker:
        before = calls(master, "wait")
        await asyncio.gather(*(broker.publish(progress(step), min_replicas=1) for step in range(1000)))
        assert calls(master, "wait") - before <= 20
        assert await logged(broker) == list(range(1000))


def calls(server: Server, command: str) -> int:
    found: Any = server.ask("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})
    return int(found["calls"])


async def test_what_has_no_position_is_not_waited_for(master: Server, prefix: str) -> None:
    live = progress(1)
    live.ephemeral = True
    async with Broker.connect(master.url, prefix=prefix) as broker:
        before = calls(master, "wait")
        assert await broker.publish(live, min_replicas=7) is None
        assert await broker.publish_many([], min_replicas=7) == []
        assert calls(master, "wait") == before


@pytest.mark.parametrize("wrong", [-1, True, "1", None, 1.0])
async def test_a_number_of_replicas_is_a_number(master: Server, prefix: str, wrong: Any) -> None:
    async with Broker.connect(master.url, prefix=prefix) as broker:
        with pytest.raises(Invalid, match="min_replicas"):
            await broker.publish(progress(1), min_replicas=wrong)
        with pytest.raises(Invalid, match="min_replicas"):
            await broker.publish_many([progress(1)], min_replicas=wrong)


async def test_a_replica_that_is_cut_off_is_said_and_publishing_again_waits_on(
    master: Server, replica: Server, prefix: str
) -> None:
    async with Broker.connect(master.url, prefix=prefix, patience_seconds=0.9) as broker:
        first = await broker.publish(progress(0), min_replicas=1)
        with halted(replica):
            for _ in range(2):
                with pytest.raises(Unreplicated, match=r"0 of 1 replicas of .*INFO replication") as error:
                    await broker.publish_many([progress(1), progress(2)], min_replicas=1)
                assert await logged(broker) == [0, 1, 2]
        again = await broker.publish_many([progress(1), progress(2)], min_replicas=1)
        assert error.value.positions == again
        assert await logged(broker) == [0, 1, 2]
        # What was answered is done with: an equal event is another one.
        assert await broker.publish(progress(0), min_replicas=1) != first
        assert await logged(broker) == [0, 1, 2, 0]


async def test_more_replicas_than_there_are_are_not_waited_for_by_others(
    master: Server, replica: Server, prefix: str
) -> None:
    async with Broker.connect(master.url, prefix=prefix, patience_seconds=2) as broker:
        await broker.publish(progress(0), min_replicas=1)
        two = asyncio.create_task(broker.publish(progress(1), min_replicas=2))
        await until(lambda: calls_blocked(master))
        one = await broker.publish(progress(2), min_replicas=1)
        assert one is not None
        assert not two.done()
        with halted(replica):
            stuck = asyncio.create_task(broker.publish(progress(3), min_replicas=1))
            for step in range(4, 204):
                await broker.publish(progress(step))
            assert not stuck.done()
        await stuck
        with pytest.raises(Unreplicated, match="1 of 2 replicas"):
            await two
        assert sorted(await logged(broker)) == list(range(204))


def calls_blocked(server: Server) -> int:
    return int(server.ask("INFO", "clients")["blocked_clients"])


async def test_a_user_that_may_not_wait_is_told_so(master: Server, prefix: str) -> None:
    master.ask("ACL", "SETUSER", "producer", "on", ">secret", "~*", "&*", "+@all", "-wait")
    url = master.url.replace("redis://", "redis://producer:secret@")
    async with Broker.connect(url, prefix=prefix, patience_seconds=0.2) as broker:
        with pytest.raises(Unreplicated, match=r"NOPERM.*wait"):
            await broker.publish(progress(1), min_replicas=1)


async def test_a_caller_that_gives_up_waiting_may_come_back(master: Server, replica: Server, prefix: str) -> None:
    async with Broker.connect(master.url, prefix=prefix) as broker:
        with halted(replica), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await broker.publish(progress(1), min_replicas=1)
        assert await broker.publish(progress(1), min_replicas=1) is not None
        assert await logged(broker) == [1]


def test_a_round_is_judged_by_the_record_and_by_what_has_acknowledged_it() -> None:
    call = Call("ws-1", "p1", 7)
    assert judge(call, [1, b"7", 3], 2, 2, "here") is True
    assert judge(call, [1, b"9", 3], 3, 2, "here") is True
    assert judge(call, [1, b"7", 3], 1, 2, "here") == "1 of 2 replicas of here have acknowledged it"
    for answers in ([1, b"6", 3], [0, None, 2]):
        assert judge(call, answers, 2, 2, "here") is False


# -- failovers


async def fail_over(
    broker: Broker, victim: Server, names: list[str], is_over: Callable[[], bool]
) -> dict[str, list[Any]]:
    """Publish while the master dies, another one takes its place, and it comes back; what was acknowledged."""
    acknowledged: dict[str, list[Any]] = {name: [] for name in names}
    is_enough = False

    async def publish(name: str) -> None:
        step = 0
        while not is_enough:
            position = await broker.publish(progress(step, workspace=name), min_replicas=1)
            acknowledged[name].append(position)
            step += 1

    tasks = [asyncio.create_task(publish(name)) for name in names]
    await until(lambda: all(len(positions) > 20 for positions in acknowledged.values()))
    # In the moment of an answer: nothing else has time to get through.
    victim.kill()
    before = {name: len(positions) for name, positions in acknowledged.items()}
    # Who is promoted may have no replica before the old master is one.
    await asyncio.to_thread(wait, is_over, "a failover")
    await asyncio.to_thread(victim.start)
    await until(lambda: all(len(acknowledged[name]) > count + 20 for name, count in before.items()), 40)
    is_enough = True
    await asyncio.gather(*tasks)
    return acknowledged


async def check_log(broker: Broker, acknowledged: dict[str, list[Any]]) -> None:
    """Each acknowledged event stands where it was said, once and in order."""
    for name, positions in acknowledged.items():
        page = await broker.log.page(name, "0-0", 100_000)
        assert [event.id for event in page.events] == positions
        assert [event.event().data["step"] for event in page.events] == list(range(len(positions)))


async def test_behind_sentinels_what_was_acknowledged_survives_the_master(prefix: str) -> None:
    with Sentinels() as sentinels:
        victim = sentinels.master
        async with Broker.connect(sentinels.url, prefix=prefix, patience_seconds=30) as broker:
            names = [f"ws-{number}" for number in range(20)]
            await check_log(broker, await fail_over(broker, victim, names, lambda: sentinels.master is not victim))
        await asyncio.to_thread(sentinels.mend)
        await taken_back(sentinels, f"{prefix}-2")


async def taken_back(sentinels: Sentinels, prefix: str) -> None:
    """What a failover took before replicas had it is published again, in its order, and then acknowledged."""
    master = sentinels.master
    replicas = [server for server in sentinels.servers if server is not master]
    async with (
        Broker.connect(sentinels.url, prefix=prefix, patience_seconds=30) as broker,
        running(broker, (WORKSPACE, None)) as (_, taken),
    ):
        await broker.publish(progress(0), min_replicas=2)
        for replica in replicas:
            replica.signal(signal.SIGSTOP)
        master.ask("CLIENT KILL", "TYPE", "replica")
        waiting = asyncio.create_task(broker.publish_many([progress(step) for step in range(1, 6)], min_replicas=1))
        await until(lambda: taken.steps() == list(range(6)))
        await asyncio.to_thread(master.kill)
        for replica in replicas:
            replica.signal(signal.SIGCONT)
        positions = await waiting
        assert await logged(broker) == list(range(6))
        assert [event.id for event in (await broker.log.page(WORKSPACE, "0-0")).events][1:] == positions
        # Who has seen what was taken back is told so, and then sees it where it stands.
        await until(lambda: taken.gaps and taken.steps() == [*range(6), *range(1, 6)], 20)


async def test_in_a_cluster_what_was_acknowledged_survives_each_master(prefix: str) -> None:
    with Cluster() as cluster:
        for turn, victim in enumerate([cluster.servers[0], cluster.servers[1]]):
            await asyncio.to_thread(cluster.mend)
            async with Broker.connect(cluster.url, prefix=f"{prefix}-{turn}", patience_seconds=30) as broker:
                names = [f"ws-{number}" for number in range(20)]
                heir = replica_of(cluster, victim)
                found = await fail_over(broker, victim, names, lambda heir=heir: heir.role == "master")
                await check_log(broker, found)
        await asyncio.to_thread(cluster.mend)
        number = slot_of(Keyspace(prefix).log(WORKSPACE))
        source = cluster.master_of(number)
        async with Broker.connect(cluster.url, prefix=prefix, patience_seconds=5) as broker:
            await broker.publish(progress(0), min_replicas=1)
            with halted(replica_of(cluster, source)):
                waiting = asyncio.create_task(broker.publish(progress(1), min_replicas=1))
                await until(lambda: calls_blocked(source))
                await asyncio.to_thread(cluster.move, number, cluster.other_than(source))
                # Where the slot is now a replica has it, and the old master's is not asked any more.
                assert await waiting is not None
            assert await logged(broker) == [0, 1]


# -- the command line


async def test_the_command_line_waits_too(master: Server, prefix: str) -> None:
    shell = Shell(redis_url=master.url, prefix=prefix)
    words = ("publish", "--workspace", "ws-1", "--min-replicas")
    lines = b'{"type":"task.started","data":{"task_id":"t"}}\n' * 3
    one, more, none = await asyncio.gather(
        shell.run(*words, "1", "task.started", '{"task_id":"t"}'),
        shell.run(*words, "1", "-", stdin=lines),
        shell.run(*words, "-1", "task.started"),
    )
    assert (one.status, len(one.lines)) == (0, 1)
    assert (more.status, len(more.lines)) == (0, 3)
    assert calls(master, "wait") >= 2
    assert "--min-replicas: expected 0 or more" in none.complaint


async def test_the_command_line_tells_the_positions_also_of_what_replicas_do_not_have(
    master: Server, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Broker.connect(master.url, prefix=prefix, patience_seconds=0.4) as broker:
        with pytest.raises(Unreplicated) as error:
            await publishing._print_positions(broker.publish_many([progress(1), progress(2)], min_replicas=2))
    assert capsys.readouterr().out.splitlines() == error.value.positions
