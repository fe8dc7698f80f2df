"""One measured run: connect clients, have events published, count and check what arrives, meter the server meanwhile.

    python -m tests.bench.load JOB        (JOB: the fields of `Job` as JSON; a JSON object of figures comes out)

A closed loop keeps at most `window` events published and not yet delivered to all, and asks for more when half of them
is delivered, so that producers come in batches as they do under load. An open loop publishes `rate` per second whatever
happens. Times are CPU times of the server over the measuring window, which begins after a warm-up with the same load.
"""

import dataclasses
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from . import machine, payload
from .clients import connect
from .reading import Reader, Stream, Tally

_SETTLE_SECONDS = 0.2  # between the last client and the look at the memory
_GIVE_UP_SECONDS = 2.0  # the drain ends when nothing arrived for so long


@dataclasses.dataclass(frozen=True)
class Job:
    """What to do. `agents` is 1 (a broadcast) or the number of clients (each its own)."""

    server_pid: int
    redis_pid: int
    port: int
    path: str
    redis_port: int
    prefix: str
    way: str
    clients: int
    agents: int
    dialect: str = "maxicore"
    is_compressed: bool = False
    window: int = 0
    rate: int = 0
    warm_seconds: float = 0.5
    seconds: float = 2.0
    profile: str = ""
    """What of it is to be profiled: nothing, `connect` or `run`. The server is signalled to begin and to end."""


