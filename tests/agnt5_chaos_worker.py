"""A worker for the test of runs under chaos: it writes down when it enters and leaves each attempt.

`python -m tests.agnt5_chaos_worker` runs it, with the beats and leases of production. From the environment: REDIS_URL,
PREFIX, and JOURNAL, the file that all workers append to. What was written there survives a SIGKILL.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from broker import Retry, Run, Worker

ENDPOINT, WORKSPACE, WORKFLOW = "coffee-shop-e66b8d23", "ws-456", "chaos"
LOG_EVENTS = 200_000

Mood = Literal["well", "fails", "retries"]


class Line(NamedTuple):
    """One line of the journal: `word` is enter or leave, `at` monotonic over all processes, `told_ms` Unix time."""

    word: str
    execution: str
    attempt: int
    pid: int
    at: float
    told_ms: int


def read(journal: Path) -> Iterator[Line]:
    for line in journal.read_text().splitlines():
        word, execution, attempt, pid, at, told_ms = line.split()
        yield Line(word, execution, int(attempt), int(pid), float(at), int(told_ms))


class Journal:
    """The writer's end. A line is one write at the end of the file, so lines of several processes do not mix."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @contextmanager
    def attempt(self, run: Run) -> Iterator[None]:
        self._write("enter", run)
        try:
            yield
        finally:
            self._write("leave", run)

    def _write(self, word: str, run: Run) -> None:
        line = f"{word} {run.id} {run.attempt} {os.getpid()} {time.monotonic():.6f} {time.time_ns() // 1_000_000}\n"
        os.write(self._file, line.encode())


def make_worker(redis_url: str, prefix: str, journal: Journal) -> Worker:
    worker = Worker(redis_url, endpoint=ENDPOINT, prefix=prefix, concurrency=25, log_events=LOG_EVENTS)

    @worker.workflow(WORKFLOW)
    async def chaos(run: Run, number: int, seconds: float, mood: Mood) -> dict[str, int]:
        with journal.attempt(run):
            async with run.task("work"):
                await asyncio.sleep(seconds)
            if mood == "fails":
                raise ValueError(f"number {number}")
            if mood == "retries" and run.attempt == 1:
                raise Retry(seconds=0.1)
        return {"number": number, "attempt": run.attempt}

    return worker


if __name__ == "__main__":
    words = os.environ
    asyncio.run(make_worker(words["REDIS_URL"], words["PREFIX"], Journal(words["JOURNAL"])).run())
