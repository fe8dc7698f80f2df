"""How many runs a second go from a client's message through a worker that does nothing to `execution_completed`.

    python -m tests.bench.runs JOB        (JOB: the fields of `RunsJob` as JSON; a JSON object of figures comes out)

A closed loop keeps `outstanding` runs of each client under way, an open loop sends `rate` a second, of the clients in
turn. Each run has a `connection_id` of its own: its first event repeats that, and tells so which message it answers.
Every event of every run is looked at: each run has one execution, and that its four events, once and in order.
"""

import dataclasses
import gc
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import msgspec
from redis import Redis

from . import machine
from .clients import connect_by_key, masked
from .load import percentile_ms
from .reading import CLOSE, TEXT, frames

EVENTS = ("execution_started", "workflow_start", "workflow_end", "execution_completed")

_GIVE_UP_SECONDS = 2.0  # the drain ends when nothing arrived for so long
_HAND_OVERS = 300


@dataclasses.dataclass(frozen=True)
class RunsJob:
    """What to do. With `is_keyed` each run brings an idempotency key too: its node follows it in another way."""

    node_pid: int
    worker_pid: int
    redis_pid: int
    port: int
    redis_port: int
    path: str
    key: str
    clients: int
    outstanding: int
    rate: int
    is_keyed: bool
    warm_seconds: float
    seconds: float
    is_profiled: bool = False


class Details(msgspec.Struct):
    connection_id: str = ""


class Data(msgspec.Struct):
    execution_id: str | None
    details: Details


class Message(msgspec.Struct):
    type: str
    data: Data


class Ledger:
    """What was sent, and what came of it. Latencies are nanoseconds, of what came since they were cleared."""

    def __init__(self) -> None:
        self.sent_ns: dict[str, int] = {}  # by connection_id
        self.executions: dict[str, str] = {}  # by connection_id
        self.begun: dict[str, int] = {}  # execution → when its message was sent
        self.seen: dict[str, int] = {}  # execution → how many of its events
        self.completed = self.failed = self.doubled = self.reordered = 0
        self.started_ns: list[int] = []
        self.completed_ns: list[int] = []

    def send(self, now_ns: int) -> str:
        """A run is sent now; answers its connection_id."""
        run = f"run-{len(self.sent_ns)}"
        self.sent_ns[run] = now_ns
        return run

    def see(self, message: Message, now_ns: int) -> bool:
        """Judge an event; True when it is a run's regular end."""
        execution = message.data.execution_id
        if execution is None or message.type not in EVENTS:
            self.failed += 1
            return False
        place, seen = EVENTS.index(message.type), self.seen.get(execution, 0)
        if place != seen:
            self.doubled += place < seen
            self.reordered += place > seen
            return False
        self.seen[execution] = seen + 1
        if place == 0:
            self._begin(execution, message.data.details.connection_id, now_ns)
        if place + 1 < len(EVENTS):
            return False
        self.completed += 1
        self.completed_ns.append(now_ns - self.begun[execution])
        return True

    def _begin(self, execution: str, run: str, now_ns: int) -> None:
        self.doubled += self.executions.setdefault(run, execution) != execution
        self.begun[execution] = self.sent_ns[run]
        self.started_ns.append(now_ns - self.sent_ns[run])


