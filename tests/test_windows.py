"""Messages per window: exact over all nodes while Redis answers, by the node's own count while it does not."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from broker import address
from broker.keyspace import Keyspace
from broker.limits import Taken, Window, Windows, decisions, windows
from broker.limits.decisions import MAX_BATCH, short
from broker.local import LocalRedis
from broker.topology import clients

from .proxy import proxy
from .support import private_redis, until

HOLDER = "freeagentics:user-1"


# -- the window itself


def test_a_window_starts_with_its_first_message_and_ends_after_its_seconds() -> None:
    window = Window(60.0)
    assert window.is_over(0.0)
    assert window.count(1, 2, 100.0) == Taken(True, 1, 60.0)
    assert window.count(1, 2, 130.0) == Taken(True, 2, 30.0)
    assert window.count(1, 2, 159.0) == Taken(False, 2, 1.0)
    assert not window.is_over(159.9)
    assert window.count(1, 2, 160.0) == Taken(True, 1, 60.0)


def test_what_is_refused_is_not_counted_and_starts_no_window() -> None:
    window = Window(60.0)
    assert window.count(3, 2, 0.0) == Taken(False, 0, 60.0)
    assert window.is_over(0.0)
    assert window.count(1, 2, 10.0) == Taken(True, 1, 60.0)
    assert window.count(2, 2, 20.0) == Taken(False, 1, 50.0)
    assert window.count(1, 2, 20.0) == Taken(True, 2, 50.0)
    assert Window(60.0).count(1, 0, 0.0) == Taken(False, 0, 60.0)


def test_what_was_granted_elsewhere_counts_and_a_window_it_starts_ends_with_the_one_elsewhere() -> None:
    window = Window(60.0)
    window.note(1, 5.0, 100.0)
    window.note(1, 4.0, 101.0)
    assert window.count(1, 2, 102.0) == Taken(False, 2, 3.0)
    assert window.count(1, 2, 105.0) == Taken(True, 1, 60.0)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30))), st.integers(0, 8))
@settings(deadline=None)
def test_no_window_grants_more_than_the_limit(messages: list[tuple[int, int]], limit: int) -> None:
    window, now, starts, granted = Window(10.0), 0.0, float("-inf"), 0
    for amount, later in messages:
        now += later
        if now >= starts + 10.0:
            granted = 0
        expected = granted + amount <= limit
        if expected and granted == 0:
            starts = now
        granted += amount if expected else 0
        taken = window.count(amount, limit, now)
        assert (taken.is_granted, taken.used) == (expected, granted)
        assert 0 < taken.resets_in <= 10.0


# -- over the fleet


@contextlib.asynccontextmanager
async def node(url: str, prefix: str) -> AsyncIterator[Windows]:
    """The windows of one node."""
    redis = clients.client(address.read(url), "trunkline-test")
    windows = Windows(redis, Keyspace(prefix))
    try:
        yield windows
    finally:
        await windows.close()
        await redis.aclose()


@contextlib.asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, decode_responses=True) as redis:
        yield redis


async def calls(redis: Redis, command: str = "evalsha") -> int:
    stats = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.anyio
async def test_messages_are_counted_until_the_limit_and_refused_ones_take_no_place(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one:
        taken = [await one.take(HOLDER, 3, 60.0) for _ in range(5)]
        assert [(each.is_granted, each.used) for each in taken] == [
            (True, 1), (True, 2), (True, 3), (False, 3), (False, 3),
        ]  # fmt: skip
        assert taken[0].resets_in == 60.0
        assert all(59.0 < each.resets_in <= 60.0 for each in taken)
        assert (await one.take(HOLDER, 4, 60.0)).used == 4
        assert (one.by_redis, one.by_node) == (6, 0)


@pytest.mark.anyio
async def test_a_limit_of_nothing_grants_nothing_and_leaves_no_key(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one, by_hand(redis_url) as redis:
        assert await one.take(HOLDER, 0, 60.0) == Taken(False, 0, 60.0)
        assert await redis.keys(f"{prefix}:*") == []


@pytest.mark.anyio
async def test_the_next_window_starts_when_the_last_one_is_over(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one:
        assert (await one.take(HOLDER, 1, 0.2)).is_granted
        refused = await one.take(HOLDER, 1, 0.2)
        assert not refused.is_granted
        assert refused.resets_in <= 0.2
        started = monotonic()

        async def granted() -> Taken | None:
            taken = await one.take(HOLDER, 1, 0.2)
            return taken if taken.is_granted else None

        assert await until(granted) == Taken(True, 1, 0.2)
        assert monotonic() - started > refused.resets_in - 0.01


@pytest.mark.anyio
async def test_a_counter_always_has_a_lifetime_and_one_without_is_not_believed(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one, by_hand(redis_url) as redis:
        key = Keyspace(prefix).messages(HOLDER)
        for used in (1, 2):
            await one.take(HOLDER, 5, 60.0)
            assert await redis.get(key) == str(used)
            assert 59_000 < await redis.pttl(key) <= 60_000
        await redis.set(key, 5)
        assert await one.take(HOLDER, 5, 60.0) == Taken(True, 1, 60.0)
        assert 59_000 < await redis.pttl(key) <= 60_000


@pytest.mark.anyio
async def test_nodes_that_take_at_once_grant_exactly_the_limit(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one, node(redis_url, prefix) as two:
        taken = await asyncio.gather(*(each.take(HOLDER, 100, 60.0) for _ in range(150) for each in (one, two)))
        assert sorted(each.used for each in taken if each.is_granted) == list(range(1, 101))
        assert one.by_node == two.by_node == 0


@pytest.mark.anyio
async def test_a_decision_is_one_call_and_those_of_the_same_time_share_a_round_trip(prefix: str) -> None:
    with private_redis() as server:
        async with node(server.url, prefix) as one, by_hand(server.url) as redis:
            await one.take(HOLDER, 5, 60.0)
            before = await calls(redis)
            await one.take(HOLDER, 5, 60.0)
            assert await calls(redis) - before == 1

            before, reads = await calls(redis), (await redis.info("stats"))["total_reads_processed"]
            await asyncio.gather(*(one.take(f"user-{index}", 5, 60.0) for index in range(2 * MAX_BATCH)))
            assert await calls(redis) - before == 2 * MAX_BATCH
            # Redis reads 16 KB at a time.
            assert (await redis.info("stats"))["total_reads_processed"] - reads < 30
            assert one.by_node == 0


@pytest.mark.anyio
async def test_a_redis_that_has_forgotten_the_script_is_told_it_again(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one, by_hand(redis_url) as redis:
        for used in (1, 2):
            await redis.script_flush()
            assert (await one.take(HOLDER, 5, 60.0)).used == used
        assert one.by_node == 0


@pytest.mark.anyio
async def test_a_holder_is_any_text_and_two_of_them_are_two(redis_url: str, prefix: str) -> None:
    odd = ["", "}", "{a}", "a b", "a\nb", "a\x00", "\ud800", "\udfff", "世界", "x" * 200, "x" * 201, "x" * 100_000, "*"]
    async with node(redis_url, prefix) as one, by_hand(redis_url) as redis:
        assert [(await one.take(holder, 1, 60.0)).is_granted for holder in odd] == [True] * len(odd)
        assert [(await one.take(holder, 1, 60.0)).is_granted for holder in odd] == [False] * len(odd)
        assert one.by_node == 0
        names = await redis.keys(f"{prefix}:*")
        assert len(names) == len(odd)
        assert max(map(len, names)) < 250
    assert short("x" * 200) == "x" * 200
    assert short("\ud800").startswith("sha256:")


# -- without an answer


@pytest.mark.anyio
async def test_a_node_goes_on_by_its_own_count_and_that_knows_what_redis_granted_here(prefix: str) -> None:
    with private_redis() as server:
        async with node(server.url, prefix) as one, node(server.url, prefix) as two:
            for _ in range(3):
                await one.take(HOLDER, 5, 60.0)
            assert (await two.take(HOLDER, 5, 60.0)).used == 4
            await asyncio.to_thread(server.stop)
            taken = [await one.take(HOLDER, 5, 60.0) for _ in range(4)]
            assert [(each.is_granted, each.used) for each in taken] == [
                (True, 4), (True, 5), (False, 5), (False, 5),
            ]  # fmt: skip
            assert (one.by_redis, one.by_node) == (3, 4)
            assert (await two.take(HOLDER, 5, 60.0)).used == 2

            await asyncio.to_thread(server.start)

            async def asked_redis() -> bool:
                before = one.by_redis
                await one.take("another", 10_000, 60.0)
                return one.by_redis > before

            await until(asked_redis)
            assert (await one.take(HOLDER, 5, 60.0)).used == 1


@pytest.mark.anyio
async def test_a_lost_answer_is_decided_here_and_for_a_second_redis_is_not_asked(
    redis: LocalRedis, prefix: str
) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix) as one, by_hand(redis.url) as direct:
        await one.take(HOLDER, 5, 60.0)
        middle.lose_answers(1)
        assert (await one.take(HOLDER, 5, 60.0)).used == 2
        assert await direct.get(Keyspace(prefix).messages(HOLDER)) == "2"
        before, started = await calls(direct), monotonic()
        while monotonic() - started < decisions.AWAY_SECONDS / 2:
            await one.take(f"user-{one.by_node}", 5, 60.0)
        assert await calls(direct) == before
        await until(lambda: monotonic() - started > decisions.AWAY_SECONDS)
        assert (await one.take(HOLDER, 5, 60.0)).used == 3
        assert one.by_redis == 2


@pytest.mark.anyio
async def test_a_redis_that_stands_still_costs_a_second_once_and_all_who_wait_the_same_one(
    redis: LocalRedis, prefix: str
) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix) as one:
        await one.take(HOLDER, 5, 60.0)
        middle.pause()
        started = monotonic()
        taken = await asyncio.gather(*(one.take(f"user-{index}", 5, 60.0) for index in range(2000)))
        assert all(each == Taken(True, 1, 60.0) for each in taken)
        assert decisions.PATIENCE_SECONDS * 0.9 < monotonic() - started < decisions.PATIENCE_SECONDS * 1.8
        started = monotonic()
        assert (await one.take(HOLDER, 5, 60.0)).used == 2
        assert monotonic() - started < 0.3


@pytest.mark.anyio
async def test_an_error_of_redis_is_no_answer_and_is_told_once_without_names(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "AWAY_SECONDS", 0.0)
    async with node(redis_url, prefix) as one, by_hand(redis_url) as redis:
        await redis.set(Keyspace(prefix).messages(HOLDER), "not a number", px=60_000)
        with caplog.at_level(logging.DEBUG, "trunkline.limits"):
            assert [(await one.take(HOLDER, 1, 60.0)).is_granted for _ in range(2)] == [True, False]
        assert one.by_node == 2
        assert [record.getMessage() for record in caplog.records] == [
            "no answer to take (ResponseError): this node decides alone"
        ]


@pytest.mark.anyio
async def test_more_than_can_wait_are_decided_here(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MAX_WAITING", 3)
    async with node(redis_url, prefix) as one:
        taken = await asyncio.gather(*(one.take(f"user-{index}", 5, 60.0) for index in range(8)))
        assert all(each.is_granted for each in taken)
        assert (one.by_redis, one.by_node) == (3, 5)


@pytest.mark.anyio
async def test_own_counts_of_windows_that_are_over_are_dropped_and_there_are_only_so_many(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "MAX_WINDOWS", 10)
    async with node("redis://127.0.0.1:1/0", prefix) as one:
        for index in range(25):
            await one.take(f"user-{index}", 1, 60.0)
        assert len(one._own) == 10
        assert (await one.take("user-24", 1, 60.0)).is_granted is False
        assert (await one.take("user-0", 1, 60.0)).is_granted
    async with node("redis://127.0.0.1:1/0", prefix) as one:
        for index in range(5):
            await one.take(f"user-{index}", 1, 0.05)

        async def alone() -> bool:
            await one.take("refused", 0, 60.0)
            return list(one._own) == ["refused"]

        await until(alone)


@pytest.mark.anyio
async def test_a_caller_that_leaves_harms_no_other_of_its_batch(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix) as one, by_hand(redis.url) as direct:
        await one.take("warm", 5, 60.0)
        middle.pause()
        first = asyncio.create_task(one.take("first", 5, 60.0))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(one.take(f"user-{index}", 5, 60.0)) for index in range(10)]
        await until(lambda: len(one._decisions._waiting) == 10)
        for leaving in (first, *waiting[::2]):
            leaving.cancel()
        await asyncio.sleep(0)
        middle.go_on()
        assert [taken.used for taken in await asyncio.gather(*waiting[1::2])] == [1] * 5
        assert one.by_node == 0
        # What had left before its batch did was never sent.
        assert await direct.exists(*(Keyspace(prefix).messages(f"user-{index}") for index in range(10))) == 5
        ended = await asyncio.gather(first, *waiting[::2], return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)
        await until(lambda: one._decisions._task is None)


@pytest.mark.anyio
async def test_closing_ends_what_is_under_way_at_once(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix) as one:
        await one.take(HOLDER, 5, 60.0)
        middle.pause()
        taking = [asyncio.create_task(one.take(HOLDER, 3, 60.0)) for _ in range(4)]
        await asyncio.sleep(0)
        started = monotonic()
        await one.close()
        assert [(await task).is_granted for task in taking] == [True, True, False, False]
        assert not (await one.take(HOLDER, 3, 60.0)).is_granted
        assert monotonic() - started < 0.5
        assert one._decisions._task is None
