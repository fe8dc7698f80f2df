"""FreeAgentics' limits over real nodes (seed 003, "Rate Limiting"), and whose a token is.

Users, addresses and messages are counted over the fleet, so most tests have two nodes. All figures are the document's;
where another limit would stand in the way of the one that is looked at, it is lifted.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed

from broker import address
from broker.keyspace import Keyspace
from broker.local import LocalRedis
from broker.topology import clients

from .freeagentics import QUIET, TYPES, FreeAgentics, freeagentics, user
from .support import SECRET, Node, http, maxicore, private_redis, token, until
from .test_secrets import needles

pytestmark = pytest.mark.anyio

AT_ANY_PACE: dict[str, Any] = QUIET | {"max_connects_per_minute": -1}
CONNECTION_TYPES = ["connection_established", "subscription_confirmed", "subscription_error", "command_error"]


@pytest.fixture(scope="module")
def pair(redis: LocalRedis) -> Iterator[list[Node]]:
    """Two nodes of the profile `production` for all tests of this module: each has users of its own."""
    prefix = f"test-{secrets.token_hex(4)}"
    nodes = [Node(redis.url, prefix, **QUIET) for _ in range(2)]
    try:
        yield [node.start() for node in nodes]
    finally:
        for node in nodes:
            node.stop()


@pytest.fixture(scope="module")
def development(redis: LocalRedis) -> Iterator[Node]:
    """A node of the profile `development`."""
    node = Node(redis.url, f"test-{secrets.token_hex(4)}", profile="development", **AT_ANY_PACE)
    try:
        yield node.start()
    finally:
        node.stop()


class Clients(contextlib.AsyncExitStack):
    """Clients that stay until the end of a test."""

    async def join(self, node: Node, credentials: str, **options: Any) -> FreeAgentics:
        """A client that is admitted."""
        client = await self.enter_async_context(freeagentics(node, credentials, **options))
        assert client.greeting[0]["type"] == "connection_established", client.greeting
        return client


def active(client: FreeAgentics) -> int:
    """How many connections its user has, as its greeting says."""
    info = client.greeting[1]
    assert info["type"] == "connection_pool_info"
    return int(info["data"]["active_connections"])


async def refusal(node: Node, credentials: str, **options: Any) -> dict[str, Any]:
    """What a client is told that finds no place. It is accepted, told and closed."""
    async with freeagentics(node, credentials, **options) as client:
        assert [message["type"] for message in client.greeting] == ["connection_error"], client.greeting
        assert (await client.closed())[0] == 1013
        assert len(client.messages) == 1
    said: dict[str, Any] = client.greeting[0]["data"]
    assert said["error_code"] == "CONNECTION_LIMIT_EXCEEDED"
    assert said["close_code"] == 1013
    assert said["error_message"]
    assert isinstance(said["retry_after"], int)
    assert 1 <= said["retry_after"] <= 60
    return said


async def burst(client: FreeAgentics, count: int, message: Any = None) -> list[dict[str, Any]]:
    """Say something so often, and read an answer to each. Warnings are among the answers, and no answer themselves."""
    for _ in range(count):
        await client.send(message or {"type": "ping"})
    answers = []
    while count:
        answers.append(await client.receive())
        count -= answers[-1]["type"] != "rate_limit_warning"
    return answers


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


def subject(credentials: str) -> str:
    return str(jwt.decode(credentials, options={"verify_signature": False})["sub"])


class Places:
    """What Redis knows of a user: its leases with their ends, and its admissions of the last minute."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._keys = Keyspace(prefix)

    async def now(self) -> int:
        """Redis' own time (ms)."""
        seconds, microseconds = await self._redis.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def leases(self, credentials: str) -> dict[str, int]:
        """The leases that have not ended, with the time (ms) at which they will."""
        key = self._keys.connections(f"freeagentics:user:{subject(credentials)}")
        now = await self.now()
        entries = await self._redis.zrange(key, 0, -1, withscores=True)
        return {lease.decode(): int(end) for lease, end in entries if end > now}

    async def admissions(self, credentials: str) -> int:
        return int(await self._redis.zcard(self._keys.admissions(f"freeagentics:user:{subject(credentials)}")))

    async def are(self, credentials: str, count: int) -> None:
        """Wait until so many are taken."""

        async def so_many() -> bool:
            return len(await self.leases(credentials)) == count

        await until(so_many, what=f"{count} places to be taken")