class Load:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.epoll = select.epoll()
        self.sockets: list[socket.socket] = []
        self.readers: dict[int, Reader] = {}
        self.buffer = memoryview(bytearray(1 << 20))
        self.published = 0
        self.delivered = 0
        self.reads = 0
        self.closed = 0
        self.latencies_ns: list[int] = []
        self.publisher = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.bench.publisher", job.way, job.dialect),
                *(str(job.redis_port), job.prefix, str(job.agents)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> dict[str, Any]:
        connecting = self.connect()
        assert self.publisher.stdout is not None
        if self.publisher.stdout.readline() != "ready\n":
            raise RuntimeError("the publisher did not start")
        gc.freeze()
        gc.disable()  # a collection would stop the clock of every client
        running = self.measure()
        self.drain()
        return connecting | running | self.verdict()

    # Connecting

    def connect(self) -> dict[str, Any]:
        """Connect all clients; what that took of the server's time and memory.

        The first one goes alone and is not counted: what it brings about (imports, caches, the first subscription)
        happens once in a server's life.
        """
        job = self.job
        agents = [payload.agent(index % job.agents) for index in range(job.clients)]
        self.sockets += self.join(agents[:1])
        time.sleep(_SETTLE_SECONDS)
        cpu, memory, start = machine.cpu_ns(job.server_pid), machine.resident_kb(job.server_pid), time.monotonic()
        self.profile("connect", signal.SIGUSR1)
        self.sockets += self.join(agents[1:])
        self.profile("connect", signal.SIGUSR2)
        seconds = time.monotonic() - start
        time.sleep(_SETTLE_SECONDS)
        others = max(1, job.clients - 1)
        figures = {
            "connect_us": (machine.cpu_ns(job.server_pid) - cpu) / others / 1e3,
            "connects_per_second": others / seconds,
            "idle_kb": (machine.resident_kb(job.server_pid) - memory) / others,
        }
        shared = Stream()
        for each in self.sockets:
            stream = shared if job.agents == 1 else Stream()
            self.readers[each.fileno()] = Reader(stream, each.recv_into, is_alone=job.agents > 1)
            self.epoll.register(each, select.EPOLLIN)
        return figures

    def join(self, agents: list[str]) -> list[socket.socket]:
        job = self.job
        return connect(job.port, job.path, agents, job.dialect, is_compressed=job.is_compressed)

    # Running

    def measure(self) -> dict[str, Any]:
        job = self.job
        start = time.monotonic()
        if job.rate:
            # Half a period off the beat: no window begins or ends in the middle of a delivery.
            start += 0.5 / job.rate
            self.ask(round((job.warm_seconds + job.seconds) * job.rate) + 1)
        self.pump_until(start + job.warm_seconds)
        self.profile("run", signal.SIGUSR1)
        self.latencies_ns.clear()
        before = self.counters()
        self.pump_until(start + job.warm_seconds + job.seconds)
        after = self.counters()
        self.profile("run", signal.SIGUSR2)
        spent = {name: after[name] - before[name] for name in after if name != "ticks"}
        deliveries = max(1, spent["deliveries"])
        return {
            "deliveries": spent["deliveries"],
            "deliveries_per_second": spent["deliveries"] * 1e9 / spent["time_ns"],
            "server_us": spent["server_ns"] / deliveries / 1e3,
            "server_busy": spent["server_ns"] / spent["time_ns"],
            "server_kernel_share": machine.system_share(before["ticks"], after["ticks"]),
            "redis_busy": spent["redis_ns"] / spent["time_ns"],
            "load_busy": spent["load_ns"] / spent["time_ns"],
            "events_per_read": deliveries / max(1, spent["reads"]),
            "p50_ms": percentile_ms(self.latencies_ns, 0.5),
            "p99_ms": percentile_ms(self.latencies_ns, 0.99),
        }

    def counters(self) -> dict[str, Any]:
        return {
            "time_ns": time.monotonic_ns(),
            "server_ns": machine.cpu_ns(self.job.server_pid),
            "redis_ns": machine.cpu_ns(self.job.redis_pid),
            "load_ns": time.process_time_ns(),
            "deliveries": self.delivered,
            "reads": self.reads,
            "ticks": machine.ticks(self.job.server_pid),
        }

    def ask(self, count: int) -> None:
        """Have so many more events published."""
        assert self.publisher.stdin is not None
        self.published += count
        self.publisher.stdin.write(f"{count} {self.job.rate}\n")
        self.publisher.stdin.flush()

    def pump_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            if not self.job.rate:
                self.refill()
            self.pump(min(left, 0.1))

    def refill(self) -> None:
        job = self.job
        half = job.window // 2
        if job.agents > 1:
            complete = self.delivered
        elif self.delivered < (self.published - job.window + half) * job.clients:
            return  # the sum says so already: not worth looking at every client
        else:
            complete = min(reader.messages for reader in self.readers.values())
        free = job.window - (self.published - complete)
        if free >= half:
            self.ask(free)

    def pump(self, timeout: float) -> None:
        """Read once from every client that has something."""
        readers, buffer, timed = self.readers, self.buffer, self.job.rate > 0
        events = self.epoll.poll(timeout, len(readers))
        for descriptor, _ in events:
            reader = readers[descriptor]
            try:
                size = reader.receive_into(buffer)
            except BlockingIOError:
                continue
            except OSError:
                size = 0
            if not size:
                self.closed += 1
                self.epoll.unregister(descriptor)
                continue
            new = reader.take(buffer[:size])
            self.delivered += new
            if timed and new:
                now = time.time_ns()
                for published_ns in reader.stream.published_ns[reader.messages - new : reader.messages]:
                    self.latencies_ns.append(now - published_ns)
        self.reads += len(events)
        if not events and self.publisher.poll() is not None:
            raise RuntimeError(f"the publisher ended with status {self.publisher.returncode}")

    def drain(self) -> None:
        """Publish nothing more and wait for what is under way."""
        fanout = 1 if self.job.agents > 1 else self.job.clients
        progress, last = time.monotonic(), self.delivered
        while self.delivered < self.published * fanout and time.monotonic() - progress < _GIVE_UP_SECONDS:
            self.pump(0.1)
            if self.delivered != last:
                progress, last = time.monotonic(), self.delivered
        # What is doubled may come after what was due.
        time.sleep(0.05)
        self.pump(0.0)

    # Judging

    def verdict(self) -> dict[str, Any]:
        """What went wrong over the whole run, warm-up and drain included."""
        agents, readers = self.job.agents, list(self.readers.values())
        streams = {id(reader.stream): reader.stream for reader in readers}.values()
        tallies: dict[tuple[int, int], Tally] = {}  # most readers of one stream are at the same place: judged once
        lost = doubled = reordered = 0
        for index, reader in enumerate(readers):
            place = (id(reader.stream), reader.messages)
            tally = tallies.get(place) or tallies.setdefault(place, reader.tally())
            lost += tally.lost(len(range(index % agents, self.published, agents)))
            doubled += tally.doubled
            reordered += tally.reordered
        return {
            "published": self.published,
            "lost": lost,
            "doubled": doubled,
            "reordered": reordered,
            "closed": self.closed,
            "strays": sum(len(stream.others) for stream in streams),
            "compressed": sum(stream.compressed for stream in streams),
            "frame_bytes": next((reader.stream.ends[0] for reader in readers if reader.stream.ends), 0),
        }

    def profile(self, what: str, number: signal.Signals) -> None:
        if self.job.profile == what:
            os.kill(self.job.server_pid, number)

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        assert self.publisher.stdin is not None
        self.publisher.stdin.close()
        try:
            self.publisher.wait(5)
        except subprocess.TimeoutExpired:
            self.publisher.kill()
            self.publisher.wait(5)


def percentile_ms(values_ns: list[int], share: float) -> float | None:
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


def main() -> None:
    machine.raise_open_files()
    load = Load(Job(**json.loads(sys.argv[1])))
    try:
        print(json.dumps(load.run()))
    finally:
        load.close()


if __name__ == "__main__":
    main()
