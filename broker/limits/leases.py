"""Places of connections, over the fleet: so many at once for each holder, so many admitted in a while.

A connection has a lease, and the lease a place with each of its holders (its user, its address, its endpoint). Redis
ends a lease by its own clock, 45 s after it was last renewed, so a dead node's places are free again by themselves.

One task owns what is sent of leases that exist: releases and renewals take turns there, and a renewal names only what
is held when it leaves. So none brings back a lease whose release was sent before it.

When Redis gives no answer the node's own count decides, and what it admits goes to Redis with the next renewal. Redis
may have no room for it any more, nor for leases it lost: such a connection must end (`on_lost`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ..keyspace import Keyspace
from ..patience import pause
from ..script import Argument, Script
from .decisions import AWAY_SECONDS, PATIENCE_SECONDS, Decisions, short

log = logging.getLogger("trunkline.limits")

MAX_RENEWED = 100
MAX_RELEASED = 500
# Releases that wait for Redis. Past it the oldest are let go: their leases end by themselves.
MAX_LEAVING = 20_000
CLOSE_SECONDS = 2.0

_BREATH_SECONDS = 0.005


class Place(NamedTuple):
    """One of `limit` places of a holder: `freeagentics:user:<sub>`, `freeagentics:address:<ip>`."""

    holder: str
    limit: int


class Pace(NamedTuple):
    """At most `limit` admissions of a holder in any `seconds`."""

    holder: str
    limit: int
    seconds: float


class Verdict(NamedTuple):
    """What came of an attempt to connect."""

    is_admitted: bool
    counts: tuple[int, ...]  # leases under each place now, the new one included
    full: Place | Pace | None  # what refused
    retry_after: float  # seconds until a place ends unless it is renewed, or until an admission leaves its window


class Held(NamedTuple):
    """What a lease is for."""

    places: tuple[Place, ...]
    pace: Pace | None


class Own:
    """What this node itself has admitted: its count decides when Redis does not. `now` is monotonic, in seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._places: dict[str, int] = {}
        # When each admission leaves its window, by holder and lease; who was admitted last stands last.
        self._admissions: dict[str, dict[str, float]] = {}

    def counts(self, places: Iterable[Place]) -> tuple[int, ...]:
        return tuple(self._places.get(place.holder, 0) for place in places)

    def admit(self, lease: str, wanted: Held, now: float) -> Verdict:
        """Decide as admit.lua does. When an own lease ends is open: it is said to be at most a lease's length."""
        counts = self.counts(wanted.places)
        for place, count in zip(wanted.places, counts, strict=True):
            if count >= place.limit:
                return Verdict(False, counts, place, self._seconds)
        if (pace := wanted.pace) is not None:
            ends = sorted(end for end in self._admissions.get(pace.holder, {}).values() if end > now)
            if len(ends) >= pace.limit:
                wait = ends[-pace.limit] - now if pace.limit else pace.seconds
                return Verdict(False, counts, pace, wait)
        self.add(lease, wanted, now)
        return Verdict(True, self.counts(wanted.places), None, 0.0)

    def add(self, lease: str, held: Held, now: float) -> None:
        for place in held.places:
            self._places[place.holder] = self._places.get(place.holder, 0) + 1
        if held.pace is not None:
            self._forget(now)
            admissions = self._admissions.pop(held.pace.holder, {})
            current = {lease: end for lease, end in admissions.items() if end > now}
            self._admissions[held.pace.holder] = current | {lease: now + held.pace.seconds}

    def remove(self, lease: str, held: Held, *, refund: bool) -> None:
        for place in held.places:
            self._places[place.holder] -= 1
            if not self._places[place.holder]:
                del self._places[place.holder]
        if refund and held.pace is not None:
            self._admissions.get(held.pace.holder, {}).pop(lease, None)

    def _forget(self, now: float) -> None:
        """Drop the holders whose last admission has left its window."""
        while self._admissions:
            holder, admissions = next(iter(self._admissions.items()))
            if any(end > now for end in admissions.values()):
                break
            del self._admissions[holder]