@contextlib.asynccontextmanager
async def places_in(url: str, prefix: str) -> AsyncIterator[Places]:
    async with clients.client(address.read(url), "test") as redis:
        yield Places(redis, prefix)


@pytest.fixture
async def places(pair: list[Node]) -> AsyncIterator[Places]:
    async with places_in(pair[0].redis_url, pair[0].prefix) as places:
        yield places


# Connections of a user


async def test_the_sixth_connection_of_a_user_is_refused_on_either_node(pair: list[Node], places: Places) -> None:
    me = user()
    async with Clients() as clients:
        five = [await clients.join(pair[number % 2], me) for number in range(5)]
        assert [active(client) for client in five] == [1, 2, 3, 4, 5]
        pool = five[2].greeting[1]["data"]
        assert (pool["max_connections"], pool["pool_utilization"]) == (5, 0.6)
        held = await places.leases(me)
        refused_before = [node.metric("trunkline_connections_refused_total") for node in pair]
        for node in pair:
            await refusal(node, me)
        assert [node.metric("trunkline_connections_refused_total") - 1 for node in pair] == refused_before
        assert (await places.leases(me)).keys() == held.keys()
        for client in five:
            assert await client.synchronise() == []

        await clients.join(pair[0], user())  # who is somebody else has places of its own
        await five[0].socket.close()
        await places.are(me, 4)
        assert active(await clients.join(pair[1], me)) == 5
        await refusal(pair[0], me)


async def test_ten_connections_per_minute_of_a_user_are_admitted_and_refused_attempts_are_none(
    pair: list[Node], places: Places
) -> None:
    me = user()
    async with Clients() as clients:
        for number in range(5):
            await clients.join(pair[number % 2], me)
        for number in range(7):
            await refusal(pair[number % 2], me)
        assert await places.admissions(me) == 5
    await places.are(me, 0)
    for number in range(5):
        async with freeagentics(pair[number % 2], me) as client:
            assert active(client) == 1, "refused attempts count"
        await places.are(me, 0)
    for node in pair:
        await refusal(node, me)
    assert (await places.leases(me), await places.admissions(me)) == ({}, 10)
    async with freeagentics(pair[0], user()) as other:
        assert active(other) == 1


async def test_who_is_sent_away_by_a_restart_finds_a_place_at_once_however_often(
    start_node: Callable[..., Node], redis_url: str, prefix: str
) -> None:
    """Three drains in a row and a restart of the whole fleet are 25 connects of a user that may have 10 a minute."""
    settings = QUIET | {"drain_seconds": 0.3}
    nodes = [start_node(**settings) for _ in range(2)]
    me = user()

    async def come_back(client: FreeAgentics, clients: Clients, node: Node) -> FreeAgentics:
        """As the document's own client does, without its delay."""
        assert (await client.closed())[0] == 1012
        assert types(client.messages[-1:]) == ["disconnect_warning"]
        return await clients.join(node, me)

    async with Clients() as clients, places_in(redis_url, prefix) as places:
        five = [await clients.join(nodes[0], me) for _ in range(5)]
        for turn in range(3):
            leaving, staying = nodes[turn % 2], nodes[1 - turn % 2]
            leaving.signal(signal.SIGTERM)
            five = await asyncio.gather(*(come_back(client, clients, staying) for client in five))
            assert await asyncio.to_thread(leaving.wait) == 0
            assert len(await places.leases(me)) == 5
            await refusal(staying, me)
            await asyncio.to_thread(leaving.start)
        for node in nodes:
            node.signal(signal.SIGTERM)
        for client in five:
            assert (await client.closed())[0] == 1012
        assert [await asyncio.to_thread(node.wait) for node in nodes] == [0, 0]
        assert (await places.leases(me), await places.admissions(me)) == ({}, 0)
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in nodes))
        for number in range(5):
            await clients.join(nodes[number % 2], me)
        for node in nodes:
            await refusal(node, me)


