"""Connection places: never more than the limit, over all nodes, whatever dies, stops or forgets on the way."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from broker import address
from broker.keyspace import Keyspace
from broker.limits import Leases, Pace, Place, Verdict, leases
from broker.limits.leases import MAX_RENEWED, Held, Own
from broker.local import LocalRedis
from broker.topology import clients

from .proxy import proxy
from .support import private_redis, until

pytestmark = pytest.mark.anyio

USER = Place("freeagentics:user:user-1", 2)
ADDRESS = Place("freeagentics:address:10.0.0.7", 3)
PACE = Pace("freeagentics:user:user-1", 3, 60.0)


class Node:
    """The leases of one node, and what it was told to be lost."""

    def __init__(self, url: str, prefix: str, **options: Any) -> None:
        self.redis = clients.client(address.read(url), "trunkline-test")
        self.lost: list[tuple[str, Place]] = []
        self.leases = Leases(self.redis, Keyspace(prefix), on_lost=lambda *lost: self.lost.append(lost), **options)
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        self._task = asyncio.create_task(self.leases.run())

    async def die(self) -> None:
        """As a node that is killed: nothing is given back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.redis.aclose()

    async def connect(self, *places: Place, pace: Pace | None = None) -> tuple[str, Verdict]:
        lease = secrets.token_hex(8)
        return lease, await self.leases.admit(lease, places, pace)


@contextlib.asynccontextmanager
async def node(url: str, prefix: str, *, is_running: bool = True, **options: Any) -> AsyncIterator[Node]:
    one = Node(url, prefix, **options)
    if is_running:
        one.run()
    try:
        yield one
    finally:
        await one.die()


