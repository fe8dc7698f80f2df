"""Two nodes, each with clients for its own half of the workspaces, and beside them a third whose clients want all of
them; then a master of the cluster dies under the load, and for good."""

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from broker import Broker
from broker.keyspace import Keyspace
from broker.topology.slots import slot_of

from ..roll.client import LIMITS
from ..soak.guest import Diary, Page, joined
from ..soak.house import House
from ..soak.producer import names, producing
from ..soak.run import errors
from ..soak.words import Published
from ..support import Node
from ..topologies import Cluster
from .traffic import Traffic, messages, received

PREFIX = "shards"

GAPS = ("healed", "said")

_ENDLESS = 10**9


class Plan(NamedTuple):
    workspaces: int = 1000
    events_per_second: float = 1000.0
    calm_seconds: float = 15.0
    failover_seconds: float = 30.0

    def __str__(self) -> str:
        return (
            f"{self.workspaces:,} workspaces, {self.events_per_second:,.0f} events/s, "
            "three masters and three replicas;\n"
            "A and B have a client for each workspace of their half, C has one for each of all"
        )


class Part(NamedTuple):
    """What clients were sent in one part of the run: those of the master that dies, and the others."""

    name: str
    struck: Page
    spared: Page


class Outcome(NamedTuple):
    """`gaps` are those that nodes saw, by what became of them; `errors` what they logged as such."""

    calm: list[Traffic]
    after: list[Traffic]
    parts: list[Part]
    diaries: list[Diary]
    gaps: dict[str, int]
    errors: list[str]


class Place:
    """A node and its clients: a house for those of the `struck` workspaces, and one for the others."""

    def __init__(self, name: str, node: Node, workspaces: Sequence[str], struck: Collection[str]) -> None:
        self.name = name
        self.node = node
        self.workspaces = workspaces
        self.struck = House(node.port, [one for one in workspaces if one in struck])
        self.spared = House(node.port, [one for one in workspaces if one not in struck])

    async def open(self, lives: asyncio.TaskGroup) -> None:
        for house in (self.struck, self.spared):
            await house.open(lives)

    async def close(self, lives: asyncio.TaskGroup, published: Published) -> None:
        for house in (self.struck, self.spared):
            await house.close(lives, published)


async def run(plan: Plan) -> Outcome:
    every, half = names(plan.workspaces), plan.workspaces // 2
    with Cluster() as cluster, _nodes(cluster.url, 3) as nodes:
        for server in cluster.servers:
            # Else all masters refuse everything from the moment one is known to be dead until its replica follows it.
            server.ask("CONFIG SET", "cluster-require-full-coverage", "no")
        victim = cluster.master_of(0)
        struck = {name for name in every if cluster.master_of(slot_of(Keyspace(PREFIX).log(name))) is victim}
        wanted = {"A": every[:half], "B": every[half:], "C": every}
        places = [Place(name, node, wanted[name], struck) for name, node in zip(wanted, nodes, strict=True)]
        async with (
            asyncio.TaskGroup() as lives,
            producing(
                cluster.url,
                PREFIX,
                workspaces=plan.workspaces,
                events=_ENDLESS,
                events_per_second=plan.events_per_second,
            ) as producer,
        ):
            for place in places:
                await place.open(lives)
            _turn_over("", places)
            calm = await _traffic(places, cluster, plan.calm_seconds)
            parts = [_turn_over("before", places)]
            victim.kill()
            await asyncio.sleep(plan.failover_seconds)
            parts.append(_turn_over("from its death on", places))
            after = await _traffic(places, cluster, plan.calm_seconds)
            published = await producer.end()
            for place in places:
                await place.close(lives, published)
            parts.append(_turn_over("after", places))
        diaries = [house.diary for place in places for house in (place.struck, place.spared)]
        gaps = {how: int(sum(node.metric("trunkline_gaps_total", outcome=how) for node in nodes)) for how in GAPS}
        return Outcome(calm, after, parts, diaries, gaps, [line for node in nodes for line in errors(node.output())])


def _turn_over(name: str, places: Sequence[Place]) -> Part:
    """What all clients have been sent since the last time."""
    struck = [place.struck.diary.turn_over() for place in places]
    spared = [place.spared.diary.turn_over() for place in places]
    return Part(name, joined(struck), joined(spared))


async def _traffic(places: Sequence[Place], cluster: Cluster, seconds: float) -> list[Traffic]:
    """What each node's feed receives in so many seconds, over connections that last as long."""
    since = time.time()
    before = [await asyncio.to_thread(received, place.node, cluster.servers) for place in places]
    await asyncio.sleep(seconds)
    until = time.time()
    now = [await asyncio.to_thread(received, place.node, cluster.servers) for place in places]
    async with Broker.connect(cluster.url, prefix=PREFIX) as broker:
        own = [await messages(broker, place.workspaces, since, until) for place in places]
    return [
        Traffic(place.name, late - early, wanted, max(own))
        for place, early, late, wanted in zip(places, before, now, own, strict=True)
    ]


@contextmanager
def _nodes(redis_url: str, number: int) -> Iterator[list[Node]]:
    nodes = [Node(redis_url, PREFIX, fast=True, **LIMITS) for _ in range(number)]
    try:
        for node in nodes:
            node.start()
        yield nodes
    finally:
        for node in nodes:
            node.stop()
