"""A worker at work on its endpoint's runs: takes them, keeps them, hears what is to stop, and leaves.

Take      One loop reads the queue while a place is free. What nobody looks after any more (`due`) goes before it.
Beats     Every `BEAT_SECONDS` one call renews all holds. One that fails is soon repeated: there is time for three
          before a hold lapses.
Cancels   Read from a stream that all workers of the endpoint share. What is missed there a beat finds.
Leaving   Nothing new; what is not finished after the grace is stopped and given back, without using up an attempt.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping

from redis.exceptions import RedisError

from ..patience import pause
from ..producer import Producer
from .attempt import Attempt, Workflow
from .exchange import Claimed
from .hold import Reason
from .queue import Queue, Ready

logger = logging.getLogger("trunkline.worker")

BEAT_SECONDS = 3.0
CALL_SECONDS = 1.5
FAREWELL_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5


class Shift:
    """One worker's runs. `work` goes on until `leave` is set, or it is cancelled."""

    def __init__(self, queue: Queue, producer: Producer, workflows: Mapping[str, Workflow], concurrency: int) -> None:
        self._queue, self._producer = queue, producer
        self._workflows, self._concurrency = workflows, concurrency
        self._attempts: dict[str, Attempt] = {}  # by execution
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: dict[str, Ready] = {}
        self._freed = asyncio.Event()
        self._is_leaving = False
        self._last_cancel = "0-0"

    async def work(self, leave: asyncio.Event, grace_seconds: float) -> None:
        taking = asyncio.create_task(self._repeat(self._take, lambda: self._is_leaving))
        loops = [asyncio.create_task(self._repeat(turn, lambda: False)) for turn in (self._beat, self._hear)]
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
        await _end(self._tasks)

    # -- the loops

    async def _repeat(self, turn: Callable[[], Awaitable[None]], is_over: Callable[[], bool]) -> None:
        """Outages of Redis are waited out."""
        seconds, is_lost = _FIRST_PAUSE, False
        while not is_over():
            try:
                await turn()
            except (RedisError, OSError) as error:
                if not is_lost:
                    logger.warning("a worker cannot reach Redis, trying again: %s", type(error).__name__)
                is_lost = True
                await pause(seconds)
                seconds = min(2 * seconds, _LONGEST_PAUSE)
            else:
                seconds, is_lost = _FIRST_PAUSE, False
                await pause(0)

    async def _beat(self) -> None:
        asked = asyncio.get_running_loop().time()
        holds = [attempt.hold for attempt in self._attempts.values()]
        async with asyncio.timeout(CALL_SECONDS):
            found = await self._queue.beat(
                self._workflows, [hold.claimed.execution for hold in holds], [hold.claimed.holder for hold in holds]
            )
        for hold, state in zip(holds, found.states, strict=True):
            if state == "lost":
                hold.stop(Reason.LOST)
                continue
            hold.renew(asked)
            if state == "cancel":
                hold.stop(Reason.CANCELLED)
        self._due = {ready.execution: ready for ready in found.due if ready.execution not in self._attempts}
        await pause(BEAT_SECONDS)

    async def _hear(self) -> None:
        self._last_cancel, executions = await self._queue.cancels(self._last_cancel)
        for execution in executions:
            if execution in self._attempts:
                self._attempts[execution].hold.stop(Reason.CANCELLED)

    async def _take(self) -> None:
        room = self._concurrency - len(self._attempts)
        if room <= 0:
            self._freed.clear()
            await self._freed.wait()
            return
        wanted = [self._due.pop(execution) for execution in list(self._due)[:room]]
        wanted = wanted or await self._queue.read(room)
        if wanted:
            await self._claim([(ready, secrets.token_hex(8)) for ready in wanted])

    async def _claim(self, wanted: list[tuple[Ready, str]]) -> None:
        """Hold what was read. An answer that is lost is asked for again, by the same holders."""
        while True:
            asked = asyncio.get_running_loop().time()
            try:
                found = await self._queue.claim(wanted)
            except (RedisError, OSError):
                if self._is_leaving:
                    raise
                await pause(_FIRST_PAUSE)
            else:
                break
        for claimed in found:
            if claimed is not None:
                self._begin(claimed, asked)

    # -- runs

    def _begin(self, claimed: Claimed, asked: float) -> None:
        attempt = Attempt(claimed, asked, self._queue, self._producer)
        self._attempts[claimed.execution] = attempt
        if self._is_leaving:
            attempt.hold.stop(Reason.LEAVING)
        task = asyncio.create_task(self._make(attempt, claimed.execution))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, attempt: Attempt, execution: str) -> None:
        try:
            await attempt.make(self._workflows)
        except Exception:
            logger.exception("a run could not be made; it begins again when its lease ends")
        finally:
            del self._attempts[execution]
            self._freed.set()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
