"""All clients of a fault run: watchers of every kind, agents with a socket of their own, and who starts runs."""

import random
from collections.abc import Iterator
from typing import Any

from ..agnt5_chaos_client import ChaosClient, Wish
from ..support import Node
from .fleet import Fleet
from .journal import Journal
from .model import Interest
from .residents import Resident
from .story import Story
from .watchers import FreeAgentics, MaxiCore, Watcher, Way
from .words import AGENTS, FLOOD, WORKSPACES

# Of each client; and when the faults are over, so that nobody waits for the last of them.
RUNS_PER_SECOND, LAST_RUNS_PER_SECOND = 2.0, 30.0


class Runner(ChaosClient):
    """Who starts runs."""

    def hurry(self) -> None:
        """Start at once what is not started yet."""
        self._pace = LAST_RUNS_PER_SECOND


class Crowd:
    """All clients of a run."""

    def __init__(self, fleet: Fleet, story: Story, chance: random.Random) -> None:
        self.watchers = [*_watchers(fleet, story, chance)]
        journal, url = Journal(fleet.journal), f"ws://127.0.0.1:{fleet.link.port}"
        self.residents = [
            Resident(f"resident-{number}", workspace, url, journal, story, random.Random(chance.random()))
            for number, workspace in enumerate(WORKSPACES[:2])
        ]
        self.runners = [_runner(number, front, fleet, chance) for number, front in enumerate(fleet.fronts)]

    @property
    def slow(self) -> list[Watcher]:
        return [watcher for watcher in self.watchers if watcher.way.is_slow]

    @property
    def named(self) -> list[Watcher | Resident]:
        """Those with a token of their own."""
        return [*self.watchers, *self.residents]

    def surprises(self) -> Iterator[str]:
        for one in self.named:
            yield from (f"surprise: {one.name} {words}" for words in one.surprises)


def _watchers(fleet: Fleet, story: Story, chance: random.Random) -> Iterator[Watcher]:
    """Every dialect, with and without positions, of one workspace and of all, of agents and of everything."""
    front = [f"ws://127.0.0.1:{fleet.port}"]
    linked = [f"ws://127.0.0.1:{fleet.link.port}"]
    direct = [f"ws://127.0.0.1:{member.node.port}" for member in fleet.members]
    everything = frozenset(WORKSPACES)
    maxicore, free = MaxiCore(), FreeAgentics()
    one, two, three, _ = (frozenset((workspace,)) for workspace in WORKSPACES)
    some = frozenset(AGENTS[:2])
    ends = frozenset(("task.completed",))
    wanted: list[tuple[str, list[str], Any, Interest, Way]] = [
        ("mx-all", front, maxicore, Interest(everything, None, maxicore.kinds), Way()),
        ("mx-one", front, maxicore, Interest(one, None, maxicore.kinds), Way()),
        ("mx-agent", linked, maxicore, Interest(two, frozenset(AGENTS[1:2]), maxicore.kinds), Way()),
        ("mx-pongs", front, maxicore, Interest(one, some, ends), Way(trusts_pongs=True)),
        ("mx-pongs-all", linked, maxicore, Interest(everything, some, maxicore.kinds), Way(trusts_pongs=True)),
        ("mx-plain", front, maxicore, Interest(one, None, maxicore.kinds), Way(keeps_positions=False)),
        ("mx-plain-all", linked, maxicore, Interest(everything, None, ends), Way(keeps_positions=False)),
        ("mx-slow", direct, maxicore, Interest(one, some | {FLOOD}, maxicore.kinds), Way(is_slow=True)),
        ("fa-one", front, free, Interest(one, None, free.kinds), Way()),
        ("fa-agents", linked, free, Interest(two, some, free.kinds), Way()),
        ("fa-plain", front, free, Interest(three, None, free.kinds), Way(keeps_positions=False)),
        ("fa-pongs", front, free, Interest(two, None, free.kinds), Way(trusts_pongs=True)),
        ("fa-slow", direct, free, Interest(one, some | {FLOOD}, free.kinds), Way(is_slow=True)),
    ]
    for name, urls, words, interest, way in wanted:
        yield Watcher(name, urls, words, interest, way=way, story=story, chance=random.Random(chance.random()))


def _runner(number: int, front: Node, fleet: Fleet, chance: random.Random) -> Runner:
    count = int(fleet.plan.seconds * RUNS_PER_SECOND * 0.8)
    wishes = [Wish(each, chance.uniform(0, 0.3), "well", is_cancelled=each % 13 == 12) for each in range(count)]
    pace, own = RUNS_PER_SECOND, random.Random(chance.random())
    return Runner(f"runner-{number}", [front], fleet.key, wishes, own, pace)
