"""A worker at work on its endpoint's runs: takes them, keeps them, hears what is to stop, and leaves.

Take      One loop reads the queue while a place is free. What nobody looks after any more (`due`) goes before it.
Beats     Another thread renews all holds (beats.py says why), and finds what is due.
Cancels   Read from a stream that all workers of the endpoint share. What is missed there a beat finds.
Leaving   Nothing new; what is not finished after the grace is stopped and given back, without using up an attempt.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from time import monotonic

from redis.exceptions import RedisError

from ..broker import Broker
from ..patience import pause, repeat
from .attempt import Attempt, Workflow
from .beats import OUTAGE, Beats
from .exchange import Claimed
from .hold import Lease, Reason
from .queue import Queue, Ready

logger = logging.getLogger("trunkline.worker")

FAREWELL_SECONDS = 5.0
_PAUSE_SECONDS = 0.05


class Shift:
    """One worker's runs. `work` goes on until `leave` is set, or it is cancelled."""

    def __init__(self, broker: Broker, queue: Queue, workflows: Mapping[str, Workflow], concurrency: int) -> None:
        self._queue, self._producer = queue, broker.producer
        self._workflows, self._concurrency = workflows, concurrency
        self._beats = Beats(broker.address, queue, workflows, self._stop, self._find_due)
        self._attempts: dict[Lease, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: dict[str, Ready] = {}
        self._freed = asyncio.Event()
        self._is_leaving = False
        self._last_cancel = "0-0"

    async def work(self, leave: asyncio.Event, grace_seconds: float) -> None:
        taking = asyncio.create_task(repeat(self._take, logger, OUTAGE, is_over=lambda: self._is_leaving))
        loops = [asyncio.create_task(self._beats.run()), asyncio.create_task(repeat(self._hear, logger, OUTAGE))]
        leaving = asyncio.create_task(_wait_for(leave))
        try:
            await asyncio.wait((leaving, taking, *loops), return_when=asyncio.FIRST_COMPLETED)
            for loop in (taking, *loops):
                if loop.done():
                    loop.result()  # a bug of ours
            await self._stop_taking(taking)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=grace_seconds)
        finally:
            await self._stop_taking(taking)
            await self._give_back()
            await _end([leaving, taking, *loops])

    async def _stop_taking(self, taking: asyncio.Task[None]) -> None:
        """Let the turn end that is under way: it may have been given runs."""
        self._is_leaving = True
        self._freed.set()
        await asyncio.wait((taking,), timeout=FAREWELL_SECONDS)

    async def _give_back(self) -> None:
        """Stop what is left, and give it back if Redis can be told."""
        for attempt in self._attempts.values():
            attempt.hold.stop(Reason.LEAVING)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FAREWELL_SECONDS)
        for lease, attempt in self._attempts.items():
            if attempt.hold.is_at_work:
                logger.error("workflow %s does not end when it is stopped: run %s", attempt.name, lease.execution)
        await _end(self._tasks)

    # -- the loops, and what beats find

    def _stop(self, lease: Lease, reason: Reason) -> None:
        if lease in self._attempts:
            self._attempts[lease].hold.stop(reason)

    def _find_due(self, found: list[Ready]) -> None:
        ours = {lease.execution for lease in self._attempts}
        self._due = {ready.execution: ready for ready in found if ready.execution not in ours}

    async def _hear(self) -> None:
        self._last_cancel, executions = await self._queue.cancels(self._last_cancel)
        for lease, attempt in self._attempts.items():
            if lease.execution in executions:
                attempt.hold.stop(Reason.CANCELLED)

    async def _take(self) -> None:
        room = self._concurrency - len(self._attempts)
        if room <= 0:
            self._freed.clear()
            await self._freed.wait()
            return
        wanted = [self._due.pop(execution) for execution in list(self._due)[:room]]
        wanted = wanted or await self._queue.read(room)
        if wanted:
            leases = [Lease(ready.execution, secrets.token_hex(8)) for ready in wanted]
            self._beats.keep(leases)
            try:
                await self._claim(wanted, leases)
            finally:
                self._beats.drop(lease for lease in leases if lease not in self._attempts)

    async def _claim(self, wanted: list[Ready], leases: list[Lease]) -> None:
        """Hold what was read. An answer that is lost is asked for again, by the same holders."""
        while True:
            asked = monotonic()
            try:
                found = await self._queue.claim(wanted, [lease.holder for lease in leases])
            except (RedisError, OSError):
                if self._is_leaving:
                    raise
                await pause(_PAUSE_SECONDS)
            else:
                break
        for claimed, lease in zip(found, leases, strict=True):
            if claimed is not None:
                lease.grant(asked)
                self._begin(claimed, lease)

    # -- runs

    def _begin(self, claimed: Claimed, lease: Lease) -> None:
        attempt = Attempt(claimed, lease, self._queue, self._producer)
        self._attempts[lease] = attempt
        if self._is_leaving:
            attempt.hold.stop(Reason.LEAVING)
        task = asyncio.create_task(self._make(attempt, lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, attempt: Attempt, lease: Lease) -> None:
        try:
            await attempt.make(self._workflows)
        except Exception:
            logger.exception("a run could not be made; it begins again when its lease ends")
        finally:
            del self._attempts[lease]
            self._beats.drop([lease])
            self._freed.set()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
