"""API keys: what opens, what does not and why, and how nodes hear that one is revoked whatever happens on the way."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from hashlib import sha256
from time import monotonic

import pytest

from broker import Broker, Invalid, Unavailable, credentials
from broker.credentials import (
    PATIENCE_SECONDS,
    REVOCATION_SECONDS,
    Created,
    Credentials,
    EndpointTaken,
    KeyUnknown,
    Outcome,
    Verdict,
)
from broker.local import LocalRedis

from .proxy import proxy
from .support import private_redis, until

pytestmark = pytest.mark.anyio

ENDPOINT, OTHER_ENDPOINT = "coffee-shop-e66b8d23", "tea-house-01"
WORKSPACE = "ws-456"


class Place:
    """Where keys are made and checked; as a node when it runs, and then `heard` is what it was told."""

    def __init__(self, broker: Broker) -> None:
        self.redis = broker.redis
        self.names = broker.keys
        self.credentials = Credentials(broker.redis, broker.keys)
        self.heard: list[str] = []

    async def create(self, endpoint: str = ENDPOINT, workspace: str = WORKSPACE) -> Created:
        return await self.credentials.create(endpoint, workspace)

    async def outcome(self, key: str, endpoint: str = ENDPOINT) -> Outcome:
        return (await self.credentials.check(endpoint, key)).outcome

    def record(self, created: Created) -> str:
        return self.names.key(sha256(created.key.encode()).hexdigest())

    async def everything(self) -> str:
        """All that Redis keeps under this test's prefix."""
        said = []
        for name in await self.redis.keys(f"{self.names.prefix}:*"):
            stream = await self.redis.type(name) == b"stream"
            said.append((name, await self.redis.xrange(name) if stream else await self.redis.hgetall(name)))
        return repr(said)


@contextlib.asynccontextmanager
async def place(url: str, prefix: str) -> AsyncIterator[Place]:
    async with Broker.connect(url, prefix=prefix) as broker:
        yield Place(broker)


@contextlib.asynccontextmanager
async def node(url: str, prefix: str) -> AsyncIterator[Place]:
    async with place(url, prefix) as one:
        running = asyncio.create_task(one.credentials.run(one.heard.append))
        try:
            yield one
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def office(redis_url: str, prefix: str) -> AsyncIterator[Place]:
    """Where an operator makes and revokes keys."""
    async with place(redis_url, prefix) as one:
        yield one


# -- made


async def test_a_key_is_long_random_and_made_of_token_characters(office: Place) -> None:
    made = [await office.create() for _ in range(20)]
    assert len({one.key for one in made}) == len({one.id for one in made}) == 20
    for one in made:
        assert re.fullmatch(r"tlk_[0-9a-f]{48}", one.key)
        assert re.fullmatch(r"key_[0-9a-f]{16}", one.id)


async def test_redis_never_sees_a_key_and_no_listing_shows_its_hash(office: Place) -> None:
    made = await office.create()
    await office.outcome(made.key)
    hash_ = sha256(made.key.encode()).hexdigest()
    kept = await office.everything()
    assert made.key.removeprefix("tlk_") not in kept
    assert hash_ in kept
    listed = repr(await office.credentials.list())
    assert made.key not in listed
    assert hash_ not in listed


async def test_an_endpoint_belongs_to_the_workspace_of_its_first_key_also_when_that_is_revoked(office: Place) -> None:
    first = await office.create()
    await office.create()
    with pytest.raises(EndpointTaken, match=ENDPOINT) as taken:
        await office.create(workspace="ws-1")
    assert WORKSPACE not in str(taken.value)
    for key in await office.credentials.list():
        await office.credentials.revoke(key.id)
    with pytest.raises(EndpointTaken):
        await office.create(workspace="ws-1")
    assert {key.workspace for key in await office.credentials.list()} == {WORKSPACE}
    assert len(await office.credentials.list()) == 2
    assert await office.outcome((await office.create()).key) is Outcome.OPENS
    assert await office.outcome(first.key) is Outcome.KEY_BAD


async def test_workers_find_the_workspace_of_an_endpoint(office: Place) -> None:
    await office.create()
    assert await office.redis.hgetall(f"{office.names.prefix}:endpoint:{ENDPOINT}") == {
        b"workspace": WORKSPACE.encode()
    }


async def test_of_many_that_come_first_one_workspace_gets_the_endpoint(office: Place) -> None:
    attempts = [office.create(workspace=f"ws-{number}") for number in range(20)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(result, Created) for result in results) == 1
    assert sum(isinstance(result, EndpointTaken) for result in results) == 19