# Nodes that die

LEASE_SECONDS = 45
STEP_SECONDS = 0.05


class Run:
    """A run of connects, disconnects and node deaths, and the model: who is live, and what dead nodes have left.

    Redis says when a lease ends. One thing happens at a time, so that each connect's lease is known.
    """

    def __init__(self, nodes: list[Node], places: Places, seed: int) -> None:
        self.nodes, self.places = nodes, places
        self.chance = random.Random(seed)
        self.users = [user() for _ in range(3)]
        self.clients = Clients()
        self.live: dict[str, dict[str, tuple[Node, FreeAgentics]]] = {me: {} for me in self.users}  # by lease
        self.left: dict[str, dict[str, int]] = {me: {} for me in self.users}  # a dead node's leases: their ends (ms)
        self.outcomes = {"admitted": 0, "refused": 0, "refused for the dead": 0, "left": 0}

    async def step(self) -> None:
        me = self.chance.choice(self.users)
        if self.live[me] and self.chance.random() < 0.3:
            await self.disconnect(me)
        else:
            await self.connect(me)
        await self.check(me)

    def taken(self, me: str, now: int) -> int:
        return len(self.live[me]) + sum(end > now for end in self.left[me].values())

    async def connect(self, me: str) -> None:
        node = self.chance.choice(self.nodes)
        before, most = await self.places.leases(me), self.taken(me, await self.places.now())
        client = await self.clients.enter_async_context(freeagentics(node, me))
        least = self.taken(me, await self.places.now())
        if client.greeting[0]["type"] == "connection_established":
            assert least < 5, "admitted beside five others"
            assert least < active(client) <= most + 1
            [lease] = (await self.places.leases(me)).keys() - before.keys()
            self.live[me][lease] = node, client
            self.outcomes["admitted"] += 1
        else:
            assert most >= 5, "refused though there was a place"
            assert client.greeting[0]["data"]["error_code"] == "CONNECTION_LIMIT_EXCEEDED"
            assert 1 <= client.greeting[0]["data"]["retry_after"] <= LEASE_SECONDS
            assert (await client.closed())[0] == 1013
            assert (await self.places.leases(me)).keys() <= before.keys()
            self.outcomes["refused for the dead" if len(self.live[me]) < 5 else "refused"] += 1

    async def disconnect(self, me: str) -> None:
        lease = self.chance.choice(list(self.live[me]))
        _, client = self.live[me].pop(lease)
        await client.socket.close()

        async def is_free() -> bool:
            return lease not in await self.places.leases(me)

        await until(is_free)
        self.outcomes["left"] += 1

    async def check(self, me: str) -> None:
        """Five at most, and none of the living without a place."""
        leases = await self.places.leases(me)
        assert self.live[me].keys() <= leases.keys() <= self.live[me].keys() | self.left[me].keys()
        assert len(self.live[me]) <= len(leases) <= 5

    async def die(self, node: Node, number: signal.Signals) -> None:
        """End a node and start it again: one that is killed leaves its clients' leases, one that is asked gives back
        all of them before it has gone."""
        node.signal(number)
        await asyncio.to_thread(node.wait)
        now = await self.places.now()
        for me in self.users:
            leases = await self.places.leases(me)
            gone = [lease for lease, (on, _) in self.live[me].items() if on is node]
            for lease in gone:
                _, client = self.live[me].pop(lease)
                assert (await client.closed())[0] == (1006 if number is signal.SIGKILL else 1012)
                if number is signal.SIGKILL:
                    assert leases[lease] - now <= LEASE_SECONDS * 1000
                    self.left[me][lease] = leases[lease]
            assert number is signal.SIGKILL or not leases.keys() & set(gone)
        await asyncio.to_thread(node.start)

    async def last_end(self) -> int:
        """When the last lease of a dead node ends (ms)."""
        return max((end for left in self.left.values() for end in left.values()), default=0)


