"""Elections: one node leads a workspace at a time, another one soon after it is gone; and how the fleet fares."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from broker import Broker, Unavailable
from broker.election import ALERTS_SECONDS, LEASE_SECONDS, Election, Fleet, Load
from broker.keyspace import Keyspace
from broker.local import LocalRedis

from .proxy import proxy
from .support import private_redis, until

pytestmark = pytest.mark.anyio

WORKSPACES = ["ws-1", "ws-2", "ws-3"]


class Candidate:
    """A node's part, with a Redis client of its own."""

    def __init__(self, broker: Broker, node: str) -> None:
        self.broker = broker
        self.redis = broker.redis
        self.keys: Keyspace = broker.keys
        self.election = Election(broker.redis, broker.keys, node)
        self.fleet = Fleet(broker.redis, broker.keys, node)


@asynccontextmanager
async def candidate(url: str, prefix: str, node: str) -> AsyncIterator[Candidate]:
    async with Broker.connect(url, prefix=prefix) as broker:
        yield Candidate(broker, node)


async def test_the_first_leads_and_goes_on_leading(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a, candidate(redis_url, prefix, "b") as b:
        assert await a.election.lead(WORKSPACES[:2]) == {"ws-1", "ws-2"}
        assert await b.election.lead(WORKSPACES) == {"ws-3"}
        assert await a.election.lead(WORKSPACES) == {"ws-1", "ws-2"}
        assert await b.election.lead([]) == set()


async def test_a_lease_lives_six_seconds_from_its_last_renewal(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a:
        name = a.keys.election("ws-1")
        await a.election.lead(["ws-1"])
        await a.redis.pexpire(name, 100)
        await a.election.lead(["ws-1"])
        assert LEASE_SECONDS * 1000 - 500 < await a.redis.pttl(name) <= LEASE_SECONDS * 1000
        assert await a.redis.get(name) == b"a"


async def test_a_resigned_workspace_is_free_at_once_and_only_its_leader_can_resign(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a, candidate(redis_url, prefix, "b") as b:
        await a.election.lead(WORKSPACES)
        await b.election.resign(WORKSPACES)
        assert await b.election.lead(WORKSPACES) == set()
        await a.election.resign(["ws-1", "ws-9"])
        assert await b.election.lead(WORKSPACES) == {"ws-1"}


async def test_a_leader_that_dies_is_followed_within_ten_seconds(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a, candidate(redis_url, prefix, "b") as b:
        await a.election.lead(["ws-1"])
        started = monotonic()
        await until(lambda: b.election.lead(["ws-1"]), 10)
        assert monotonic() - started > LEASE_SECONDS - 0.5
        assert await a.election.lead(["ws-1"]) == set()


async def test_any_number_of_workspaces_takes_one_round_trip(redis: LocalRedis, prefix: str) -> None:
    names = [f"ws-{number}" for number in range(500)]
    async with proxy(redis.port) as middle, candidate(middle.url, prefix, "a") as a:
        await a.election.lead(["ws-0"])  # the script is known, the connection open
        assert await a.election.lead(names) == set(names)
        middle.lose_answers(1)  # all of them come in one answer, or not at all
        with pytest.raises(Unavailable):
            await a.election.lead(names)
        assert await a.election.lead(names) == set(names)


async def test_all_goes_on_after_a_restart_of_redis(prefix: str) -> None:
    with private_redis() as redis:
        async with candidate(redis.url, prefix, "a") as a, candidate(redis.url, prefix, "b") as b:
            assert await a.election.lead(["ws-1"]) == {"ws-1"}
            await a.fleet.beat(Load(10.0, 20.0))
            await asyncio.to_thread(redis.stop)
            for call in (
                a.election.lead(["ws-1"]),
                a.election.resign(["ws-1"]),
                a.election.inherit("ws-1"),
                a.election.hand_down("ws-1", ["x"]),
                a.fleet.beat(Load(10.0, 20.0)),
                a.fleet.leave(),
            ):
                with pytest.raises(Unavailable):
                    await call
            await asyncio.to_thread(redis.start)
            assert await b.election.lead(["ws-1"]) == {"ws-1"}
            assert await a.election.lead(["ws-1"]) == set()
            assert await a.fleet.beat(Load(10.0, 20.0)) == (10.0, 20.0)


async def test_raised_alerts_are_handed_down(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a, candidate(redis_url, prefix, "b") as b:
        assert (await b.election.inherit("ws-1")).raised == frozenset()
        await a.election.hand_down("ws-1", ["long_queue", "many_failures"])
        await a.election.hand_down("ws-1", ["long_queue", "slow_responses"])
        legacy = await b.election.inherit("ws-1")
        assert legacy.raised == {"long_queue", "slow_responses"}
        assert 0 < await a.redis.ttl(a.keys.alerts("ws-1")) <= ALERTS_SECONDS
        await a.election.hand_down("ws-1", [])
        assert (await b.election.inherit("ws-1")).raised == frozenset()
        seconds, _ = await a.redis.time()
        assert 0 <= seconds - legacy.now + 1 < 10


async def test_the_fleets_load_is_the_mean_of_all_nodes(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a, candidate(redis_url, prefix, "b") as b:
        assert await a.fleet.beat(Load(10.0, 20.0)) == Load(10.0, 20.0)
        assert await b.fleet.beat(Load(50.5, 40.0)) == Load(30.25, 30.0)
        assert await a.fleet.beat(Load(0.0, 100.0)) == Load(25.25, 70.0)
        assert 0 < await a.redis.ttl(a.keys.nodes) <= 60
        await b.fleet.leave()
        assert await a.fleet.beat(Load(0.0, 100.0)) == Load(0.0, 100.0)


async def test_a_node_that_is_no_longer_heard_does_not_count(redis_url: str, prefix: str) -> None:
    async with candidate(redis_url, prefix, "a") as a:
        seconds, _ = await a.redis.time()
        beats = {name: f"{(seconds + shift) * 1000} 100.0 100.0" for name, shift in [("old", -12), ("early", 12)]}
        await a.redis.hset(a.keys.nodes, mapping=beats | {"broken": "x", "near": f"{(seconds - 5) * 1000} 30.0 10.0"})
        assert await a.fleet.beat(Load(10.0, 20.0)) == Load(20.0, 15.0)
        assert set(await a.redis.hkeys(a.keys.nodes)) == {b"a", b"near"}
