"""What is run: the workloads, one run of each, and rounds of them side by side."""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from broker.local import LocalRedis

from . import machine, servers
from .agents import AgentsJob
from .load import Job
from .machine import Cores
from .runs import RunsJob
from .servers import BenchError, Server

Figures = dict[str, Any]
Start = Callable[[LocalRedis, Cores, int, Path | None], AbstractContextManager[Server]]
SERVERS: dict[str, Start] = {"trunkline": servers.trunkline, "baseline": servers.baseline}

_RUN_SECONDS = 60.0  # no run takes half of that; a stuck one is ended


@dataclasses.dataclass(frozen=True)
class Workload:
    """`agents` is 1 (all clients watch one) or as many as clients (each its own); `window` or `rate` as in `load`.

    `messages` is what a client and a user may send per minute. Where there is a limit, each message is counted.
    """

    name: str
    clients: int
    agents: int
    window: int = 0
    rate: int = 0
    dialect: str = "maxicore"
    is_compressed: bool = False
    messages: int = servers.UNLIMITED


WORKLOADS = (
    Workload("broadcast to 1,000, 64 outstanding", clients=1000, agents=1, window=64),
    Workload("broadcast to 1,000, 8 outstanding", clients=1000, agents=1, window=8),
    Workload("FreeAgentics to 1,000, 64 outstanding", clients=1000, agents=1, window=64, dialect="freeagentics"),
    Workload(
        "compressed to 1,000, 64 outstanding",
        clients=1000,
        agents=1,
        window=64,
        dialect="freeagentics",
        is_compressed=True,
    ),
    Workload("1,000 clients, an agent each", clients=1000, agents=1000, window=1000),
    Workload("broadcast to 5,000, 10 a second", clients=5000, agents=1, rate=10),
)
PINGS = (
    Workload("MaxiCore pings", clients=200, agents=1),
    Workload("FreeAgentics pings", clients=200, agents=1, dialect="freeagentics"),
    Workload("FreeAgentics pings, counted", clients=200, agents=1, dialect="freeagentics", messages=1_000_000_000),
)


@dataclasses.dataclass(frozen=True)
class Errands:
    """Runs that `clients` start: `outstanding` or `rate` and `is_keyed` as in `runs`."""

    name: str
    clients: int = 10
    outstanding: int = 0
    rate: int = 0
    is_keyed: bool = False


ERRANDS = (
    Errands("runs", outstanding=20),
    Errands("runs with an idempotency key", outstanding=20, is_keyed=True),
    Errands("runs, 100 a second", rate=100),
)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests to the Agents API; `path`, `body` and `proof` as in `agents`.

    As many as it takes, then `rate` a second, which is well below that. `messages` is what a token may ask per minute:
    where there is a limit, each request is counted.
    """

    name: str
    path: str
    rate: int
    proof: str
    body: str = ""
    connections: int = 32
    messages: int = servers.UNLIMITED


def requests_of(agents: int) -> tuple[Requests, ...]:
    """What is asked of a registry with so many agents, half of them online."""
    one, is_that = "/v2/agents/AGENT", '"id":"AGENT"'
    last = agents - 20
    return (
        Requests("agents: the first 20", "/v2/agents?limit=20", 100, f'"total":{agents},"limit":20,"offset":0}}'),
        Requests(
            "agents: the last 20",
            f"/v2/agents?limit=20&offset={last}",
            100,
            f'"total":{agents},"limit":20,"offset":{last}}}',
        ),
        Requests(
            "agents: the first 20 online",
            "/v2/agents?limit=20&status=online",
            10,
            f'"total":{agents // 2},"limit":20,"offset":0}}',
        ),
        Requests("agents: one", one, 300, is_that),
        Requests("agents: one, counted", one, 300, is_that, messages=1_000_000_000),
        Requests(
            "agents: change a soul",
            one,
            200,
            '"change":NUMBER',
            body='{"soul":{"tone":"professional","verbosity":"brief","change":NUMBER}}',
        ),
    )


AGENTS = 10_000
REQUESTS = requests_of(AGENTS)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the parts of a run take, in seconds."""

    warm: float
    closed_loop: float
    open_loop: float
    producer: float


