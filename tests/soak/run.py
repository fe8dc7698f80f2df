"""The run: Redis, one node, a house of guests and a producer, and a look at all of them every minute."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from ..bench.machine import cpu_ns, resident_kb
from ..roll.client import LIMITS
from ..support import Node, private_redis, until
from .figures import Stretch
from .guest import Diary
from .house import Habits, House
from .producer import names, producing

PREFIX = "soak"

# What a node has for its clients, and lets go within some seconds of the last one.
HELD = ("connections", "leases", "interest_groups", "channels")
LETTING_GO_SECONDS = 20.0


class Plan(NamedTuple):
    events: int = 1_000_000
    seconds: float = 1200.0
    workspaces: int = 40
    visitors: int = 160
    habits: Habits = Habits()

    @property
    def stretches(self) -> int:
        """Minutes, or four parts of a shorter run."""
        return max(4, round(self.seconds / 60))

    def __str__(self) -> str:
        (stay, longest_stay), (away, longest_away) = self.habits
        return (
            f"{self.events:,} events in {self.seconds:,.0f} s, over {self.workspaces} workspaces, through one node;\n"
            f"{self.workspaces} clients stay, {self.visitors} come and go: "
            f"{stay:g} to {longest_stay:g} s there, {away:g} to {longest_away:g} s away"
        )


class Outcome(NamedTuple):
    """`held` is what the node still has for clients when all have gone, `errors` what it logged as such."""

    stretches: list[Stretch]
    diary: Diary
    healed: int
    held: dict[str, float]
    errors: list[str]


async def soak(plan: Plan, tell: Callable[[Stretch], None]) -> Outcome:
    """`tell` hears of each stretch when it is over."""
    with private_redis() as redis:
        node = Node(redis.url, PREFIX, fast=True, **LIMITS)
        try:
            node.start()
            house = House(node.port, names(plan.workspaces), plan.visitors, plan.habits)
            async with asyncio.TaskGroup() as lives:
                await house.open(lives)
                watch = Watch(node, redis.pid, house, tell)
                await _perform(plan, redis.url, house, watch, lives)
            with suppress(AssertionError):  # what it does not let go is told
                await until(lambda: not any(held(node).values()), LETTING_GO_SECONDS)
            healed = int(node.metric("trunkline_gaps_total", outcome="healed"))
            return Outcome(watch.stretches, house.diary, healed, held(node), errors(node.output()))
        finally:
            node.stop()


def held(node: Node) -> dict[str, float]:
    return {name: node.metric(f"trunkline_{name}") for name in HELD}


def errors(output: str) -> list[str]:
    """The lines of a node's log that are errors, or no lines of a log at all."""
    lines = []
    for line in output.splitlines():
        try:
            is_error = json.loads(line)["level"] == "error"
        except ValueError:
            is_error = True
        if is_error:
            lines.append(line)
    return lines


async def _perform(plan: Plan, redis_url: str, house: House, watch: "Watch", lives: asyncio.TaskGroup) -> None:
    """All events before all guests."""
    async with producing(
        redis_url,
        PREFIX,
        workspaces=plan.workspaces,
        events=plan.events,
        events_per_second=plan.events / plan.seconds,
    ) as producer:
        for _ in range(plan.stretches - 1):
            await producer.wait(plan.seconds / plan.stretches)
            await watch.look()
        await producer.wait(plan.seconds)  # perhaps it is late
        await watch.look()
        await house.close(lives, await producer.end())


class Watch:
    """Looks at a node, its Redis and its guests, again and again, and tells what was since the last time."""

    def __init__(self, node: Node, redis: int, house: House, tell: Callable[[Stretch], None]) -> None:
        self.stretches: list[Stretch] = []
        self._tell = tell
        self._node = node
        self._redis = redis
        self._house = house
        self._started = self._looked = monotonic()
        self._counted = self._count()

    async def look(self) -> None:
        looked, self._looked = self._looked, monotonic()
        counted, self._counted = self._counted, await asyncio.to_thread(self._count)
        events, visits, cpu = (now - then for now, then in zip(self._counted, counted, strict=True))
        page = self._house.diary.turn_over()
        stretch = Stretch(
            looked - self._started,
            self._looked - self._started,
            int(events),
            page.live,
            len(page.caught_up),
            int(visits),
            self._house.present,
            resident_kb(self._node.pid),
            resident_kb(self._redis),
            cpu,
            os.getloadavg()[0],
        )
        self.stretches.append(stretch)
        self._tell(stretch)

    def _count(self) -> tuple[float, float, float]:
        """Of all time: events that came to the node, visits, and the node's CPU seconds."""
        events = self._node.metric("trunkline_events_received_total")
        return events, self._house.diary.visits, cpu_ns(self._node.pid) / 1e9