async def test_a_killed_nodes_places_are_free_when_its_leases_end_not_before_and_never_are_there_more_than_five(
    start_node: Callable[..., Node], redis_url: str, prefix: str
) -> None:
    """With leases of their real length, so once, and a minute long."""
    nodes = [start_node(drain_seconds=0.2, **AT_ANY_PACE) for _ in range(2)]
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with places_in(redis_url, prefix) as places:
        run = Run(nodes, places, seed)
        async with run.clients:
            deaths = [(nodes[0], signal.SIGKILL), (nodes[1], signal.SIGTERM), (nodes[1], signal.SIGKILL)]
            for node, number in deaths:
                for _ in range(run.chance.randint(25, 40)):
                    await run.step()
                while not any(on is node for live in run.live.values() for on, _ in live.values()):
                    await run.step()
                await run.die(node, number)
            while await places.now() <= await run.last_end():
                await run.step()
                await asyncio.sleep(STEP_SECONDS)

            for me in run.users:
                while len(run.live[me]) < 5:
                    await run.connect(me)  # all are free again
                await run.connect(me)
                for node in nodes:
                    await refusal(node, me)
                for _, client in run.live[me].values():
                    assert await client.synchronise() == []
            print(run.outcomes)
            assert min(run.outcomes.values()) > 0, run.outcomes


# Connections of an address


async def test_who_comes_from_an_address_is_what_a_trusted_proxy_says_and_nobody_else(
    start_node: Callable[..., Node],
) -> None:
    open_to_all = QUIET | {"max_connections_per_address": 2}
    plain, other = start_node(**open_to_all), start_node(trusted_proxies="127.0.0.1,10.0.0.0/8", **open_to_all)
    async with Clients() as clients:

        async def join(node: Node, *forwarded: str) -> None:
            await clients.join(node, user(), additional_headers=[("X-Forwarded-For", value) for value in forwarded])

        async def find_none(node: Node, *forwarded: str) -> None:
            await refusal(node, user(), additional_headers=[("X-Forwarded-For", value) for value in forwarded])

        # Nobody is trusted: whatever is claimed, the peer counts.
        await join(plain, "203.0.113.1")
        await join(plain, "203.0.113.2")
        await find_none(plain, "203.0.113.3")
        await find_none(plain)

        # The same peer as a trusted proxy is not itself who comes.
        await find_none(other)
        await join(other, "203.0.113.1")
        await join(other, "203.0.113.1")
        await find_none(other, "203.0.113.1")
        # What the client wrote itself stands further left, or in a header before.
        await find_none(other, "198.51.100.7, 203.0.113.1")
        await find_none(other, "198.51.100.7", "203.0.113.1")
        await find_none(other, "198.51.100.7, 203.0.113.1, 10.1.2.3")
        await join(other, "203.0.113.1, 203.0.113.2")

        # A customer's IPv6 network is one address.
        await join(other, "2001:db8:1:2::1")
        await join(other, "2001:db8:1:2:aaaa::2")
        await find_none(other, "2001:db8:1:2:ffff:ffff:ffff:ffff")
        await join(other, "2001:db8:1:3::1")
        # IPv4 in IPv6 is IPv4.
        await find_none(other, "::ffff:203.0.113.1")


async def test_twenty_connections_of_an_address_in_production(start_node: Callable[..., Node]) -> None:
    nodes = [start_node(), start_node()]
    async with Clients() as clients:
        for number in range(4):
            me = user()
            for _ in range(5):
                await clients.join(nodes[number % 2], me)
        for node in nodes:
            await refusal(node, user())


# Messages