DEFAULT = Lengths(warm=0.5, closed_loop=2.0, open_loop=4.0, producer=2.0)
QUICK = Lengths(warm=0.1, closed_loop=0.5, open_loop=1.5, producer=0.5)


class Bench:
    """Runs things on these cores for these lengths of time. Its methods raise `BenchError` when a process fails."""

    def __init__(self, cores: Cores, lengths: Lengths) -> None:
        self.cores = cores
        self.lengths = lengths

    def load(self, workload: Workload, server: str) -> Figures:
        return self._run("tests.bench.load", workload, server)[0]

    def pings(self, workload: Workload) -> Figures:
        """Each message is counted once where there is a limit, and else not at all; or it is `miscounted`."""
        figures = self._run("tests.bench.pings", workload, "trunkline")[0]
        due = 0 if workload.messages == servers.UNLIMITED else figures["pongs"]
        return figures | {"miscounted": abs(figures["counted"] - due)}

    def runs(self, errands: Errands) -> Figures:
        return self._run_errands(errands)[0]

    def registry(self) -> AbstractContextManager[LocalRedis]:
        """A Redis for `requests` of all kinds: they leave as many agents, and making them takes longer than a run."""
        return servers.filled_redis(self.cores, AGENTS)

    def requests(self, requests: Requests, redis: LocalRedis) -> dict[str, Figures]:
        """Both servers, first at their most, then at the steady rate; by the server's name.

        Both are there all the time: they take turns within seconds, and one that is not asked does next to nothing.
        """
        bare = dataclasses.replace(requests, proof="")  # it answers all alike
        with servers.trunkline(redis, self.cores, requests.messages) as node:
            ours = self.ask(requests, redis, node)
            with servers.plain(ours["answer"], self.cores) as plain:
                theirs = self.ask(bare, redis, plain)
                ours = _with_steady(ours, self.ask(requests, redis, node, requests.rate))
                theirs = _with_steady(theirs, self.ask(bare, redis, plain, requests.rate))
        return {"trunkline": ours, "baseline": theirs}

    def ask(
        self, requests: Requests, redis: LocalRedis, server: Server, rate: int = 0, *, is_profiled: bool = False
    ) -> Figures:
        """One run; without `rate` as fast as it goes."""
        job = AgentsJob(
            server_pid=server.pid,
            redis_pid=redis.pid,
            port=server.port,
            redis_port=redis.port,
            prefix=servers.PREFIX,
            path=requests.path,
            body=requests.body,
            proof=requests.proof,
            connections=requests.connections,
            rate=rate,
            warm_seconds=self.lengths.warm,
            seconds=self.lengths.open_loop if rate else self.lengths.closed_loop,
            is_profiled=is_profiled,
        )
        printed = servers.run_module(["tests.bench.agents", json.dumps(dataclasses.asdict(job))], _RUN_SECONDS)
        figures: Figures = json.loads(printed)
        return figures

    def publishes(self) -> Figures:
        return self._publish()[0]

    def profile(self, workload: Workload, phase: str) -> list[Any]:
        """The samples (see `profiled`) of Trunkline's node in that phase of a run: `connect` or `run`."""
        module = "tests.bench.pings" if workload in PINGS else "tests.bench.load"
        return self._run(module, workload, "trunkline", phase)[1]

    def profile_runs(self, errands: Errands) -> tuple[list[Any], list[Any]]:
        """The samples of the node, and of the worker."""
        _, node, worker = self._run_errands(errands, is_profiled=True)
        return node, worker

    def profile_requests(self, requests: Requests, redis: LocalRedis) -> list[Any]:
        """The samples of the node, at its most."""
        with tempfile.TemporaryDirectory() as directory:
            samples = Path(directory, "samples.json")
            with servers.trunkline(redis, self.cores, requests.messages, samples) as node:
                self.ask(requests, redis, node, is_profiled=True)
            return _read_samples(samples)

    def profile_publishes(self) -> list[Any]:
        return self._publish(is_profiled=True)[1]

    def _run(self, module: str, workload: Workload, server: str, phase: str = "") -> tuple[Figures, list[Any]]:
        """One run with a fresh Redis and a fresh server; its figures and, if a phase is profiled, its samples."""
        with tempfile.TemporaryDirectory() as directory, servers.fresh_redis() as redis:
            samples = Path(directory, "samples.json")
            with SERVERS[server](redis, self.cores, workload.messages, samples if phase else None) as running:
                job = Job(
                    server_pid=running.pid,
                    redis_pid=redis.pid,
                    port=running.port,
                    path=running.paths[workload.dialect],
                    redis_port=redis.port,
                    prefix=servers.PREFIX,
                    way=running.broadcast_way if workload.agents == 1 else running.unicast_way,
                    clients=workload.clients,
                    agents=workload.agents,
                    dialect=workload.dialect,
                    is_compressed=workload.is_compressed,
                    window=workload.window,
                    rate=workload.rate,
                    warm_seconds=self.lengths.warm,
                    seconds=self.lengths.open_loop if workload.rate else self.lengths.closed_loop,
                    profile=phase,
                )
                printed = servers.run_module([module, json.dumps(dataclasses.asdict(job))], _RUN_SECONDS)
            return json.loads(printed), _read_samples(samples) if phase else []

    def _run_errands(self, errands: Errands, *, is_profiled: bool = False) -> tuple[Figures, list[Any], list[Any]]:
        """One run with a fresh Redis, node and worker; its figures and, if profiled, the samples of both."""
        with tempfile.TemporaryDirectory() as directory, servers.fresh_redis() as redis:
            key = servers.make_key(redis)
            node, worker = (Path(directory, name) if is_profiled else None for name in ("node.json", "worker.json"))
            with (
                servers.trunkline(redis, self.cores, profile=node) as running,
                servers.worker(redis, self.cores, profile=worker) as worker_pid,
            ):
                job = RunsJob(
                    node_pid=running.pid,
                    worker_pid=worker_pid,
                    redis_pid=redis.pid,
                    port=running.port,
                    redis_port=redis.port,
                    path=running.paths["agnt5"],
                    key=key,
                    clients=errands.clients,
                    outstanding=errands.outstanding,
                    rate=errands.rate,
                    is_keyed=errands.is_keyed,
                    warm_seconds=self.lengths.warm,
                    seconds=self.lengths.open_loop if errands.rate else self.lengths.closed_loop,
                    is_profiled=is_profiled,
                )
                printed = servers.run_module(["tests.bench.runs", json.dumps(dataclasses.asdict(job))], _RUN_SECONDS)
            samples = [_read_samples(file) if file else [] for file in (node, worker)]
            return json.loads(printed), samples[0], samples[1]

    def _publish(self, *, is_profiled: bool = False) -> tuple[Figures, list[Any]]:
        """The producer is what is measured: it has the server's core."""
        with tempfile.TemporaryDirectory() as directory, servers.fresh_redis() as redis:
            samples = Path(directory, "samples.json")
            module = ["tests.bench.producer", str(redis.port), servers.PREFIX, str(self.lengths.producer)]
            printed = servers.run_module(module + [str(samples)] * is_profiled, _RUN_SECONDS, self.cores.server)
            figures = json.loads(printed)
            figures["redis_us"] = machine.cpu_ns(redis.pid) / figures["published"] / 1e3
            return figures, _read_samples(samples) if is_profiled else []


def _with_steady(most: Figures, steady: Figures) -> Figures:
    """The figures of a run at its most, the waiting times of one at a steady rate, and what went wrong in both."""
    counts = {name: most[name] + steady[name] for name in ("asked", "lost", "failed")}
    failure = most["first_failure"] or steady["first_failure"]
    return most | counts | {"first_failure": failure, "p50_ms": steady["p50_ms"], "p99_ms": steady["p99_ms"]}


def _read_samples(file: Path) -> list[Any]:
    """Read when the process that wrote them has ended."""
    if not file.exists():
        raise BenchError("the profiled process wrote no samples")
    return json.loads(file.read_text())["samples"]  # type: ignore[no-any-return]
