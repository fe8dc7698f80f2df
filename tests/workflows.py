"""Workers of tests, as their users write them. What they do they record in Redis, each in a process of its own.

`python -m tests.workflows` runs one with beats and leases that tests can wait for. From the environment: REDIS_URL,
PREFIX, CONCURRENCY and LEASE_SECONDS.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from broker import Retry, Run, Worker
from broker.runs import beats, hold, queue, submitter

WORKSPACE, ENDPOINT = "ws-456", "coffee-shop-e66b8d23"

PREFIX = os.environ.get("PREFIX", "trunkline")
worker = Worker(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    endpoint=ENDPOINT,
    workspace_id=WORKSPACE,
    prefix=PREFIX,
    concurrency=int(os.environ.get("CONCURRENCY", "10")),
    log_events=100_000,
)


def quicken(set_: Any = setattr, lease_seconds: float = 1.0) -> None:
    """Beats and leases of a tenth, unless told otherwise; `set_` may be monkeypatch.setattr."""
    for module in (hold, queue, submitter):
        set_(module, "LEASE_SECONDS", lease_seconds)
    set_(hold, "MARGIN_SECONDS", 0.3 * lease_seconds)
    set_(beats, "BEAT_SECONDS", 0.2 * lease_seconds)
    set_(beats, "CALL_SECONDS", 0.3 * lease_seconds)
    set_(queue, "GRACE_SECONDS", 0.5 * lease_seconds)
    set_(queue, "SERVED_SECONDS", 1.5 * lease_seconds)
    set_(queue, "REMEMBERED_SECONDS", 1.0 * lease_seconds)
    set_(queue, "RETURN_SECONDS", 1.5 * lease_seconds)
    set_(queue, "BLOCK_MS", 100)


@asynccontextmanager
async def recorded(run: Run) -> AsyncIterator[Redis]:
    """Write down that a run is live here: in `alive:<run>` all who are, in `journal` what happened.

    `two` says that another was, and had not died: a process that is killed is taken out by the test that killed it.
    """
    me = f"{os.getpid()}"
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        alive, journal = f"{PREFIX}-alive:{run.id}", f"{PREFIX}-journal"
        async with redis.pipeline() as pipe:
            pipe.sadd(alive, me)
            pipe.smembers(alive)
            pipe.rpush(journal, f"begin {run.id} {run.attempt} {me}")
            _, others, _ = await pipe.execute()
        killed = await redis.smembers(f"{PREFIX}-killed")
        if others - killed - {me.encode()}:
            await redis.rpush(journal, f"two {run.id} {run.attempt} {me}")
        try:
            yield redis
        finally:
            async with redis.pipeline() as pipe:
                pipe.srem(alive, me)
                pipe.rpush(journal, f"end {run.id} {run.attempt} {me}")
                await pipe.execute()


@worker.workflow("sleep")
async def sleep(run: Run, seconds: float = 60.0) -> str:
    async with recorded(run), run.task("nap"):
        await asyncio.sleep(seconds)
    return "rested"


@worker.workflow("chance")
async def chance(run: Run) -> int:
    """Some succeed, some fail, some want to be tried again."""
    async with recorded(run), run.task("dice"):
        await asyncio.sleep(random.uniform(0, 0.3))
        luck = random.random()
        if luck < 0.1:
            raise ValueError("bad luck")
        if luck < 0.2:
            raise Retry("again", seconds=0.05)
    return run.attempt


@worker.workflow("block")
async def block(run: Run, moments: float) -> int:
    """Lets nothing else happen in its process' loop meanwhile."""
    async with recorded(run), run.task("block"):
        time.sleep(moments)
    return run.attempt


@worker.workflow("compute")
async def compute(run: Run, moments: float) -> int:
    """So does this one, and keeps the interpreter busy."""
    async with recorded(run):
        end = time.monotonic() + moments
        while time.monotonic() < end:
            pass
    return run.attempt


@worker.workflow("poison")
async def poison(run: Run) -> None:
    """Takes its worker with it."""
    async with recorded(run):
        os._exit(9)


if __name__ == "__main__":
    quicken(lease_seconds=float(os.environ.get("LEASE_SECONDS", "1")))
    asyncio.run(worker.run())
    sys.exit(0)