@pytest.mark.parametrize(
    ("endpoint", "workspace", "path"),
    [("", "ws", "endpoint"), ("a b", "ws", "endpoint"), ("{a}", "ws", "endpoint"), ("a", "{ws}", "workspace")],
)
async def test_a_name_that_is_none_is_refused_and_nothing_is_kept(
    office: Place, endpoint: str, workspace: str, path: str
) -> None:
    with pytest.raises(Invalid) as invalid:
        await office.create(endpoint, workspace)
    assert invalid.value.path == path
    assert await office.everything() == "[]"


# -- checked


async def test_a_key_opens_its_endpoint_and_says_whose_that_is(office: Place) -> None:
    made = await office.create()
    assert await office.credentials.check(ENDPOINT, made.key) == Verdict(Outcome.OPENS, made.id, WORKSPACE)


async def test_what_does_not_open_says_why(office: Place) -> None:
    key, other = (await office.create()).key, (await office.create(OTHER_ENDPOINT, "ws-1")).key
    assert await office.outcome(key, "no-such-endpoint") is Outcome.ENDPOINT_UNKNOWN
    assert await office.outcome(key, OTHER_ENDPOINT) is Outcome.KEY_ELSEWHERE
    assert await office.outcome(other) is Outcome.KEY_ELSEWHERE
    for wrong in ("", "tlk_", key[:-1], key + "0", key.upper(), f" {key}", "ü", "\ud800", "x" * 100_000):
        assert await office.credentials.check(ENDPOINT, wrong) == Verdict(Outcome.KEY_BAD)


@pytest.mark.parametrize("endpoint", ["", "a b", "{keys}", "ü", "a\n", "x" * 256])
async def test_what_can_be_no_endpoint_is_an_unknown_one(office: Place, endpoint: str) -> None:
    assert await office.outcome((await office.create()).key, endpoint) is Outcome.ENDPOINT_UNKNOWN


async def test_a_revoked_key_is_bad_everywhere(office: Place) -> None:
    made, _ = await office.create(), await office.create(OTHER_ENDPOINT)
    await office.credentials.revoke(made.id)
    assert await office.outcome(made.key) is Outcome.KEY_BAD
    assert await office.outcome(made.key, OTHER_ENDPOINT) is Outcome.KEY_BAD


async def test_a_key_of_an_endpoint_that_went_to_another_workspace_is_bad(office: Place) -> None:
    made = await office.create()
    await office.redis.hset(office.names.endpoint(ENDPOINT), "workspace", "ws-1")
    assert await office.outcome(made.key) is Outcome.KEY_BAD


async def test_a_check_asks_two_things_and_no_more(office: Place) -> None:
    key = (await office.create()).key
    await office.outcome(key)  # the script is known now
    before = await _calls(office)
    assert await office.outcome(key) is Outcome.OPENS
    after = await _calls(office)
    assert {name: after[name] - before[name] for name in after} == {"evalsha": 1, "hget": 1, "script|load": 0}


async def _calls(one: Place) -> dict[str, int]:
    stats = await one.redis.info("commandstats")
    return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "hget", "script|load")}


async def test_a_full_redis_keeps_nobody_out(prefix: str) -> None:
    with private_redis() as redis:
        async with place(redis.url, prefix) as one:
            made = await one.create()
            await one.outcome("unknown")  # the script is known
            await one.redis.config_set("maxmemory", "1")
            assert await one.outcome(made.key) is Outcome.OPENS
            assert not await one.redis.hexists(one.record(made), "used")


# -- listed


async def test_all_that_may_be_told_of_a_key_is_listed(office: Place) -> None:
    before = datetime.now(UTC).timestamp() - 1
    made = [await office.create(), await office.create(OTHER_ENDPOINT, "ws-1"), await office.create()]
    await office.outcome(made[0].key)
    await office.credentials.revoke(made[2].id)
    listed = {key.id: key for key in await office.credentials.list()}
    assert len(listed) == 3
    used, other, revoked = [listed[one.id] for one in made]
    assert [key.endpoint for key in (used, other, revoked)] == [ENDPOINT, OTHER_ENDPOINT, ENDPOINT]
    assert [key.workspace for key in (used, other, revoked)] == [WORKSPACE, "ws-1", WORKSPACE]
    assert before < used.created.timestamp() < datetime.now(UTC).timestamp() + 1
    assert used.last_used is not None
    assert abs(used.last_used - datetime.now(UTC).date()).days <= 1
    assert (used.revoked, other.last_used, other.revoked, revoked.last_used) == (None, None, None, None)
    assert revoked.revoked is not None
    assert revoked.revoked >= revoked.created