async def test_a_connections_messages_are_warned_of_once_refused_past_the_limit_and_ended_at_twice(
    pair: list[Node],
) -> None:
    me = user(scope="events:read commands:send")
    async with freeagentics(pair[0], me) as client, freeagentics(pair[0], me) as neighbour:
        assert set(types(await burst(client, 94))) == {"pong"}
        before = time.time()
        answers = await burst(client, 1)
        [warning] = [answer for answer in answers if answer["type"] == "rate_limit_warning"]
        resets = datetime.fromisoformat(warning["data"].pop("reset_time")).timestamp()
        assert before < resets <= before + 61
        assert warning["data"] == {
            "limit_type": "messages_per_minute",
            "current_usage": 95,
            "limit": 100,
            "recommended_action": "Reduce message frequency",
        }
        assert types(await burst(client, 5)) == ["pong"] * 5

        [refused] = await burst(client, 1)  # the 101st
        assert refused["type"] == "command_error"
        assert refused["timestamp"]
        assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"
        assert refused["data"]["error_message"]
        assert refused["data"]["request_id"]
        assert 1 <= refused["data"]["retry_after"] <= 60
        command = {"agent_id": "agent_123", "command": "stop", "request_id": "req-7"}
        [refused] = await burst(client, 1, {"type": "command", "data": command})
        assert refused["type"] == "command_error"
        assert command.items() <= refused["data"].items()
        assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"
        for kind in ("subscribe", "unsubscribe"):
            [refused] = await burst(client, 1, {"type": kind, "data": {"events": ["metrics"]}})
            assert refused["type"] == "subscription_error"
            assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"
        [refused] = await burst(client, 1, "not JSON at all")
        assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"

        assert set(types(await burst(client, 94))) == {"command_error"}  # up to the 199th
        with contextlib.suppress(ConnectionClosed):
            await client.send({"type": "ping"})
        assert (await client.closed())[0] == 1008
        last = client.messages[-1]
        assert last["type"] == "connection_error"
        assert (last["data"]["error_code"], last["data"]["close_code"]) == ("RATE_LIMIT_EXCEEDED", 1008)
        assert await neighbour.synchronise() == []


async def test_a_users_messages_are_counted_over_all_its_connections_on_all_nodes_and_after_a_reconnect(
    pair: list[Node], places: Places
) -> None:
    me = user()
    async with Clients() as clients:
        five = [await clients.join(pair[number % 2], me) for number in range(5)]
        answers = [answer for client in five for answer in await burst(client, 100)]
        warnings = [answer["data"] for answer in answers if answer["type"] == "rate_limit_warning"]
        assert [warning["current_usage"] for warning in warnings if warning["limit"] == 100] == [95] * 5
        [warning] = [warning for warning in warnings if warning["limit"] != 100]
        assert warning["limit_type"] == "user_messages_per_minute"
        assert (warning["current_usage"], warning["limit"]) == (475, 500)
        assert types(answers).count("pong") == 500

        for client in five[:2]:
            await client.socket.close()
        await places.are(me, 3)
        for node in pair:
            again = await clients.join(node, me)
            [refused] = await burst(again, 1)
            assert (refused["type"], refused["data"]["error_code"]) == ("command_error", "RATE_LIMIT_EXCEEDED")
            assert 1 <= refused["data"]["retry_after"] <= 60
            [refused] = await burst(again, 1, {"type": "subscribe", "data": {"events": ["metrics"]}})
            assert (refused["type"], refused["data"]["error_code"]) == ("subscription_error", "RATE_LIMIT_EXCEEDED")
        other = await clients.join(pair[0], user())
        assert await other.synchronise() == []


async def test_a_message_costs_one_round_trip_and_a_refused_one_none(
    start_node: Callable[..., Node], prefix: str
) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url, **QUIET)

        async with freeagentics(node) as client, clients.client(address.read(redis.url), "test") as asking:

            async def calls() -> int:
                stats = await asking.info("commandstats")
                return int(stats["cmdstat_evalsha"]["calls"])

            async def cost(count: int) -> int:
                before = await calls()
                await burst(client, count)
                return await calls() - before

            # A renewal and a beat may come between.
            assert 0 <= await cost(100) - 100 <= 3
            assert await cost(90) <= 3
        assert "EVAL " not in node.output()


