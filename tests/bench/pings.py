"""How many inbound messages a second a node takes: clients that each send the next ping when the last is answered.

    python -m tests.bench.pings JOB        (the same job as `load`; what is said there about publishing is not used)

What is counted is looked at from before the first ping to after the last pong, so that its number is exact.
"""

import json
import os
import select
import signal
import sys
import time
from typing import Any

from redis import Redis

from . import machine, payload
from .clients import PING, connect
from .load import Job


def counted(redis: Redis) -> int:
    """How many messages were counted so far: take.lua calls PTTL once for each, and nothing else that runs here does.

    How many scripts ran would say too much: a node also tells of itself and settles who sweeps, every few seconds.
    """
    statistics: dict[str, dict[str, int]] = redis.info("commandstats")
    return statistics.get("cmdstat_pttl", {}).get("calls", 0)


def run(job: Job, redis: Redis) -> dict[str, Any]:
    sockets = connect(job.port, job.path, [payload.agent(0)] * job.clients, job.dialect)
    by_descriptor = {each.fileno(): each for each in sockets}
    epoll = select.epoll()
    before = counted(redis)
    for each in sockets:
        epoll.register(each, select.EPOLLIN)
        each.send(PING)

    def play(deadline: float, *, again: bool) -> int:
        """Answer each pong with a ping until then; answers how many pongs came."""
        pongs = 0
        while (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in epoll.poll(left):
                client = by_descriptor[descriptor]
                data = client.recv(4096)
                if not data:
                    raise ConnectionError("the server closed a connection that did nothing but ping")
                if b'"pong"' in data:  # one at a time: never two of them
                    pongs += 1
                    if again:
                        client.send(PING)
            if not again and pongs == job.clients:
                break
        return pongs

    now = time.monotonic()
    warm = play(now + job.warm_seconds, again=True)
    if job.profile:
        os.kill(job.server_pid, signal.SIGUSR1)
    start, cpu, redis_cpu = time.monotonic(), machine.cpu_ns(job.server_pid), machine.cpu_ns(job.redis_pid)
    pongs = play(start + job.seconds, again=True)
    took, used = time.monotonic() - start, machine.cpu_ns(job.server_pid) - cpu
    redis_used = machine.cpu_ns(job.redis_pid) - redis_cpu
    if job.profile:
        os.kill(job.server_pid, signal.SIGUSR2)
    last = play(time.monotonic() + 2.0, again=False)
    counts = counted(redis) - before
    for each in sockets:
        each.close()
    return {
        "pings_per_second": pongs / took,
        "ping_us": used / pongs / 1e3,
        "redis_us": redis_used / pongs / 1e3,
        "server_busy": used / took / 1e9,
        "pongs": warm + pongs + last,
        "counted": counts,
        "lost": job.clients - last,
    }


def main() -> None:
    machine.raise_open_files()
    job = Job(**json.loads(sys.argv[1]))
    with Redis(port=job.redis_port) as redis:
        print(json.dumps(run(job, redis)))


if __name__ == "__main__":
    main()