class Leases:
    """This node's leases: `admit` and `release` for connections, `run` for one task that owns what is held."""

    def __init__(
        self,
        redis: Redis,
        keys: Keyspace,
        *,
        seconds: float = 45.0,
        renew_seconds: float = 15.0,
        on_lost: Callable[[str, Place], None],
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._seconds = seconds
        self._renew_seconds = renew_seconds
        self._on_lost = on_lost
        self._decisions = Decisions(redis, "admit")
        self._renewal = Script(redis, "renew")
        self._own = Own(seconds)
        self._held: dict[str, Held] = {}
        self._leaving: dict[str, tuple[Held, bool]] = {}  # to be given back, with or without their admission
        self._renew_at = 0.0
        self._wake = asyncio.Event()

    @property
    def held(self) -> int:
        return len(self._held)

    async def admit(self, lease: str, places: Sequence[Place], pace: Pace | None) -> Verdict:
        """Take a place of each for `lease`, a random id that is used once, and one admission of `pace`: all or nothing.

        One call of admit.lua. Never an error: without an answer within a second, and for a second after, this node
        decides by what it admitted itself. A caller that is cancelled has no lease, though its admission may count.
        """
        wanted = Held(tuple(places), pace)
        if self._decisions.is_away:
            return self._admit_alone(lease, wanted)
        asked = self._decisions.ask(*self._attempt(lease, wanted))
        try:
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            # It may be admitted yet: it is given back when that is over, not before.
            asked.add_done_callback(lambda _: self._give_back(lease, wanted, refund=False))
            raise
        verdict = self._read(answer, wanted) if answer is not None else None
        if verdict is not None and not self._is_forgetful(verdict, wanted):
            if verdict.is_admitted:
                self._held[lease] = wanted
                self._own.add(lease, wanted, monotonic())
            return verdict
        if verdict is not None:
            self.refresh()
        verdict = self._admit_alone(lease, wanted)
        if not verdict.is_admitted:
            self._give_back(lease, wanted, refund=True)
        return verdict

    def release(self, lease: str, *, refund: bool = False) -> None:
        """Give back the places of `lease`, soon; with `refund` its admission too, as if it had never come.

        A lease that is not held (any more) is no error, and nothing happens.
        """
        held = self._held.pop(lease, None)
        if held is not None:
            self._own.remove(lease, held, refund=refund)
            self._give_back(lease, held, refund=refund)

    def refresh(self) -> None:
        """Renew everything now: Redis has come back, and may have lost what it knew."""
        self._renew_within(0.0)

    async def run(self) -> None:
        """Send releases when they come and renew what is held, until cancelled. Survives every failure of Redis."""
        while True:
            await pause(0)
            await self._rest()
            try:
                await self._send_releases()
                if monotonic() >= self._renew_at:
                    await self._renew_all()
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                log.debug("leases wait for Redis (%s)", type(error).__name__)
                self._renew_at = 0.0  # at once, when it is back
                await pause(AWAY_SECONDS)

    async def close(self) -> None:
        """Give back all that is held, with the admissions: it is our going, not the users'. To be called after `run`
        has ended. Takes 2 s at most; what Redis does not hear of ends by itself. Raises nothing.
        """
        await self._decisions.close()
        for lease in list(self._held):
            self.release(lease, refund=True)
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._send_releases()

    # -- admission

    def _attempt(self, lease: str, wanted: Held) -> tuple[list[str], list[Argument]]:
        """KEYS and ARGV, as the header of admit.lua says."""
        keys = [self._connections(place) for place in wanted.places]
        arguments: list[Argument] = [lease, self._milliseconds, len(wanted.places)]
        arguments += [place.limit for place in wanted.places]
        if (pace := wanted.pace) is not None:
            keys.append(self._keys.admissions(short(pace.holder)))
            arguments += (pace.limit, round(pace.seconds * 1000))
        return keys, arguments

    def _read(self, answer: list[int], wanted: Held) -> Verdict:
        is_admitted, refused, wait, *counts = answer
        asked: tuple[Place | Pace | None, ...] = (None, *wanted.places, wanted.pace)
        return Verdict(is_admitted == 1, tuple(counts), asked[refused], wait / 1000)

    def _is_forgetful(self, verdict: Verdict, wanted: Held) -> bool:
        """True when Redis has admitted somebody and counts fewer than this node alone has: it lost its data.

        It must not give away what is taken here, and is to be told at once.
        """
        own = self._own.counts(wanted.places)
        return verdict.is_admitted and any(count <= mine for count, mine in zip(verdict.counts, own, strict=True))

    def _admit_alone(self, lease: str, wanted: Held) -> Verdict:
        verdict = self._own.admit(lease, wanted, monotonic())
        if verdict.is_admitted:
            self._held[lease] = wanted
        self._renew_within(AWAY_SECONDS)
        return verdict

    # -- the owner's task

    def _renew_within(self, seconds: float) -> None:
        self._renew_at = min(self._renew_at, monotonic() + seconds)
        self._wake.set()

    async def _rest(self) -> None:
        """Until something is to be given back or renewed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._renew_at - monotonic()):
                await self._wake.wait()
        self._wake.clear()

    def _give_back(self, lease: str, held: Held, *, refund: bool) -> None:
        if len(self._leaving) >= MAX_LEAVING:
            del self._leaving[next(iter(self._leaving))]
        self._leaving[lease] = held, refund
        self._wake.set()

    async def _send_releases(self) -> None:
        """Give back everything that waits for it. What fails stays."""
        while self._leaving:
            batch = list(islice(self._leaving.items(), MAX_RELEASED))
            members: dict[str, list[str]] = {}
            for lease, (held, refund) in batch:
                for place in held.places:
                    members.setdefault(self._connections(place), []).append(lease)
                if refund and held.pace is not None:
                    members.setdefault(self._keys.admissions(short(held.pace.holder)), []).append(lease)
            async with asyncio.timeout(PATIENCE_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                for key, leases in members.items():
                    pipe.zrem(key, *leases)
                await pipe.execute()
            for lease, _ in batch:
                self._leaving.pop(lease, None)

    async def _renew_all(self) -> None:
        """Renew what is held, in batches with a breath between; what is released meanwhile is given back between."""
        self._renew_at = monotonic() + self._renew_seconds
        leases = iter(list(self._held))
        while batch := list(islice(leases, MAX_RENEWED)):
            await self._send_releases()
            held = [(lease, self._held[lease]) for lease in batch if lease in self._held]
            if held:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    answer = await self._renewal.run(*self._renewal_of(held))
                for lease, place in _lost(answer, held):
                    self._lose(lease, place)
            await pause(_BREATH_SECONDS)

    def _renewal_of(self, held: list[tuple[str, Held]]) -> tuple[list[str], list[Argument]]:
        """KEYS and ARGV, as the header of renew.lua says."""
        index: dict[str, int] = {}
        arguments: list[Argument] = [self._milliseconds]
        for lease, (places, _) in held:
            arguments += (lease, len(places))
            for place in places:
                arguments += (index.setdefault(self._connections(place), len(index) + 1), place.limit)
        return list(index), arguments

    def _lose(self, lease: str, place: Place) -> None:
        """There is no room for `lease` any more: Redis has dropped it, and so does this node."""
        held = self._held.pop(lease, None)
        if held is None:  # released while it was to be renewed
            return
        self._own.remove(lease, held, refund=False)
        try:
            self._on_lost(lease, place)
        except Exception:
            log.exception("a bug kept a connection open whose place is lost")

    def _connections(self, place: Place) -> str:
        return self._keys.connections(short(place.holder))

    @property
    def _milliseconds(self) -> int:
        return round(self._seconds * 1000)


def _lost(answer: list[int], held: list[tuple[str, Held]]) -> Iterator[tuple[str, Place]]:
    """The lost leases and their full places, from renew.lua's answer."""
    for number, full in zip(answer[::2], answer[1::2], strict=True):
        lease, (places, _) = held[number - 1]
        yield lease, places[full - 1]