@pytest.mark.parametrize(("profile", "size"), [("production", 64 * 1024), ("development", 128 * 1024)])
async def test_a_message_may_have_so_many_bytes(profile: str, size: int, pair: list[Node], development: Node) -> None:
    node = pair[0] if profile == "production" else development

    def ping(length: int) -> str:
        empty = json.dumps({"type": "ping", "padding": ""})
        return json.dumps({"type": "ping", "padding": "x" * (length - len(empty))})

    async with freeagentics(node) as client:
        assert types(await burst(client, 1, ping(size))) == ["pong"]
        await client.send(ping(size + 1))
        assert (await client.closed())[0] == 1009


async def test_ten_invalid_messages_in_a_row_end_a_connection(pair: list[Node]) -> None:
    async with freeagentics(pair[0]) as client:
        for invalid in ("{", {"type": "subscribe"}, {"type": "shout"}):
            refused = await burst(client, 9 // 3, invalid)
            assert [answer["data"]["error_code"] for answer in refused] == ["INVALID_MESSAGE_FORMAT"] * 3
        assert await client.synchronise() == []  # not in a row any more
        await burst(client, 10, "{")
        assert (await client.closed())[0] == 1008


# Event types


async def test_twenty_event_types_and_an_alias_is_none_of_its_own(pair: list[Node]) -> None:
    async with freeagentics(pair[0]) as client:
        twenty = [*TYPES, "command_error"]
        assert len(twenty) == 20
        said = await client.subscribe(twenty[:10])
        said = await client.subscribe([*twenty, "metrics", "system_alerts"])
        assert len(said["data"]["events"]) == 20
        for events in (["subscription_error"], ["agent_status", "subscription_confirmed"]):
            [refused] = await burst(client, 1, {"type": "subscribe", "data": {"events": events}})
            assert refused["type"] == "subscription_error"
            assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"
            assert refused["data"]["error_message"]
            assert set(TYPES) <= set(refused["data"]["supported_events"])
        assert len((await client.unsubscribe(events=["metrics"]))["data"]["events"]) == 19, "what was refused counts"
        assert len((await client.subscribe(["subscription_error"]))["data"]["events"]) == 20


# Profiles and settings


async def test_development_allows_more(development: Node) -> None:
    me = user()
    async with Clients() as clients:
        ten = [await clients.join(development, me) for _ in range(10)]
        assert ten[-1].greeting[1]["data"]["max_connections"] == 10
        await refusal(development, me)

        answers = await burst(ten[0], 200)
        [warning] = [answer["data"] for answer in answers if answer["type"] == "rate_limit_warning"]
        assert (warning["current_usage"], warning["limit"]) == (190, 200)
        [refused] = await burst(ten[0], 1)
        assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"
        said = await ten[1].subscribe([*TYPES, *CONNECTION_TYPES])
        assert len(said["data"]["events"]) == len(TYPES) + 4 > 20


async def test_settings_replace_every_figure(start_node: Callable[..., Node]) -> None:
    node = start_node(
        max_connections_per_user=2,
        max_connections_per_address=4,
        max_connects_per_minute=3,
        max_messages_per_minute=4,
        max_user_messages_per_minute=6,
        max_event_types=2,
        max_message_bytes=200,
    )
    me = user()
    async with Clients() as clients:
        first, second = [await clients.join(node, me) for _ in range(2)]
        assert first.greeting[1]["data"]["max_connections"] == 2
        await refusal(node, me)
        assert types(await burst(first, 5)).count("pong") == 4
        await second.subscribe(["metrics", "agent_status"])
        # The user's sixth message.
        warning, refused = await burst(second, 1, {"type": "subscribe", "data": {"events": ["system_alert"]}})
        assert (warning["data"]["limit_type"], warning["data"]["limit"]) == ("user_messages_per_minute", 6)
        assert (refused["type"], refused["data"]["error_code"]) == ("subscription_error", "RATE_LIMIT_EXCEEDED")
        assert types(await burst(second, 1)) == ["command_error"]
        await second.send("x" * 201)
        assert (await second.closed())[0] == 1009
        await until(lambda: node.metric("trunkline_leases") == 1)
        await clients.join(node, me)
        await first.socket.close()
        await until(lambda: node.metric("trunkline_leases") == 1)
        await refusal(node, me)  # the fourth in a minute
        for _ in range(3):
            await clients.join(node, user())
        await refusal(node, user())
    for limit in ("user", "address"):
        refused_by = f"max_connections_per_{limit}"
        assert node.metric("trunkline_connections_refused_total", limit=refused_by) == 1
    assert node.metric("trunkline_connections_refused_total", limit="max_connects_per_minute") == 1


async def test_settings_lift_every_limit(start_node: Callable[..., Node]) -> None:
    names = ("connections_per_user", "connections_per_address", "connects_per_minute", "messages_per_minute")
    lifted = {f"max_{name}": -1 for name in (*names, "user_messages_per_minute", "event_types")}
    node = start_node(**lifted)
    me = user()
    async with Clients() as clients:
        many = [await clients.join(node, me) for _ in range(22)]
        assert [active(client) for client in many] == list(range(1, 23))
        assert set(types(await burst(many[0], 600))) == {"pong"}
        assert len((await many[1].subscribe([*TYPES, *CONNECTION_TYPES]))["data"]["events"]) == len(TYPES) + 4


# Who says who it is


def fingerprint(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


async def test_a_token_for_one_client_is_no_others(pair: list[Node]) -> None:
    bound = user(fingerprint=fingerprint("device-1"))
    right, wrong = ({"additional_headers": {"X-Client-Fingerprint": value}} for value in ("device-1", "device-2"))
    async with freeagentics(pair[0], bound, **right) as client:
        assert types(client.greeting) == ["connection_established", "connection_pool_info"]
        # A token that renews is held to the same.
        foreign = user(sub=subject(bound), fingerprint=fingerprint("device-2"))
        await client.send({"type": "auth", "data": {"token": foreign}})
        await denied(client)
    for options in (wrong, {}):
        async with freeagentics(pair[0], bound, **options) as client:
            await denied(client)
    async with freeagentics(pair[0], user(), **wrong) as client:  # whose token has none may say what it likes
        assert await client.synchronise() == []

    async with maxicore(pair[0], bound, **right) as relay:
        assert await relay.synchronise() == []
    for options in (wrong, {}):
        for credentials in (bound, ""):
            async with maxicore(pair[0], credentials, **options) as relay:
                if not credentials:
                    await relay.send({"type": "auth", "token": f"Bearer {bound}"})
                assert (await relay.receive())["error"]["code"] == "INVALID_TOKEN"
                assert (await relay.closed())[0] == 1008


async def denied(client: FreeAgentics) -> None:
    """It is told, as the document shows, and closed."""
    assert (await client.closed())[0] == 1008
    said = client.messages[-1]
    assert said["type"] == "connection_error"
    assert said["timestamp"]
    assert said["data"] == {
        "error_code": "AUTHENTICATION_FAILED",
        "error_message": "Invalid or expired token",
        "close_code": 1008,
        "retry_after": 30,
    }


async def test_a_clients_version_is_logged_and_counted_by_its_major(pair: list[Node]) -> None:
    def counted(major: str) -> float:
        return pair[0].metric("trunkline_client_versions_total", dialect="freeagentics", major=major)

    secret = user()
    odd = ["", secret, 'x"} 1\n', "9" * 400, "²", "../../etc"]
    for version in ("2.31.4-beta", "v2", "17"):
        async with freeagentics(pair[0], additional_headers={"X-Client-Version": version}):
            await until(lambda version=version: version in pair[0].output())
    assert (counted("2"), counted("17"), counted("other")) == (2, 1, 0)
    for version in odd:
        header = version.encode().replace(b"\n", b"").decode("latin-1")
        async with freeagentics(pair[0], additional_headers={"X-Client-Version": header}):
            pass
    await until(lambda: counted("other") == len(odd))
    assert not any(needle in pair[0].output() for needle in needles(secret))


async def test_a_token_that_expires_is_warned_of_a_minute_before_and_may_be_renewed_in_place(pair: list[Node]) -> None:
    now = int(time.time())

    def expiring(seconds: float, **claims: Any) -> str:
        return user(exp=now + seconds, **claims)

    later, renewed, soon = expiring(62.5), expiring(2.5), expiring(2.5)
    async with Clients() as clients:
        forewarned, renewing, expires = [await clients.join(pair[0], one) for one in (later, renewed, soon)]
        # Less than a minute is left of these: they are warned at once.
        for client in (renewing, expires):
            warning = await client.until("disconnect_warning")
            assert datetime.fromisoformat(warning["data"]["disconnect_time"]).timestamp() == pytest.approx(
                now + 2.5, 0, 0.3
            )
        await renewing.send({"type": "auth", "data": {"token": user(sub=subject(renewed))}})
        assert await renewing.synchronise() == [], "a renewal is silent"

        warning = await forewarned.until("disconnect_warning")
        assert now + 2.4 < time.time() < now + 4.5
        assert warning["data"]["close_code"] == 1008
        assert warning["data"]["recommended_action"]
        assert datetime.fromisoformat(warning["data"]["disconnect_time"]).timestamp() == pytest.approx(
            now + 62.5, 0, 0.3
        )
        await denied(expires)
        assert time.time() > now + 2.4
        assert types(expires.messages[2:]) == ["disconnect_warning", "connection_error"]
        assert await forewarned.synchronise() == []
        assert await renewing.synchronise() == []

        # Another user's token is no renewal: whose messages and places are counted does not change.
        await renewing.send({"type": "auth", "data": {"token": user()}})
        await denied(renewing)
        await forewarned.send({"type": "auth", "data": {"token": "no token"}})
        await denied(forewarned)


async def test_no_token_is_in_the_log_the_metrics_or_an_answer(start_node: Callable[..., Node]) -> None:
    node = start_node(log_level="debug", **AT_ANY_PACE)
    good, me = user(scope="events:read commands:send"), user()
    bad = [token(secret="another-secret-of-at-least-32-bytes!"), token(ttl=-60), f"rubbish-{secrets.token_hex(16)}"]
    heard: list[Any] = []
    for credentials in (good, *bad):
        for how in ({"credentials": credentials}, {"additional_headers": {"Authorization": f"Bearer {credentials}"}}):
            async with freeagentics(node, **({"credentials": ""} | how)) as client:  # type: ignore[arg-type]
                misplaced: list[Any] = [
                    {"type": credentials},
                    {"type": "subscribe", "data": {"events": [credentials], "agents": [credentials]}},
                    {"type": "command", "data": {"agent_id": credentials, "command": credentials}},
                    {"type": "command", "data": {"agent_id": credentials, "command": "stop"}},
                    {"type": "configure", "data": {credentials: 1}},
                    {"type": "disconnect", "data": {"reason": credentials}},
                ]
                with contextlib.suppress(ConnectionClosed):
                    for message in misplaced:
                        await client.send(message)
                heard += [await client.closed(), client.messages]
    async with freeagentics(node, me) as client:
        for credentials in (me, *bad):
            with contextlib.suppress(ConnectionClosed):
                await client.send({"type": "auth", "data": {"token": credentials}})
        heard += [await client.closed(), client.messages]
    await until(lambda: node.metric("trunkline_connections") == 0)
    told = json.dumps(heard) + node.output() + http(node.http("/metrics"))[2].decode()
    for credentials in (good, me, *bad):
        assert not [needle for needle in needles(credentials) if needle in told]
    assert SECRET not in told
