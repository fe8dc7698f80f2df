"""The producer: a steady stream of events, from a process of its own.

    python -m tests.soak.producer REDIS_URL PREFIX WORKSPACES EVENTS EVENTS_PER_SECOND

It ends with the last event, or with its standard input; then it prints what it has published (`words.pack`), of which
Redis has told every position.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import uvloop

from broker import Broker

from . import words
from .words import Published

# As long as the failover of a master may last.
PATIENCE_SECONDS = 60.0

_MAX_LINE_BYTES = 16 * 1024 * 1024


def names(workspaces: int) -> list[str]:
    return [f"ws-{number}" for number in range(workspaces)]


class Producer:
    """The process, from outside."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._said = asyncio.ensure_future(process.stdout.readline())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self, seconds: float) -> bool:
        """So long, or until it has published all; True then."""
        await asyncio.wait((self._said,), timeout=seconds)
        return self._said.done()

    async def end(self) -> Published:
        """What it has published; no more follows."""
        self._stdin.close()
        line = await self._said
        assert line, "the producer has failed"
        return words.unpack(line)


@asynccontextmanager
async def producing(
    redis_url: str, prefix: str, *, workspaces: int, events: int, events_per_second: float
) -> AsyncIterator[Producer]:
    """A producer, which ends with the context."""
    arguments = (redis_url, prefix, str(workspaces), str(events), str(events_per_second))
    process = await create_subprocess_exec(
        sys.executable, "-m", __name__, *arguments, stdin=PIPE, stdout=PIPE, limit=_MAX_LINE_BYTES
    )
    try:
        yield Producer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def perform(redis_url: str, prefix: str, workspaces: int, events: int, events_per_second: float) -> None:
    """At its pace whatever Redis does: what is late is published at once."""
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    score = words.Score(names(workspaces))
    connected = Broker.connect(redis_url, prefix=prefix, patience_seconds=PATIENCE_SECONDS)
    async with connected as broker, asyncio.TaskGroup() as publishing:
        started, number = monotonic(), 0
        while number < events and not ending.done():
            publishing.create_task(broker.publish(score.next(monotonic())))
            number += 1
            await asyncio.sleep(max(0.0, started + number / events_per_second - monotonic()))
    print(words.pack(score.published), flush=True)
    await ending


if __name__ == "__main__":
    _, url, prefix, workspaces, events, pace = sys.argv
    uvloop.run(perform(url, prefix, int(workspaces), int(events), float(pace)))
