"""How many inbound messages a second a node takes: clients that each send the next ping when the last is answered.

python -m tests.bench.pings JOB        (the same job as `load`; what is said there about publishing is not used)
"""

import json
import os
import select
import signal
import sys
import time
from typing import Any

from . import machine, payload
from .clients import PING, connect
from .load import Job


def run(job: Job) -> dict[str, Any]:
    sockets = connect(job.port, job.path, [payload.agent(0)] * job.clients)
    by_descriptor = {each.fileno(): each for each in sockets}
    epoll = select.epoll()
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
    play(now + job.warm_seconds, again=True)
    if job.profile:
        os.kill(job.server_pid, signal.SIGUSR1)
    start, cpu = time.monotonic(), machine.cpu_ns(job.server_pid)
    pongs = play(start + job.seconds, again=True)
    took, used = time.monotonic() - start, machine.cpu_ns(job.server_pid) - cpu
    if job.profile:
        os.kill(job.server_pid, signal.SIGUSR2)
    last = play(time.monotonic() + 2.0, again=False)
    for each in sockets:
        each.close()
    return {
        "pings_per_second": pongs / took,
        "ping_us": used / pongs / 1e3,
        "server_busy": used / took / 1e9,
        "lost": job.clients - last,
    }


if __name__ == "__main__":
    machine.raise_open_files()
    print(json.dumps(run(Job(**json.loads(sys.argv[1])))))