class Load:
    def __init__(self, job: RunsJob) -> None:
        self.job = job
        self.ledger = Ledger()
        self.epoll = select.epoll()
        self.sockets = connect_by_key(job.port, job.path, job.key, job.clients)
        self.by_descriptor = {each.fileno(): index for index, each in enumerate(self.sockets)}
        self.unread = [bytearray() for _ in self.sockets]
        self.decoder = msgspec.json.Decoder(Message)
        self.is_ending = False
        for each in self.sockets:
            self.epoll.register(each, select.EPOLLIN)

    def run(self) -> dict[str, Any]:
        job, start = self.job, time.monotonic()
        if not job.rate:
            for index in range(job.clients):
                self.send(index, job.outstanding)
        self.play(start, start + job.warm_seconds)
        self.ledger.started_ns.clear()
        self.ledger.completed_ns.clear()
        with self.profiled():
            before, completed = self.counters(), self.ledger.completed
            self.play(start, start + job.warm_seconds + job.seconds)
            after, runs = self.counters(), self.ledger.completed - completed
        latencies = self.latencies()
        self.drain()
        return spent(before, after, runs) | latencies | self.verdict()

    def send(self, client: int, count: int) -> None:
        for _ in range(count):
            run = self.ledger.send(time.time_ns())
            metadata = {"idempotency_key": run} if self.job.is_keyed else {}
            message = {"name": "noop", "parameters": {}, "metadata": metadata, "connection_id": run}
            self.sockets[client].send(masked(json.dumps(message)))

    def play(self, start: float, deadline: float) -> None:
        """An open loop goes by the schedule since `start`, not by its last message: a late one makes no others late."""
        rate, sent_ns = self.job.rate, self.ledger.sent_ns
        while (now := time.monotonic()) < deadline:
            due = start + len(sent_ns) / rate if rate else deadline
            if due <= now:
                self.send(len(sent_ns) % self.job.clients, 1)
            else:
                self.pump(min(due, deadline) - now)

    def pump(self, seconds: float) -> None:
        for descriptor, _ in self.epoll.poll(seconds):
            client = self.by_descriptor[descriptor]
            data = self.sockets[client].recv(1 << 16)
            if not data:
                raise ConnectionError("the server closed a connection")
            now_ns = time.time_ns()
            ended = sum(self.ledger.see(message, now_ns) for message in self.messages(client, data))
            if not (self.job.rate or self.is_ending):
                self.send(client, ended)

    def messages(self, client: int, data: bytes) -> Iterator[Message]:
        unread, parsed = self.unread[client], 0
        unread += data
        for first, begin, end in frames(unread, 0):
            parsed = end
            if first & 0x0F == CLOSE:
                raise ConnectionError(f"closed by the server: {bytes(unread[begin:end])!r}")
            if first & 0x0F == TEXT:
                yield self.decoder.decode(memoryview(unread)[begin:end].tobytes())
        del unread[:parsed]

    def drain(self) -> None:
        """Send nothing more and wait for what is under way."""
        self.is_ending = True
        ledger, progress, last = self.ledger, time.monotonic(), -1
        while ledger.completed < len(ledger.sent_ns) and time.monotonic() - progress < _GIVE_UP_SECONDS:
            self.pump(0.1)
            if ledger.completed != last:
                progress, last = time.monotonic(), ledger.completed
        # What is doubled may come after what was due.
        time.sleep(0.05)
        self.pump(0.0)

    # Judging

    def counters(self) -> dict[str, int]:
        """Nanoseconds of time, and of each process's CPU."""
        job = self.job
        pids = {"node": job.node_pid, "worker": job.worker_pid, "redis": job.redis_pid, "load": os.getpid()}
        return {"time": time.monotonic_ns()} | {name: machine.cpu_ns(pid) for name, pid in pids.items()}

    def latencies(self) -> dict[str, float | None]:
        kinds = {"started": self.ledger.started_ns, "completed": self.ledger.completed_ns}
        return {
            f"{kind}_{name}_ms": percentile_ms(values, share)
            for kind, values in kinds.items()
            for name, share in (("p50", 0.5), ("p99", 0.99))
        }

    def verdict(self) -> dict[str, int]:
        ledger = self.ledger
        return {
            "runs": len(ledger.sent_ns),
            "lost": len(ledger.sent_ns) - ledger.completed,
            "doubled": ledger.doubled,
            "reordered": ledger.reordered,
            "failed": ledger.failed,
        }

    @contextmanager
    def profiled(self) -> Iterator[None]:
        """Tell the samplers of the node and of the worker, if they run under one."""
        pids = (self.job.node_pid, self.job.worker_pid) if self.job.is_profiled else ()
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        yield
        for pid in pids:
            os.kill(pid, signal.SIGUSR2)


def spent(before: dict[str, int], after: dict[str, int], runs: int) -> dict[str, float]:
    """What happened in between, per run and per second."""
    used = {name: after[name] - before[name] for name in before}
    took = used.pop("time")
    figures = {"runs_per_second": runs * 1e9 / took}
    for name, cpu in used.items():
        figures |= {f"{name}_us": cpu / max(1, runs) / 1e3, f"{name}_busy": cpu / took}
    return figures


def hand_over_ms(redis: Redis) -> float:
    """What Redis alone takes from a run's message to its first event: queue, take, say, hear, one after the other."""
    hearing: Any = redis.pubsub()  # type: ignore[no-untyped-call]
    hearing.subscribe("hand-over")
    hearing.get_message(timeout=1.0)
    redis.xgroup_create("hand-over", "workers", mkstream=True)
    took = []
    for _ in range(_HAND_OVERS):
        start = time.monotonic_ns()
        redis.xadd("hand-over", {"x": "1"})
        redis.xreadgroup("workers", "bench", {"hand-over": ">"}, 1)
        redis.publish("hand-over", "1")
        hearing.get_message(timeout=1.0)
        took.append(time.monotonic_ns() - start)
    hearing.close()
    redis.delete("hand-over")
    return median(took) / 1e6


def main() -> None:
    job = RunsJob(**json.loads(sys.argv[1]))
    with Redis(port=job.redis_port) as redis:
        bare = {"hand_over_ms": hand_over_ms(redis)}
    load = Load(job)
    gc.freeze()
    gc.disable()  # a collection would stop the clock of every client
    print(json.dumps(bare | load.run()))


if __name__ == "__main__":
    main()