async def test_a_list_has_the_oldest_first_and_may_be_narrowed(office: Place) -> None:
    b, c, a = [await office.create(*names) for names in [("two", "ws-1"), ("three", "ws-2"), ("one", "ws-1")]]
    for age, one in enumerate((c, b, a)):
        await office.redis.hset(office.record(one), "created", 1_790_000_000_000 - age)

    async def ids(**filters: str) -> list[str]:
        return [key.id for key in await office.credentials.list(**filters)]

    assert await ids(endpoint="one") == [a.id]
    assert await ids(workspace="ws-1") == [a.id, b.id]
    assert await ids(endpoint="three", workspace="ws-1") == []
    assert await ids(endpoint="") == []
    assert await ids() == [a.id, b.id, c.id]


async def test_a_key_that_somebody_deleted_by_hand_is_in_nobodys_way(office: Place) -> None:
    lost, kept = await office.create(), await office.create()
    await office.redis.delete(office.record(lost))
    assert [key.id for key in await office.credentials.list()] == [kept.id]
    await office.credentials.revoke(lost.id)
    assert [key.id for key in await office.credentials.list()] == [kept.id]
    assert await office.outcome(lost.key) is Outcome.KEY_BAD


async def test_only_a_day_on_which_a_key_opened_its_endpoint_counts_as_use(office: Place) -> None:
    made, _ = await office.create(), await office.create(OTHER_ENDPOINT)
    await office.outcome(made.key, OTHER_ENDPOINT)
    assert not await office.redis.hexists(office.record(made), "used")
    await office.redis.hset(office.record(made), "used", 20_000)
    assert (await office.credentials.list(ENDPOINT))[0].last_used == date(2024, 10, 4)
    await office.outcome(made.key)
    seconds, _ = await office.redis.time()
    assert abs(int(await office.redis.hget(office.record(made), "used")) - seconds // 86400) <= 1


# -- revoked


async def test_every_node_hears_of_a_revoked_key_at_once(office: Place, redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one, node(redis_url, prefix) as two:
        made, kept = await office.create(), await office.create()
        started = monotonic()
        await office.credentials.revoke(made.id)
        await until(lambda: one.heard == two.heard == [made.id])
        assert monotonic() - started < 1
        assert one.credentials.is_revoked(made.id)
        assert not one.credentials.is_revoked(kept.id)


async def test_only_a_key_that_there_is_can_be_revoked_and_the_answer_does_not_repeat_it(office: Place) -> None:
    made = await office.create()
    for wrong in ("", "key_0000000000000000", made.key):
        with pytest.raises(KeyUnknown) as unknown:
            await office.credentials.revoke(wrong)
        assert "tlk_" not in str(unknown.value)
    assert await office.outcome(made.key) is Outcome.OPENS


async def test_a_key_that_is_revoked_again_keeps_its_first_time_and_nodes_hear_again(office: Place) -> None:
    made = await office.create()
    await office.credentials.revoke(made.id)
    await office.redis.hset(office.record(made), "revoked", 1_790_000_000_000)
    await office.credentials.revoke(made.id)
    assert (await office.credentials.list())[0].revoked == datetime.fromtimestamp(1_790_000_000, UTC)
    assert await office.redis.xlen(office.names.revocations) == 2


async def test_a_node_that_starts_late_knows_what_was_revoked_before(
    office: Place, redis_url: str, prefix: str
) -> None:
    made = await office.create()
    await office.credentials.revoke(made.id)
    async with node(redis_url, prefix) as one:
        await until(lambda: one.credentials.is_revoked(made.id))


async def test_more_than_one_read_of_revocations_is_heard_in_order(
    office: Place, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "READ_ENTRIES", 3)
    monkeypatch.setattr(credentials, "MAX_REMEMBERED", 5)
    made = [await office.create() for _ in range(10)]
    for one in made:
        await office.credentials.revoke(one.id)
    async with node(redis_url, prefix) as late:
        await until(lambda: len(late.heard) == 10)
        assert late.heard == [one.id for one in made]
        assert [late.credentials.is_revoked(one.id) for one in made] == [False] * 5 + [True] * 5


async def test_a_strange_entry_among_the_revocations_harms_nobody(office: Place, redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one:
        await office.redis.xadd(office.names.revocations, {"x": "y"})
        await office.redis.xadd(office.names.revocations, {"k": b"\xff"})
        made = await office.create()
        await office.credentials.revoke(made.id)
        await until(lambda: made.id in one.heard)


async def test_revocations_are_kept_for_a_week_and_keys_for_good(office: Place) -> None:
    made = await office.create()
    seconds, _ = await office.redis.time()
    stream = office.names.revocations
    await office.redis.xadd(stream, {"k": "old"}, id=f"{(seconds - REVOCATION_SECONDS - 60) * 1000}-0")
    await office.redis.xadd(stream, {"k": "recent"}, id=f"{(seconds - REVOCATION_SECONDS + 60) * 1000}-0")
    await office.credentials.revoke(made.id)
    kept = [fields[b"k"] for _, fields in await office.redis.xrange(stream)]
    assert kept == [b"recent", made.id.encode()]
    assert REVOCATION_SECONDS - 60 < await office.redis.ttl(stream) <= REVOCATION_SECONDS
    for name in (office.record(made), office.names.endpoint(ENDPOINT), office.names.api_keys):
        assert await office.redis.ttl(name) == -1


# -- while Redis is away


async def test_a_node_whose_connections_are_cut_hears_what_it_missed(office: Place, redis: LocalRedis) -> None:
    async with proxy(redis.port) as middle, node(middle.url, office.names.prefix) as one:
        for _ in range(8):
            made = await office.create()
            middle.cut()
            await office.credentials.revoke(made.id)
            await until(lambda made=made: made.id in one.heard, 5)


async def test_a_lost_notice_is_read_again(office: Place, redis: LocalRedis) -> None:
    async with proxy(redis.port) as middle, node(middle.url, office.names.prefix) as one:
        first, second = await office.create(), await office.create()
        await office.credentials.revoke(first.id)
        await until(lambda: first.id in one.heard)
        middle.lose_answers(1)
        await office.credentials.revoke(second.id)
        await until(lambda: second.id in one.heard, 5)


async def test_a_redis_that_stands_still_holds_nobody_up_and_goes_on(office: Place, redis: LocalRedis) -> None:
    async with proxy(redis.port) as middle, node(middle.url, office.names.prefix) as one:
        await _is_reading(office, one)
        middle.pause()
        made = await office.create()
        await office.credentials.revoke(made.id)
        started = monotonic()
        with pytest.raises(Unavailable):
            await one.outcome(made.key)
        assert monotonic() - started < PATIENCE_SECONDS + 1
        middle.go_on()
        await until(lambda: made.id in one.heard, 5)


async def _is_reading(office: Place, one: Place) -> None:
    made = await office.create()
    await office.credentials.revoke(made.id)
    await until(lambda: made.id in one.heard)


async def test_a_restart_of_redis_is_survived_and_nothing_of_it_missed(prefix: str) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        async with place(redis.url, prefix) as office, node(redis.url, prefix) as one:
            made, kept = await office.create(), await office.create()
            await asyncio.to_thread(redis.stop)
            for call in (
                office.create(),
                office.credentials.check(ENDPOINT, made.key),
                office.credentials.list(),
                office.credentials.revoke(made.id),
            ):
                with pytest.raises(Unavailable) as away:
                    await call
                assert sha256(made.key.encode()).hexdigest()[:8] not in str(away.value)
                assert away.value.__cause__ is None
            await asyncio.to_thread(redis.start)
            assert await office.outcome(made.key) is Outcome.OPENS
            await office.credentials.revoke(made.id)
            await until(lambda: made.id in one.heard, 5)
            assert await office.outcome(kept.key) is Outcome.OPENS


async def test_a_redis_that_lost_everything_is_followed_too(prefix: str) -> None:
    with private_redis() as redis:
        async with place(redis.url, prefix) as office, node(redis.url, prefix) as one:
            await _is_reading(office, one)
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            # Its clock may be behind the one before: positions begin anew.
            await office.redis.xadd(office.names.revocations, {"k": "early"}, id="1-0")
            await until(lambda: "early" in one.heard, 5)
            await _is_reading(office, one)


async def test_an_outage_is_logged_once_and_names_no_key(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    with private_redis() as redis:
        async with place(redis.url, prefix) as office, node(redis.url, prefix) as one:
            made = await office.create()
            await office.credentials.revoke(made.id)
            await until(lambda: made.id in one.heard)
            with caplog.at_level("DEBUG", logger="trunkline"):
                await asyncio.to_thread(redis.stop)
                await until(lambda: caplog.records)
                await asyncio.sleep(0.5)  # some more attempts
            assert len(caplog.records) == 1
            assert made.id not in caplog.text
            await asyncio.to_thread(redis.start)
