"""A subscription that answers and brings nothing: it is found by a probe, made anew, and nothing is lost by it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from broker import Broker
from broker import follower as followers
from broker.address import read
from broker.feed import Feed
from broker.local import LocalRedis
from broker.topology.clients import client
from broker.topology.slots import slot_of

from .proxy import Proxy
from .support import Node, free_port, http, maxicore, private_redis, until
from .test_check import redis_server_6
from .test_feed import WORKSPACE, Taken, join, progress
from .topologies import Cluster, Server, redis_server_7

pytestmark = pytest.mark.anyio


_MESSAGES = (b">3\r\n$7\r\nmessage\r\n", b">3\r\n$8\r\nsmessage\r\n")


class Swallowing(Proxy):
    """It can swallow the messages of subscribed channels; answers, and that a channel is subscribed, come through."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._made = 0
        self._deaf = 0.0  # connections up to this number
        self.swallowed = 0

    def deafen(self) -> None:
        """The connections that there are."""
        self._deaf = self._made

    def deafen_all(self) -> None:
        """Those to come, too."""
        self._deaf = float("inf")

    def let_hear(self) -> None:
        self._deaf = 0.0

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        if not answers:
            return await super()._pump(reader, writer, answers=False)
        self._made += 1
        number, left = self._made, b""
        while data := await reader.read(64 * 1024):
            await self._flowing.wait()
            left += data
            while (end := end_of_reply(left, 0)) is not None:
                reply, left = left[:end], left[end:]
                if number <= self._deaf and reply.startswith(_MESSAGES):
                    self.swallowed += 1
                else:
                    writer.write(reply)
            await writer.drain()
        return None


def end_of_reply(data: bytes, start: int) -> int | None:
    """Where a reply of RESP ends that begins at `start`; None when it has not come whole."""
    line = data.find(b"\r\n", start)
    if line < 0:
        return None
    kind, end = data[start : start + 1], line + 2
    if kind in b"$=!":
        length = int(data[start + 1 : line])
        end += length + 2 if length >= 0 else 0
        return end if end <= len(data) else None
    members = int(data[start + 1 : line]) * (2 if kind == b"%" else 1) if kind in b"*~>%" else 0
    for _ in range(members):
        after = end_of_reply(data, end)
        if after is None:
            return None
        end = after
    return end


@contextlib.asynccontextmanager
async def swallowing(port: int) -> AsyncIterator[Swallowing]:
    middle = Swallowing(port)
    server = await asyncio.start_server(middle._serve, "127.0.0.1", 0)
    middle.port = server.sockets[0].getsockname()[1]
    try:
        yield middle
    finally:
        server.close()
        middle.cut()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def probing(broker: Broker, publisher: Redis | None = None) -> AsyncIterator[tuple[Feed, Taken]]:
    """A feed of a workspace that probes, as a node's does."""
    taken = Taken()
    feed = Feed(broker.address, broker.keys, broker.log, taken, publisher=publisher or broker.redis)
    task = asyncio.create_task(feed.run())
    try:
        await join(feed, (WORKSPACE, None))
        yield feed, taken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(followers, "HEARING_SECONDS", 0.3)


