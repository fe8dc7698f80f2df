"""A deploy of two nodes behind HAProxy under load, and then the death of one: what is done, and when."""

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any, NamedTuple

from ..bench.machine import cpu_ns
from ..support import SECRET
from .client import LIMITS, Journal
from .crowd import Audience, Crowd, Producer, Show
from .figures import Phase
from .fleet import Fleet


class Plan(NamedTuple):
    """`clients` come through the balancer; when all of them are on one node, `residents` come to the other."""

    clients: int = 2000
    residents: int = 200
    workspaces: int = 40
    events_per_second: float = 200.0
    calm_seconds: float = 10.0
    drain_wait_seconds: float = 3.0
    drain_seconds: float = 10.0
    handshakes_per_second: int = 4000

    def __str__(self) -> str:
        return (
            f"{self.clients:,} clients and {self.residents:,} residents in {self.workspaces} workspaces, "
            f"{self.events_per_second:g} events/s, two nodes behind HAProxy\n"
            f"drain {self.drain_wait_seconds:g} s + {self.drain_seconds:g} s, "
            f"at most {self.handshakes_per_second:,} handshakes per second and node"
        )


class Outcome(NamedTuple):
    phases: list[Phase]
    journal: Journal


def roll(plan: Plan) -> Outcome:
    """Restart node A, then node B, then kill the one that everybody is on."""
    workspaces = tuple(f"ws-{number}" for number in range(plan.workspaces))
    settings = {
        "drain_wait_seconds": plan.drain_wait_seconds,
        "drain_seconds": plan.drain_seconds,
        "max_handshakes_per_second": plan.handshakes_per_second,
    }
    with ExitStack() as lives:
        fleet = lives.enter_context(Fleet(jwt_secret=SECRET, **LIMITS, **settings))
        crowd = lives.enter_context(Crowd(Audience(0, plan.clients, workspaces, fleet.balancer.port)))
        crowd.gather()
        producer = lives.enter_context(Producer(Show(fleet.redis.url, workspaces, plan.events_per_second)))
        clock = Clock(fleet, crowd, producer)
        with clock.phase("before"):
            time.sleep(plan.calm_seconds)
        for name, node in zip("AB", fleet.nodes, strict=True):
            with clock.phase(f"roll of {name}", window=plan.drain_seconds):
                fleet.stop(node)
                fleet.start_again(node)
                crowd.gather()
        with clock.phase("after"):
            time.sleep(plan.calm_seconds)
        # Everybody is on node A: the last one to be restarted is empty, and newcomers go there.
        residents = Audience(plan.clients, plan.residents, workspaces, fleet.balancer.port)
        beside = lives.enter_context(Crowd(residents))
        beside.gather()
        with clock.phase("A is killed"):
            fleet.nodes[0].process.send_signal(signal.SIGKILL)
            fleet.nodes[0].process.wait()
            crowd.gather()
            time.sleep(plan.calm_seconds / 2)
        published = producer.end()
        journal = crowd.end(published)
        journal.add(beside.end(published))
    return Outcome(clock.phases, journal)


class Clock:
    """The phases so far, and what each cost."""

    def __init__(self, fleet: Any, crowd: Crowd, producer: Producer) -> None:
        self.phases: list[Phase] = []
        self._fleet = fleet
        self._others = {
            "HAProxy": fleet.balancer.process.pid,
            "Redis": fleet.redis.pid,
            "the clients": crowd.pid,
            "the producer": producer.pid,
        }

    @contextmanager
    def phase(self, name: str, window: float = 0.0) -> Iterator[None]:
        started, before = monotonic(), self._cpu()
        yield
        used = {program: seconds - before[program] for program, seconds in self._cpu().items()}
        self.phases.append(Phase(name, started, monotonic(), used, window))

    def _cpu(self) -> dict[str, float]:
        """Seconds so far. Nodes that have ended are among our children that have, and nothing else ends here."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        alive = [node.process.pid for node in self._fleet.nodes if node.process.poll() is None]
        nodes = ended.ru_utime + ended.ru_stime + sum(cpu_ns(pid) for pid in alive) / 1e9
        return {"the nodes": nodes} | {program: cpu_ns(pid) / 1e9 for program, pid in self._others.items()}