class Hand:
    """Redis seen and changed by hand."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis = redis
        self.keys = Keyspace(prefix)

    async def leases(self, place: Place) -> set[str]:
        return set(await self.redis.zrange(self.keys.connections(place.holder), 0, -1))

    async def admissions(self, pace: Pace) -> set[str]:
        return set(await self.redis.zrange(self.keys.admissions(pace.holder), 0, -1))

    async def now(self) -> int:
        seconds, microseconds = await self.redis.time()
        return int(seconds * 1000 + microseconds // 1000)

    async def put(self, place: Place, **ends_in: int) -> None:
        """Leases by name that end in so many ms."""
        now = await self.now()
        await self.redis.zadd(
            self.keys.connections(place.holder), {lease: now + left for lease, left in ends_in.items()}
        )

    async def put_admissions(self, pace: Pace, **ago: int) -> None:
        now = await self.now()
        await self.redis.zadd(self.keys.admissions(pace.holder), {lease: now - left for lease, left in ago.items()})

    async def forget(self) -> None:
        """Lose everything, as a Redis that kept nothing."""
        if names := await self.redis.keys(f"{self.keys.prefix}:*"):
            await self.redis.delete(*names)

    async def calls(self, command: str = "evalsha") -> int:
        stats = await self.redis.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.fixture
async def hand(redis_url: str, prefix: str) -> AsyncIterator[Hand]:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        yield Hand(redis, prefix)


# -- admission


async def test_places_are_taken_until_there_is_none_and_refused_attempts_take_nothing(
    redis_url: str, prefix: str, hand: Hand
) -> None:
    async with node(redis_url, prefix) as one, node(redis_url, prefix) as two:
        first, verdict = await one.connect(USER, ADDRESS, pace=PACE)
        assert verdict == Verdict(True, (1, 1), None, 0.0)
        second, verdict = await two.connect(USER, ADDRESS, pace=PACE)
        assert verdict == Verdict(True, (2, 2), None, 0.0)
        for each in (one, two):
            _, verdict = await each.connect(USER, ADDRESS, pace=PACE)
            assert (verdict.is_admitted, verdict.counts, verdict.full) == (False, (2, 2), USER)
            assert 44.0 < verdict.retry_after <= 45.0
        assert await hand.leases(USER) == await hand.leases(ADDRESS) == {first, second}
        assert await hand.admissions(PACE) == {first, second}
        assert (one.leases.held, two.leases.held) == (1, 1)


async def test_all_places_are_taken_or_none_and_the_full_one_is_named(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix) as one:
        narrow = Place(ADDRESS.holder, 1)
        kept, _ = await one.connect(narrow)
        _, verdict = await one.connect(USER, narrow, pace=PACE)
        assert (verdict.is_admitted, verdict.counts, verdict.full) == (False, (0, 1), narrow)
        assert await hand.leases(USER) == await hand.admissions(PACE) == set()
        assert await hand.leases(ADDRESS) == {kept}
        assert one.leases.held == 1
        # Of several the first.
        await hand.put(USER, a=30_000, b=30_000)
        assert (await one.connect(narrow, USER))[1].full == narrow
        assert (await one.connect(USER, narrow))[1].full == USER


async def test_retry_after_is_when_the_lease_ends_that_makes_room(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix) as one:
        await hand.put(USER, a=30_000, b=7_000, c=20_000)
        for limit, seconds in ((3, 7), (2, 20), (1, 30), (0, 45)):
            _, verdict = await one.connect(Place(USER.holder, limit))
            assert verdict.counts == (3,)
            assert seconds - 1 < verdict.retry_after <= seconds
        _, verdict = await one.connect(Place("nobody", 0))
        assert verdict == Verdict(False, (0,), Place("nobody", 0), 45.0)


async def test_leases_that_have_ended_are_not_counted(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix) as one:
        await hand.put(USER, ended=-1, gone=-60_000, left=10_000)
        lease, verdict = await one.connect(USER)
        assert verdict.counts == (2,)
        assert await hand.leases(USER) == {lease, "left"}


async def test_a_pace_is_a_sliding_window_of_admissions(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix) as one:
        await hand.put_admissions(PACE, old=60_001, a=50_000, b=1_000)
        lease, verdict = await one.connect(ADDRESS, pace=PACE)
        assert verdict.is_admitted
        assert await hand.admissions(PACE) == {"a", "b", lease}
        _, verdict = await one.connect(ADDRESS, pace=PACE)
        assert (verdict.is_admitted, verdict.counts, verdict.full) == (False, (1,), PACE)
        assert 9.0 < verdict.retry_after <= 10.0
        _, verdict = await one.connect(ADDRESS, pace=PACE._replace(limit=2))
        assert 58.0 < verdict.retry_after <= 59.0
        assert await hand.leases(ADDRESS) == {lease}
        nobody = Pace("nobody", 0, 60.0)
        assert (await one.connect(pace=nobody))[1] == Verdict(False, (), nobody, 60.0)
        assert (await one.connect(pace=nobody._replace(limit=1)))[1] == Verdict(True, (), None, 0.0)


async def test_attempts_at_the_same_time_on_several_nodes_get_exactly_the_limit(redis_url: str, prefix: str) -> None:
    async with node(redis_url, prefix) as one, node(redis_url, prefix) as two:
        five = Place(USER.holder, 5)
        verdicts = await asyncio.gather(*(each.connect(five) for _ in range(100) for each in (one, two)))
        assert sorted(verdict.counts for _, verdict in verdicts if verdict.is_admitted) == [(n,) for n in range(1, 6)]
        assert one.leases.held + two.leases.held == 5


async def test_an_attempt_is_one_call_and_every_key_lies_in_one_slot_and_ends_by_itself(
    redis_url: str, prefix: str, hand: Hand
) -> None:
    async with node(redis_url, prefix) as one:
        await one.connect(USER)
        before = await hand.calls()
        await one.connect(USER, ADDRESS, pace=PACE)
        await one.connect(USER, ADDRESS, pace=PACE)  # refused
        assert await hand.calls() - before == 2
        keys = await hand.redis.keys(f"{prefix}:*")
        assert len(keys) == 3
        assert {key_slot(key.encode()) for key in keys} == {key_slot(b"limits")}
        for key in keys:
            length = 60_000 if "admissions" in key else 45_000
            assert length - 2000 < await hand.redis.pttl(key) <= length


async def test_a_holder_is_any_text(redis_url: str, prefix: str, hand: Hand) -> None:
    odd = ["", "{}", "a\nb", "\ud800", "\udfff", "世界", "x" * 201, "x" * 100_000]
    async with node(redis_url, prefix) as one:
        connected = [await one.connect(Place(text, 1), pace=Pace(text, 1, 60.0)) for text in odd]
        assert all(verdict == Verdict(True, (1,), None, 0.0) for _, verdict in connected)
        assert one.leases._decisions._has_failed is False
        keys = await hand.redis.keys(f"{prefix}:*")
        assert len(keys) == 2 * len(odd)
        assert max(map(len, keys)) < 250
        await one.leases._renew_all()
        assert one.lost == []
        await one.die()
        await one.leases.close()
        assert await hand.redis.keys(f"{prefix}:*") == []


# -- giving back


async def test_a_released_place_is_free_at_once_but_its_admission_is_used_up(
    redis_url: str, prefix: str, hand: Hand
) -> None:
    async with node(redis_url, prefix, renew_seconds=1000) as one:
        for _ in range(3):
            lease, verdict = await one.connect(USER, pace=PACE)
            assert verdict.counts == (1,)
            one.leases.release(lease)
            assert one.leases.held == 0
            await until(lambda: _is_free(hand, USER))
        assert (await one.connect(USER, pace=PACE))[1].full == PACE


async def _is_free(hand: Hand, place: Place) -> bool:
    return await hand.leases(place) == set()


async def test_a_refund_takes_the_admission_back(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, renew_seconds=1000) as one:
        for _ in range(10):
            lease, verdict = await one.connect(USER, pace=PACE)
            assert verdict.is_admitted
            one.leases.release(lease, refund=True)
            await until(lambda: _is_free(hand, USER))
        assert await hand.admissions(PACE) == set()


async def test_what_is_not_held_is_released_without_a_word_to_redis(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, renew_seconds=1000) as one:
        lease, _ = await one.connect(USER)
        one.leases.release(lease)
        await until(lambda: _is_free(hand, USER))
        await hand.put(USER, **{lease: 10_000})
        one.leases.release(lease)
        one.leases.release("unknown")
        other, _ = await one.connect(ADDRESS)
        one.leases.release(other)
        await until(lambda: _is_free(hand, ADDRESS))
        assert await hand.leases(USER) == {lease}


async def test_a_renewal_never_brings_back_what_was_released(redis_url: str, prefix: str, hand: Hand) -> None:
    many = Place(USER.holder, 10_000)
    async with node(redis_url, prefix, renew_seconds=0.01) as one:
        kept, _ = await one.connect(many)
        for _ in range(5):
            connected = await asyncio.gather(*(one.connect(many) for _ in range(3 * MAX_RENEWED)))
            for lease, verdict in connected:
                assert verdict.is_admitted
                one.leases.release(lease)
                if random.random() < 0.05:
                    await asyncio.sleep(0.001)
        await until(lambda: not one.leases._leaving)
        before = await hand.calls()

        async def renewed_often() -> bool:
            return await hand.calls() > before + 5

        await until(renewed_often)
        assert await hand.leases(many) == {kept}


async def test_a_long_renewal_keeps_no_release_waiting(
    redis_url: str, prefix: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_BREATH_SECONDS", 0.3)
    many = Place(USER.holder, 10_000)
    async with node(redis_url, prefix, is_running=False) as one:
        lease, _ = await one.connect(ADDRESS)
        await asyncio.gather(*(one.connect(many) for _ in range(3 * MAX_RENEWED)))
        renewing = asyncio.create_task(one.leases._renew_all())
        one.leases.release(lease)
        await until(lambda: _is_free(hand, ADDRESS))
        assert not renewing.done()
        await renewing


async def test_closing_gives_everything_back_with_the_admissions(redis_url: str, prefix: str, hand: Hand) -> None:
    many = Place(USER.holder, 10_000)
    async with node(redis_url, prefix) as one:
        connected = await asyncio.gather(*(one.connect(many, pace=Pace("p", 10_000, 60.0)) for _ in range(1500)))
        assert all(verdict.is_admitted for _, verdict in connected)
        await one.die()
        one.leases.release(connected[0][0])  # without refund
        await one.leases.close()
        assert one.leases.held == 0
        assert await hand.leases(many) == set()
        assert await hand.admissions(Pace("p", 1, 1.0)) == {connected[0][0]}


async def test_closing_without_redis_takes_two_seconds_at_most_and_raises_nothing(
    redis: LocalRedis, prefix: str
) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix) as one:
        await one.connect(USER)
        middle.pause()
        connecting = asyncio.create_task(one.connect(USER))
        await asyncio.sleep(0)
        started = monotonic()
        await one.leases.close()
        assert monotonic() - started < leases.CLOSE_SECONDS + 0.3
        assert (await connecting)[1] == Verdict(True, (2,), None, 0.0)
        assert one.leases.held == 0
    with private_redis() as server:
        async with node(server.url, prefix) as one:
            await one.connect(USER)
            await asyncio.to_thread(server.stop)
            await one.leases.close()


async def test_a_caller_that_leaves_while_it_is_admitted_keeps_no_place(
    redis: LocalRedis, prefix: str, hand: Hand
) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix, renew_seconds=1000) as one:
        warm, _ = await one.connect(ADDRESS)
        middle.pause()
        connecting = asyncio.create_task(one.connect(USER, pace=PACE))
        await until(lambda: one.leases._decisions._task is not None)
        await asyncio.sleep(0.05)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        assert (connecting.cancelled(), one.leases._leaving) == (True, {})
        middle.go_on()
        # It was admitted all the same, which counts, and gave its place back.
        await until(lambda: hand.admissions(PACE))
        await until(lambda: _is_free(hand, USER))
        assert one.leases.held == 1
        assert await hand.leases(ADDRESS) == {warm}


# -- renewal


async def test_leases_live_as_long_as_they_are_renewed_and_end_by_themselves_after(
    redis_url: str, prefix: str, hand: Hand
) -> None:
    async with node(redis_url, prefix) as other:
        one = Node(redis_url, prefix, seconds=1.0, renew_seconds=0.2)
        one.run()
        lease, _ = await one.connect(Place(USER.holder, 1))
        first_end = await hand.redis.zscore(hand.keys.connections(USER.holder), lease)

        async def is_past_its_first_end() -> bool:
            return await hand.now() > first_end

        await until(is_past_its_first_end)
        _, verdict = await other.connect(Place(USER.holder, 1))
        assert not verdict.is_admitted
        assert 0 < verdict.retry_after <= 1.0
        await one.die()
        end = await hand.redis.zscore(hand.keys.connections(USER.holder), lease)

        async def is_admitted() -> bool:
            return (await other.connect(Place(USER.holder, 1)))[1].is_admitted

        await until(is_admitted)
        assert await hand.now() >= end


async def test_a_renewal_is_a_few_bounded_calls(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, is_running=False) as one:
        for index in range(5):
            await asyncio.gather(*(one.connect(Place(f"user-{index}", 1000)) for _ in range(50)))
        before = await hand.calls()
        await one.leases._renew_all()
        assert await hand.calls() - before == 3
        assert one.lost == []


async def test_leases_that_redis_lost_come_back_where_there_is_room(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, is_running=False) as one:
        both, _ = await one.connect(USER, ADDRESS)
        await hand.forget()
        await one.leases._renew_all()
        assert await hand.leases(USER) == await hand.leases(ADDRESS) == {both}
        for key in await hand.redis.keys(f"{prefix}:*"):
            assert 43_000 < await hand.redis.pttl(key) <= 45_000
        assert one.lost == []


async def test_a_lease_without_room_is_lost_with_all_its_places(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, is_running=False) as one:
        first, _ = await one.connect(ADDRESS, USER)
        second, _ = await one.connect(ADDRESS, USER)
        kept, _ = await one.connect(ADDRESS)
        # Others have taken one of the two places that were lost.
        await hand.redis.delete(hand.keys.connections(USER.holder))
        await hand.put(USER, other=30_000, ended=-1)
        await one.leases._renew_all()
        assert one.lost == [(second, USER)]
        assert await hand.leases(USER) == {"other", first}
        assert await hand.leases(ADDRESS) == {first, kept}
        assert one.leases.held == 2
        assert one.leases._own.counts((USER, ADDRESS)) == (1, 2)
        one.leases.release(second)
        assert one.leases._leaving == {}
        # What it had here is free again.
        assert (await one.connect(ADDRESS))[1].counts == (3,)


async def test_of_several_places_without_room_the_first_is_told(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, is_running=False) as one:
        lease, _ = await one.connect(USER, ADDRESS)
        await hand.forget()
        for place in (USER, ADDRESS):
            await hand.put(place, a=30_000, b=30_000, c=30_000)
        await one.leases._renew_all()
        assert one.lost == [(lease, USER)]


async def test_a_limit_that_was_lowered_takes_no_place_away(redis_url: str, prefix: str, hand: Hand) -> None:
    async with node(redis_url, prefix, is_running=False) as one:
        lease, _ = await one.connect(Place(USER.holder, 1))
        await hand.put(USER, a=30_000, b=30_000)
        await one.leases._renew_all()
        assert one.lost == []
        assert await hand.leases(USER) == {lease, "a", "b"}


async def test_a_node_that_stood_still_for_longer_than_its_leases_takes_back_only_what_is_free(
    redis_url: str, prefix: str, hand: Hand
) -> None:
    async with (
        node(redis_url, prefix, is_running=False, seconds=0.2) as sleeper,
        node(redis_url, prefix, is_running=False) as other,
    ):
        mine = [(await sleeper.connect(USER))[0] for _ in range(2)]

        async def taken() -> str | None:
            lease, verdict = await other.connect(USER)
            return lease if verdict.is_admitted else None

        theirs = await until(taken)
        await hand.redis.zrem(hand.keys.connections(USER.holder), *mine)
        sleeper.run()
        await until(lambda: sleeper.lost)
        assert sleeper.lost == [(mine[1], USER)]
        assert await hand.leases(USER) == {theirs, mine[0]}


async def test_who_is_told_of_a_loss_may_fail_and_the_rest_goes_on(
    redis_url: str, prefix: str, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(lease: str, place: Place) -> None:
        raise RuntimeError("a bug")

    async with node(redis_url, prefix, is_running=False) as one:
        one.leases._on_lost = fail
        for _ in range(2):
            await one.connect(USER)
        await hand.forget()
        await hand.put(USER, a=30_000, b=30_000)
        await one.leases._renew_all()
        assert one.leases.held == 0
        assert [record.getMessage() for record in caplog.records] == [
            "a bug kept a connection open whose place is lost"
        ] * 2


async def test_what_is_released_while_it_is_lost_is_not_told(redis: LocalRedis, prefix: str, hand: Hand) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix, is_running=False) as one:
        lease, _ = await one.connect(USER)
        await one.leases._renew_all()
        await hand.forget()
        await hand.put(USER, a=30_000, b=30_000)
        middle.pause()
        renewing = asyncio.create_task(one.leases._renew_all())
        await asyncio.sleep(0.05)
        one.leases.release(lease)
        middle.go_on()
        await renewing
        assert one.lost == []


# -- without an answer


async def test_a_node_alone_admits_by_its_own_count_and_redis_hears_of_it_when_it_is_back(prefix: str) -> None:
    with private_redis() as server:
        async with node(server.url, prefix, renew_seconds=1000) as one, hand_of(server, prefix) as hand:
            first, _ = await one.connect(USER, ADDRESS, pace=PACE)
            await asyncio.to_thread(server.stop)
            second, verdict = await one.connect(USER, ADDRESS, pace=PACE)
            assert verdict == Verdict(True, (2, 2), None, 0.0)
            _, verdict = await one.connect(USER, ADDRESS, pace=PACE)
            assert verdict == Verdict(False, (2, 2), USER, 45.0)
            one.leases.release(first)
            third, verdict = await one.connect(USER, ADDRESS, pace=PACE)
            assert verdict == Verdict(True, (2, 2), None, 0.0)
            one.leases.release(third)
            _, verdict = await one.connect(USER, ADDRESS, pace=PACE)
            assert verdict.full == PACE
            assert 50.0 < verdict.retry_after <= 60.0
            await asyncio.to_thread(server.start)
            await until(lambda: _has(hand, USER, {second}))
            assert await hand.leases(ADDRESS) == {second}
            assert (one.lost, one.leases.held) == ([], 1)


async def test_of_nodes_that_admitted_alone_those_past_the_limit_lose(prefix: str) -> None:
    single = Place(USER.holder, 1)
    with private_redis() as server:
        async with (
            node(server.url, prefix, renew_seconds=1000) as one,
            node(server.url, prefix, renew_seconds=1000) as two,
            hand_of(server, prefix) as hand,
        ):
            await asyncio.to_thread(server.stop)
            held = {(await each.connect(single))[0] for each in (one, two)}
            assert (one.leases.held, two.leases.held) == (1, 1)
            await asyncio.to_thread(server.start)
            lost = await until(lambda: one.lost + two.lost)
            assert one.leases.held + two.leases.held == 1
            assert await hand.leases(single) == held - {lost[0][0]}
            assert lost[0][1] == single


async def test_a_lost_answer_leaves_one_lease_that_is_held(redis: LocalRedis, prefix: str, hand: Hand) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix, is_running=False) as one:
        await one.connect(ADDRESS)
        middle.lose_answers(1)
        lease, verdict = await one.connect(USER)
        assert verdict == Verdict(True, (1,), None, 0.0)
        assert await hand.leases(USER) == {lease}
        await one.leases._renew_all()
        assert await hand.leases(USER) == {lease}
        assert one.lost == []


async def test_an_attempt_refused_here_after_a_lost_answer_is_taken_back_from_redis(
    redis: LocalRedis, prefix: str, hand: Hand
) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix, is_running=False) as one:
        single = Place(USER.holder, 1)
        held, _ = await one.connect(single)
        await hand.forget()  # so that Redis has room where this node has none
        middle.lose_answers(1)
        lease, verdict = await one.connect(single, pace=PACE)
        assert (verdict.is_admitted, verdict.full) == (False, single)
        assert await hand.leases(USER) == await hand.admissions(PACE) == {lease}
        one.run()
        await until(lambda: _has(hand, USER, {held}))
        assert await hand.admissions(PACE) == set()


async def test_a_redis_that_forgot_gives_nothing_away_that_is_taken_here_and_is_told_at_once(
    redis_url: str, prefix: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "AWAY_SECONDS", 1000.0)
    async with node(redis_url, prefix, renew_seconds=1000) as one:
        held = [(await one.connect(USER))[0]]
        await hand.forget()
        lease, verdict = await one.connect(USER, pace=PACE)
        assert verdict == Verdict(True, (2,), None, 0.0)
        held.append(lease)
        await until(lambda: _has(hand, USER, set(held)))
        await hand.forget()
        _, verdict = await one.connect(USER, pace=PACE)
        assert (verdict.is_admitted, verdict.counts, verdict.full) == (False, (2,), USER)
        await until(lambda: _has(hand, USER, set(held)))
        assert await hand.admissions(PACE) == set()
        assert (one.lost, one.leases.held) == ([], 2)


async def test_a_renewal_that_failed_is_made_up_for_as_soon_as_redis_is_back(
    redis: LocalRedis, prefix: str, hand: Hand
) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix, is_running=False, renew_seconds=1000) as one:
        lease, _ = await one.connect(USER)
        middle.lose_answers(1)
        one.run()
        await until(lambda: middle.lost)
        await hand.forget()
        await until(lambda: _has(hand, USER, {lease}))


async def test_a_cancellation_that_is_swallowed_below_ends_the_task_all_the_same(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(redis_url, prefix) as one:
        sending = asyncio.Event()

        async def swallow() -> None:
            sending.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

        monkeypatch.setattr(one.leases, "_send_releases", swallow)
        running = asyncio.create_task(one.leases.run())
        await sending.wait()
        running.cancel()
        await asyncio.wait((running,), timeout=5)
        assert running.cancelled()


async def test_for_a_second_after_a_failure_redis_is_not_asked(redis: LocalRedis, prefix: str, hand: Hand) -> None:
    async with proxy(redis.port) as middle, node(middle.url, prefix, is_running=False) as one:
        many = Place(USER.holder, 10_000)
        await one.connect(many)
        middle.pause()
        started = monotonic()
        connected = await asyncio.gather(*(one.connect(many) for _ in range(100)))
        assert all(verdict.is_admitted for _, verdict in connected)
        assert monotonic() - started < 1.6
        middle.go_on()
        before = await hand.calls()
        assert (await one.connect(many))[1] == Verdict(True, (102,), None, 0.0)
        assert await hand.calls() == before


async def test_releases_wait_for_redis_and_only_so_many(
    redis: LocalRedis, prefix: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "MAX_LEAVING", 3)
    async with proxy(redis.port) as middle, node(middle.url, prefix, is_running=False) as one:
        many = Place(USER.holder, 10)
        held = [(await one.connect(many))[0] for _ in range(5)]
        middle.pause()
        one.run()
        for lease in held:
            one.leases.release(lease)
        await asyncio.sleep(0)
        middle.cut()
        middle.go_on()
        await until(lambda: _has(hand, many, set(held[:2])))


@contextlib.asynccontextmanager
async def hand_of(server: LocalRedis, prefix: str) -> AsyncIterator[Hand]:
    async with Redis.from_url(server.url, decode_responses=True) as redis:
        yield Hand(redis, prefix)


async def _has(hand: Hand, place: Place, wanted: set[str]) -> bool:
    with contextlib.suppress(ConnectionError):
        return await hand.leases(place) == wanted
    return False


# -- a node's own count


def test_own_admissions_leave_their_window_and_holders_are_forgotten() -> None:
    own = Own(45.0)
    wanted = Held((), Pace("a", 2, 60.0))
    assert own.admit("1", wanted, 0.0).is_admitted
    assert own.admit("2", wanted, 10.0).is_admitted
    assert own.admit("3", wanted, 20.0) == Verdict(False, (), wanted.pace, 40.0)
    assert own.admit("3", Held((), Pace("a", 1, 60.0)), 20.0).retry_after == 50.0
    assert own.admit("3", Held((), Pace("a", 0, 60.0)), 20.0).retry_after == 60.0
    assert own.admit("3", wanted, 60.0).is_admitted
    own.remove("3", wanted, refund=True)
    assert own.admit("4", wanted, 61.0).is_admitted
    own.remove("4", wanted, refund=False)
    assert own.admit("5", wanted, 62.0) == Verdict(False, (), wanted.pace, 8.0)
    assert own.admit("6", Held((), Pace("b", 1, 60.0)), 130.0).is_admitted
    assert list(own._admissions) == ["b"]


def test_own_places_are_all_or_nothing_and_leave_nothing_behind() -> None:
    own = Own(45.0)
    wanted = Held((Place("a", 2), Place("b", 1)), None)
    assert own.admit("1", wanted, 0.0) == Verdict(True, (1, 1), None, 0.0)
    assert own.admit("2", wanted, 0.0) == Verdict(False, (1, 1), Place("b", 1), 45.0)
    assert own.counts(wanted.places) == (1, 1)
    own.remove("1", wanted, refund=False)
    assert own._places == {}


# -- a model of the fleet


@dataclass
class Fleet:
    """What must be true, told by a model that knows every connection and when the leases of dead nodes end."""

    hand: Hand
    places: dict[str, list[Place]]  # of each user: its own, and its address'
    nodes: dict[str, Node] = field(default_factory=dict)
    live: dict[str, tuple[str, str]] = field(default_factory=dict)  # lease → node, user
    dead: list[tuple[str, float]] = field(default_factory=list)  # user, when its lease ends (ms)
    refused: int = 0
    waited_for_the_dead: int = 0

    def taken(self, place: Place, since: float) -> tuple[int, int]:
        """Live connections of a place, and dead ones whose leases have not ended at `since`."""
        live = sum(place in self.places[user] for _, user in self.live.values())
        return live, sum(place in self.places[user] and end > since for user, end in self.dead)

    async def connect(self, attempts: Sequence[tuple[str, str]]) -> None:
        """Connect users on nodes, all at once."""
        before = await self.hand.now()
        connected = await asyncio.gather(*(self.nodes[name].connect(*self.places[user]) for name, user in attempts))
        after = await self.hand.now()
        for (name, user), (lease, verdict) in zip(attempts, connected, strict=True):
            if verdict.is_admitted:
                self.live[lease] = name, user
        for (_, user), (_, verdict) in zip(attempts, connected, strict=True):
            if verdict.is_admitted:
                for place in self.places[user]:
                    live, ending = self.taken(place, after)
                    assert live + ending <= place.limit, "a dead node's place was given away before its lease ended"
            else:
                assert isinstance(verdict.full, Place)
                live, ending = self.taken(verdict.full, before)
                assert live + ending >= verdict.full.limit, "refused though there was room"
                self.refused += 1
                self.waited_for_the_dead += live < verdict.full.limit
        self.check()

    def check(self) -> None:
        for place in {place for places in self.places.values() for place in places}:
            assert self.taken(place, 0)[0] <= place.limit
        for name, one in self.nodes.items():
            assert one.lost == []
            assert one.leases.held == sum(where == name for where, _ in self.live.values())

    async def disconnect(self, lease: str) -> None:
        name, user = self.live.pop(lease)
        self.nodes[name].leases.release(lease)
        for place in self.places[user]:
            await until(lambda place=place: self._is_gone(place, lease))

    async def _is_gone(self, place: Place, lease: str) -> bool:
        return lease not in await self.hand.leases(place)

    async def kill(self, name: str) -> None:
        """The node's connections die with it; its leases end when Redis says."""
        await self.nodes.pop(name).die()
        for lease in [lease for lease, (where, _) in self.live.items() if where == name]:
            _, user = self.live.pop(lease)
            end = await self.hand.redis.zscore(self.hand.keys.connections(self.places[user][0].holder), lease)
            assert end is not None
            self.dead.append((user, end))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_in_every_history_a_user_has_at_most_its_places_and_gets_all_of_them(
    redis_url: str, prefix: str, hand: Hand, seed: int
) -> None:
    chance = random.Random(seed)
    addresses = [Place("address:a", 4), Place("address:b", 3)]
    fleet = Fleet(hand, {f"u{limit}": [Place(f"user:u{limit}", limit), addresses[limit % 2]] for limit in (1, 2, 3, 4)})
    started = 0

    def start() -> None:
        nonlocal started
        started += 1
        name = f"node-{started}"
        fleet.nodes[name] = Node(redis_url, prefix, seconds=1.5, renew_seconds=0.3)
        fleet.nodes[name].run()

    try:
        for _ in range(3):
            start()
        for _ in range(120):
            match chance.choices(("connect", "disconnect", "kill", "wait"), (10, 4, 1, 2))[0]:
                case "connect":
                    users = chance.choices(list(fleet.places), k=chance.randint(1, 5))
                    await fleet.connect([(chance.choice(list(fleet.nodes)), user) for user in users])
                case "disconnect" if fleet.live:
                    await fleet.disconnect(chance.choice(list(fleet.live)))
                case "kill":
                    await fleet.kill(chance.choice(list(fleet.nodes)))
                    start()
                case "wait":
                    await asyncio.sleep(chance.uniform(0.0, 0.3))
            fleet.check()
        assert fleet.refused > 20
        assert fleet.waited_for_the_dead > 0

        # When all die at once, all places are free again, each when its lease has ended.
        for name in list(fleet.nodes):
            await fleet.kill(name)
        start()

        async def is_full() -> bool:
            await fleet.connect([(f"node-{started}", user) for user in fleet.places])
            return len(fleet.live) == 4 + 3

        await until(is_full)
    finally:
        for one in fleet.nodes.values():
            await one.die()