async def test_a_deaf_connection_is_made_anew_and_what_it_did_not_bring_comes_once_and_in_order(
    redis: LocalRedis, prefix: str, hasty: None
) -> None:
    async with (
        swallowing(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as publisher,
        Broker.connect(middle.url, prefix=prefix) as broker,
        probing(broker) as (feed, taken),
    ):
        await publisher.publish(progress(0))
        await until(lambda: taken.steps() == [0] and feed.probes["heard"] >= 2)
        middle.deafen()
        await publisher.publish_many([progress(step) for step in range(1, 20)])
        await until(lambda: taken.steps() == list(range(20)))
        assert middle.swallowed
        await until(lambda: not feed.is_deaf)
        await publisher.publish(progress(20))
        await until(lambda: taken.steps() == list(range(21)))
        assert (taken.gaps, taken.connections, feed.probes["missed"]) == ([], [True, False, True], 1)


async def test_a_feed_that_stays_deaf_says_so_and_brings_what_the_log_has(
    redis: LocalRedis, prefix: str, hasty: None
) -> None:
    async with (
        swallowing(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as publisher,
        Broker.connect(middle.url, prefix=prefix) as broker,
        probing(broker) as (feed, taken),
    ):
        middle.deafen_all()
        await until(lambda: feed.is_deaf)
        for step in range(5):
            await publisher.publish(progress(step))
            await until(lambda step=step: taken.steps() == list(range(step + 1)))
            assert feed.is_deaf
        middle.let_hear()
        await until(lambda: not feed.is_deaf and feed.is_connected)
        await publisher.publish(progress(5))
        await until(lambda: taken.steps() == list(range(6)))
        assert taken.gaps == []


async def test_what_is_late_is_not_missed(redis: LocalRedis, prefix: str, hasty: None) -> None:
    async with (
        swallowing(redis.port) as middle,
        Broker.connect(redis.url, prefix=prefix) as publisher,
        Broker.connect(middle.url, prefix=prefix) as broker,
        probing(broker, publisher.redis) as (feed, taken),
    ):
        await until(lambda: feed.probes["heard"])
        middle.pause()
        await asyncio.sleep(3 * followers.HEARING_SECONDS)
        middle.go_on()
        heard = feed.probes["heard"]
        await until(lambda: feed.probes["heard"] > heard + 1)
        assert (taken.connections, feed.probes["missed"]) == ([True], 0)


async def test_what_could_not_be_published_is_not_missed(redis: LocalRedis, prefix: str, hasty: None) -> None:
    nobody = client(read(f"redis://127.0.0.1:{free_port()}/0"), "test")
    async with nobody, Broker.connect(redis.url, prefix=prefix) as broker, probing(broker, nobody) as (feed, taken):
        await until(lambda: feed.probes["unsent"] >= 3)
        assert (taken.connections, feed.is_deaf, feed.probes["missed"]) == ([True], False, 0)


async def test_a_subscription_at_another_server_than_the_one_that_is_published_to_is_deaf(
    redis: LocalRedis, prefix: str, hasty: None
) -> None:
    with private_redis() as other:
        async with (
            Redis.from_url(other.url) as elsewhere,
            Broker.connect(redis.url, prefix=prefix) as broker,
            probing(broker, elsewhere) as (feed, taken),
        ):
            await until(lambda: feed.probes["missed"] >= 2)
            assert feed.is_deaf
            assert taken.connections[:4] == [True, False, True, False]


@pytest.mark.parametrize("version", ["6.2", "7"])
async def test_channels_that_are_taken_away_are_said_and_come_back(version: str, prefix: str, hasty: None) -> None:
    program = redis_server_6() if version == "6.2" else redis_server_7()
    with Server(program) as redis:
        redis.ask("ACL", "SETUSER", "node", "on", ">secret", "~*", "allchannels", "+@all")
        url = redis.url.replace("redis://", "redis://node:secret@")
        async with (
            Broker.connect(redis.url, prefix=prefix) as publisher,
            Broker.connect(url, prefix=prefix) as broker,
            probing(broker, publisher.redis) as (feed, taken),
        ):
            await publisher.publish(progress(0))
            await until(lambda: taken.steps() == [0])
            redis.ask("ACL", "SETUSER", "node", "resetchannels")
            await until(lambda: feed.is_deaf)
            await publisher.publish_many([progress(step) for step in range(1, 10)])
            redis.ask("ACL", "SETUSER", "node", f"&{prefix}:events:*")
            await until(lambda: taken.steps() == list(range(10)))
            await until(lambda: not feed.is_deaf)
            assert taken.gaps == []


async def test_who_may_not_subscribe_is_deaf_though_nobody_wants_anything(prefix: str, hasty: None) -> None:
    with Server(redis_server_7()) as redis:
        redis.ask("ACL", "SETUSER", "node", "on", ">secret", "~*", "resetchannels", "+@all")
        url = redis.url.replace("redis://", "redis://node:secret@")
        async with Broker.connect(url, prefix=prefix) as broker:
            feed = Feed(broker.address, broker.keys, broker.log, Taken(), publisher=broker.redis)
            task = asyncio.create_task(feed.run())
            await until(lambda: feed.is_deaf)
            redis.ask("ACL", "SETUSER", "node", f"&{prefix}:events:*")
            await until(lambda: not feed.is_deaf and feed.probes["heard"])
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_node_that_is_deaf_is_not_ready_and_its_clients_have_everything_within_ten_seconds(
    redis: LocalRedis, prefix: str, start_node: Callable[..., Node]
) -> None:
    async with swallowing(redis.port) as middle, Broker.connect(redis.url, prefix=prefix) as publisher:
        node = await asyncio.to_thread(start_node, redis_url=middle.url)
        async with maxicore(node) as watcher:
            await watcher.subscribe()
            await watcher.synchronise()
            middle.deafen_all()
            since = time.monotonic()
            positions = await publisher.publish_many([progress(step) for step in range(3)])
            assert [(await watcher.receive(12))["event_id"] for _ in positions] == positions
            assert time.monotonic() - since < 10.5
            await until(lambda: is_ready(node, False))
            middle.let_hear()
            await until(lambda: is_ready(node, True))
            last = await publisher.publish(progress(3))
            assert (await watcher.receive())["event_id"] == last
        assert await asyncio.to_thread(node.metric, "trunkline_feed_probes_total", outcome="missed") >= 1
        assert await asyncio.to_thread(node.metric, "trunkline_feed_probes_total", outcome="heard") >= 1


async def is_ready(node: Node, wanted: bool) -> bool:
    status, _, _ = await asyncio.to_thread(http, node.http("/ready"))
    return status == (200 if wanted else 503)


# -- a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as found:
        yield found


async def test_in_a_cluster_each_master_is_probed_in_a_slot_of_its_own(
    cluster: Cluster, prefix: str, hasty: None
) -> None:
    def channel(server: Server) -> str | None:
        names = server.ask("PUBSUB SHARDCHANNELS", f"{prefix}:events:{{probe:*")
        return names[0].decode() if len(names) == 1 else None

    async with Broker.connect(cluster.url, prefix=prefix) as broker, probing(broker) as (feed, taken):
        masters = cluster.servers[:3]
        await until(lambda: all(map(channel, masters)))
        moving = channel(masters[0])
        assert moving is not None
        await asyncio.to_thread(cluster.move, slot_of(moving), masters[1])
        await until(lambda: channel(masters[0]) not in (None, moving))
        before = feed.probes["heard"]
        await until(lambda: feed.probes["heard"] > before + 10)
        assert (feed.probes["missed"], taken.connections) == (0, [True] * 3)
        await asyncio.to_thread(cluster.move, slot_of(moving), masters[0])


async def test_in_a_cluster_each_deaf_connection_is_made_anew(cluster: Cluster, prefix: str, hasty: None) -> None:
    with Server(redis_server_7()) as other:
        async with (
            Redis.from_url(other.url) as elsewhere,
            Broker.connect(cluster.url, prefix=prefix) as broker,
            probing(broker, elsewhere) as (feed, taken),
        ):
            await until(lambda: feed.probes["missed"] >= 3)
            assert feed.is_deaf
            await broker.publish(progress(1))
            await until(lambda: taken.steps() == [1])
            assert taken.connections.count(False) >= 3


async def test_of_a_cluster_one_deaf_connection_is_found_and_the_others_are_left_alone(
    cluster: Cluster, prefix: str, hasty: None
) -> None:
    server = cluster.servers[0]
    names = [f"ws-{number}" for number in range(20)]
    there = next(name for name in names if slot_of(f"{{{name}}}") <= 5460)
    other = next(name for name in names if slot_of(f"{{{name}}}") > 5460)
    async with swallowing(server.port) as middle:
        server.ask("CONFIG SET", "cluster-announce-port", middle.port)
        try:
            await until(lambda: all(middle.port in ports(one) for one in cluster.servers))
            async with Broker.connect(cluster.url, prefix=prefix) as broker, probing(broker) as (feed, taken):
                await join(feed, (there, None), (other, None))
                await until(lambda: feed.probes["heard"] >= 6)
                middle.deafen()
                await broker.publish_many([progress(1, workspace=there), progress(2, workspace=other)])
                await until(lambda: taken.steps() == [2, 1])
                await until(lambda: not feed.is_deaf)
                await broker.publish(progress(3, workspace=there))
                await until(lambda: taken.steps() == [2, 1, 3])
                assert (taken.connections, feed.probes["missed"]) == ([True] * 3 + [False, True], 1)
        finally:
            server.ask("CONFIG SET", "cluster-announce-port", 0)


def ports(server: Server) -> set[int]:
    """Of the masters, as it knows them."""
    return {node[1] for _, _, node, *_ in server.ask("CLUSTER SLOTS")}
