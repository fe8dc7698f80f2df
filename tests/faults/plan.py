"""A seed becomes a fleet and a schedule of faults, always the same one. Pure.

What the machine decides besides (which message was on its way when a process died) a seed cannot repeat; what was done
to the fleet, when and to whom, it does.
"""

import math
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Topology = Literal["single", "sentinel", "cluster"]
Persistence = Literal["none", "everysec", "always"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)

# Before the first fault everybody has come, and behind the last one there is some quiet.
CALM_SECONDS = 1.0
# What is older is on the disk of a Redis that writes every second, and at its replicas.
ASYNCHRONOUS_SECONDS = 5.0


class Fault(NamedTuple):
    """Something to be done `at` seconds from the beginning. `target` is a number that is taken modulo what there is."""

    at: float
    kind: str
    target: int
    seconds: float  # for how long, where it lasts

    def __str__(self) -> str:
        return f"{self.at:5.2f} {self.kind} #{self.target} {self.seconds:.2f} s"


class Kind(NamedTuple):
    """A kind of fault: how often beside the others, and for how long it lasts."""

    name: str
    weight: int
    least: float = 0.0
    most: float = 0.0


_EVERYWHERE = (
    Kind("kill node", 3, 0.0, 1.0),
    Kind("term node", 3, 0.0, 1.0),
    Kind("stop node", 2, 0.5, 3.0),
    Kind("roll nodes", 1),
    Kind("stop redis", 2, 0.3, 3.0),
    Kind("kill connections", 3),
    Kind("cut link", 3),
    Kind("deaf link", 2, 0.5, 4.0),
    Kind("slow link", 2, 1.0, 4.0),
    Kind("lose answers", 2),
    Kind("stop reader", 2, 1.0, 3.0),
    Kind("kill producer", 1),
    Kind("kill worker", 1),
    Kind("node clock", 2, -90.0, 90.0),
)
_OF = {
    "single": (Kind("restart redis", 3, 0.0, 1.5), Kind("kill redis", 3, 0.0, 1.5)),
    "sentinel": (
        Kind("kill redis", 3, 0.5, 3.0),
        Kind("lossy failover", 2, 0.2, 1.0),
        Kind("failover", 3),
        Kind("kill sentinel", 1, 0.5, 2.0),
    ),
    "cluster": (
        Kind("kill redis", 3, 0.5, 3.0),
        Kind("lossy failover", 2, 0.2, 1.0),
        Kind("failover", 3),
        Kind("move slot", 6),
    ),
}
_RESTARTS = {"kill redis", "restart redis", "lossy failover"}
# A clock that goes back is no matter to a Redis that knows its log; to one that has lost it positions would come again.
_REDIS_CLOCK = Kind("redis clock", 2, -90.0, 90.0)


class Plan(NamedTuple):
    """All that a seed decides."""

    seed: int
    seconds: float
    topology: Topology
    is_old: bool  # Redis 6.2, where it is not a Cluster
    persistence: Persistence
    nodes: int
    is_patient: bool  # wait at the end until leases of the dead have ended too
    faults: tuple[Fault, ...]

    def reach(self, kind: str) -> float:
        """How many seconds back a fault of this kind may let Redis lose what it acknowledged; 0: it loses nothing."""
        if kind not in self._losing:
            return 0.0
        return math.inf if self.persistence == "none" and kind in _RESTARTS else ASYNCHRONOUS_SECONDS

    def spares_copies(self, kind: str) -> bool:
        """True when a fault of this kind loses nothing that every replica had, as whoever is promoted has it. A master
        that was killed may be there again before that, with what is on its own disk."""
        return kind not in _RESTARTS or self.persistence == "always"

    @property
    def redis_behind(self) -> float:
        """By how many seconds Redis' clock is behind, in the end, what it has been at most."""
        jumps = [0.0, *(fault.seconds for fault in self.faults if fault.kind == _REDIS_CLOCK.name)]
        return max(jumps) - jumps[-1]

    @property
    def _losing(self) -> set[str]:
        """The kinds of fault that lose."""
        match self.topology, self.persistence:
            case "sentinel", _:
                return {"kill redis", "stop redis", "lossy failover", "failover", "deaf link"}
            case "cluster", _:  # where a failover that is asked for waits until the replica has all
                return {"kill redis", "stop redis", "lossy failover"}
            case "single", "none":
                return {"kill redis", "restart redis"}
            case "single", "everysec":  # told to end it writes all, killed it has not written the newest
                return {"kill redis"}
        return set()

    def __str__(self) -> str:
        version = "6.2" if self.is_old else "7"
        return f"seed {self.seed}: {self.topology} {version}, append-only {self.persistence}, {self.nodes} nodes"


def make(seed: int, seconds: float, topology: Topology | None = None) -> Plan:
    """The plan of a seed; `topology` says which, where the seed shall not."""
    chance = random.Random(seed)
    drawn = chance.choice(TOPOLOGIES)
    topology = topology or drawn
    is_old = chance.random() < 0.5 and topology == "single"
    persistence = chance.choice(get_args(Persistence))
    nodes = chance.choice((2, 3))
    is_patient = chance.random() < 0.1
    kinds = [*_EVERYWHERE, *_OF[topology]]
    if topology == "single" and persistence == "always":
        kinds.append(_REDIS_CLOCK)
    return Plan(
        seed, seconds, topology, is_old, persistence, nodes, is_patient, tuple(_schedule(chance, seconds, kinds))
    )


def _schedule(chance: random.Random, seconds: float, kinds: Sequence[Kind]) -> list[Fault]:
    faults, at = [], CALM_SECONDS
    while at < seconds - CALM_SECONDS:
        (kind,) = chance.choices(kinds, [kind.weight for kind in kinds])
        lasting = round(chance.uniform(kind.least, kind.most), 2)
        faults.append(Fault(round(at, 2), kind.name, chance.randrange(1000), lasting))
        at += chance.uniform(0.3, 1.5)
    return faults
