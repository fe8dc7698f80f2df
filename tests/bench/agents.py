"""How many requests a second the Agents API takes, and how long each of them waits, on connections that are kept.

    python -m tests.bench.agents JOB        (JOB: the fields of `AgentsJob` as JSON; a JSON object of figures comes out)

In a closed loop each connection asks again as soon as it is answered. An open loop asks `rate` times a second whatever
happens: what finds no free connection waits for one, and that counts, for time runs from when a request is due. Nothing
is pipelined. Of every answer the status is looked at, and whether it says what it must.
"""

import dataclasses
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

from redis import Redis

from broker.keyspace import Keyspace

from ..support import token
from . import machine, payload
from .load import percentile_ms

_SCOPE = "agents:read agents:write"
_GIVE_UP_SECONDS = 2.0  # the drain ends when nothing arrived for so long
_FIRST_NUMBER = 100_000  # of a width that stays, as all that is said


@dataclasses.dataclass(frozen=True)
class AgentsJob:
    """What to do. In `path`, `body` and `proof` stand AGENT for the next agent in turn and NUMBER for the request's.

    A `body` is put, without one it is a GET. Each answer has `proof` in it.
    """

    server_pid: int
    redis_pid: int
    port: int
    redis_port: int
    prefix: str
    path: str
    body: str
    proof: str
    connections: int
    rate: int
    warm_seconds: float
    seconds: float
    is_profiled: bool = False


class Connection:
    """One client: a socket with at most one request under way, which was due at `due`."""

    __slots__ = ("due", "head", "proof", "socket", "unread")

    def __init__(self, port: int, number: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        credentials = token(payload.WORKSPACE, sub=f"user-{number}", scope=_SCOPE)
        self.head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {credentials}\r\nAccept: */*\r\n"
        self.unread = b""
        self.proof = b""
        self.due = 0.0

    def ask(self, path: str, body: str, proof: str, due: float) -> None:
        self.proof, self.due = proof.encode(), due
        if body:
            said = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            self.socket.sendall(f"PUT {path} HTTP/1.1\r\n{self.head}{said}".encode())
        else:
            self.socket.sendall(f"GET {path} HTTP/1.1\r\n{self.head}\r\n".encode())

    def read(self) -> bytes | None:
        """The answer, once all of it is there. Raises `ConnectionError` when the server closes instead."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError(f"the server closed a connection after {self.unread[:300]!r}")
        self.unread += data
        head, found, body = self.unread.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return None
        answer, self.unread = self.unread, b""
        return answer

    def is_right(self, answer: bytes) -> bool:
        return answer.startswith(b"HTTP/1.1 200 ") and self.proof in answer


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])


class Load:
    def __init__(self, job: AgentsJob, agents: list[str]) -> None:
        self.job = job
        self.agents = agents
        self.epoll = select.epoll()
        connections = [Connection(job.port, number) for number in range(job.connections)]
        self.by_descriptor = {each.socket.fileno(): each for each in connections}
        self.idle = deque(connections)
        self.asked = self.answered = self.failed = 0
        self.first_failure = ""
        self.latencies_ns: list[int] = []
        self.last_answer = b""
        for descriptor in self.by_descriptor:
            self.epoll.register(descriptor, select.EPOLLIN)

    def run(self) -> dict[str, Any]:
        job, self.start = self.job, time.monotonic()
        measures_from = self.start + job.warm_seconds
        self.play(measures_from)
        self.latencies_ns.clear()
        self.signal(signal.SIGUSR1)
        before = self.counters()
        self.play(measures_from + job.seconds)
        after = self.counters()
        self.signal(signal.SIGUSR2)
        self.drain(measures_from + job.seconds)
        return spent(before, after) | {
            "p50_ms": percentile_ms(self.latencies_ns, 0.5),
            "p99_ms": percentile_ms(self.latencies_ns, 0.99),
            "asked": self.asked,
            "lost": self.asked - self.answered,
            "failed": self.failed,
            "first_failure": self.first_failure,
            "answer": self.last_answer.decode(),
        }

    def play(self, deadline: float) -> None:
        while (now := time.monotonic()) < deadline:
            while self.idle and (due := self.next_due(now)) <= now:
                self.ask(due)
            self.pump((min(self.next_due(now), deadline) if self.idle else deadline) - now)

    def drain(self, deadline: float) -> None:
        """Ask what was due before `deadline` and found no free connection; wait for what is under way."""
        progress, last = time.monotonic(), self.answered
        while time.monotonic() - progress < _GIVE_UP_SECONDS:
            while self.job.rate and self.idle and (due := self.next_due(deadline)) < deadline:
                self.ask(due)
            if len(self.idle) == self.job.connections:
                return
            self.pump(0.1)
            if self.answered != last:
                progress, last = time.monotonic(), self.answered

    def next_due(self, now: float) -> float:
        """An open loop goes by the schedule, not by its last request: a late one makes no others late."""
        return self.start + self.asked / self.job.rate if self.job.rate else now

    def ask(self, due: float) -> None:
        job, agent = self.job, self.agents[self.asked % len(self.agents)]
        number = str(_FIRST_NUMBER + self.asked)
        path, body, proof = (
            text.replace("AGENT", agent).replace("NUMBER", number) for text in (job.path, job.body, job.proof)
        )
        self.asked += 1
        self.idle.popleft().ask(path, body, proof, due)

    def pump(self, seconds: float) -> None:
        """Read once from every connection that has something."""
        # epoll waits for whole milliseconds: requests would go out late, and that would count.
        select.select([self.epoll], [], [], max(0.0, seconds))
        for descriptor, _ in self.epoll.poll(0):
            connection = self.by_descriptor[descriptor]
            answer = connection.read()
            if answer is None:
                continue
            self.answered += 1
            self.latencies_ns.append(round(1e9 * (time.monotonic() - connection.due)))
            self.last_answer = answer
            if not connection.is_right(answer):
                self.failed += 1
                self.first_failure = self.first_failure or repr(answer[:500])
            self.idle.append(connection)

    def counters(self) -> dict[str, int]:
        """Nanoseconds of time and of each process's CPU, and the answers so far."""
        pids = {"server": self.job.server_pid, "redis": self.job.redis_pid, "load": os.getpid()}
        return {"time": time.monotonic_ns(), "answers": self.answered} | {
            name: machine.cpu_ns(pid) for name, pid in pids.items()
        }

    def signal(self, number: signal.Signals) -> None:
        """Tell the sampler of the server, if it runs under one."""
        if self.job.is_profiled:
            os.kill(self.job.server_pid, number)


def spent(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """What happened in between, per request and per second."""
    used = {name: after[name] - before[name] for name in before}
    took, answers = used.pop("time"), used.pop("answers")
    figures = {"requests_per_second": answers * 1e9 / took}
    for name, cpu in used.items():
        figures |= {f"{name}_us": cpu / max(1, answers) / 1e3, f"{name}_busy": cpu / took}
    return figures


def main() -> None:
    job = AgentsJob(**json.loads(sys.argv[1]))
    with Redis(port=job.redis_port) as redis:
        names: Any = redis.zrange(Keyspace(job.prefix).agents(payload.WORKSPACE), 0, -1)
    load = Load(job, [name.decode() for name in names])
    gc.freeze()
    gc.disable()  # a collection would stop the clock of every request
    print(json.dumps(load.run()))


if __name__ == "__main__":
    main()
