"""Decisions: what one script in Redis decides for many who ask, in as few round trips as they need."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from hashlib import sha256
from time import monotonic
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ..script import Argument, Script

log = logging.getLogger("trunkline.limits")

# A decision that Redis has not made in this time is made by the node.
PATIENCE_SECONDS = 1.0
# After a failure Redis is left alone for this time, so that nobody waits for the same failure again.
AWAY_SECONDS = 1.0
MAX_BATCH = 500
MAX_WAITING = 10_000

_MAX_HOLDER_CHARACTERS = 200


def short(holder: str) -> str:
    """A holder as a part of key names: itself, or its hash when it is long or no plain text (a JWT's `sub` is any)."""
    if len(holder) <= _MAX_HOLDER_CHARACTERS and holder.isprintable():
        return holder
    return "sha256:" + sha256(holder.encode(errors="surrogatepass")).hexdigest()


Promise = asyncio.Future[list[int] | None]


class Call(NamedTuple):
    """What a script is to be given, and who waits for its answer."""

    keys: Sequence[str]
    arguments: Sequence[Argument]
    promise: Promise


class Decisions:
    """What one script decides, one call for each decision, many calls in one round trip.

    What is asked for while a round trip is under way waits and goes into the next, so batches form by themselves under
    load. A task exists only while something waits.
    """

    def __init__(self, redis: Redis, name: str) -> None:
        self._name = name
        self._script = Script(redis, name)
        self._waiting: deque[Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self._away_until = 0.0
        self._has_failed = False
        self._is_closed = False

    @property
    def is_away(self) -> bool:
        """True when nobody is to ask now: Redis has just failed, or too many wait for it, or this is closed."""
        return self._is_closed or monotonic() < self._away_until or len(self._waiting) >= MAX_WAITING

    def ask(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Promise:
        """The script's answer. None: Redis gave none, and whether the script ran is unknown, unless this `is_away`.

        A promise that is cancelled harms no other; its script may have run, or may still.
        """
        promise: Promise = asyncio.get_running_loop().create_future()
        if self.is_away:
            promise.set_result(None)
            return promise
        self._waiting.append(Call(keys, arguments, promise))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return promise

    async def close(self) -> None:
        """End what is under way: it has no answer, nor has anything that is asked from now on."""
        self._is_closed = True
        task = self._task
        self._end()  # a task that is cancelled before its first step would not do so
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        """Ask until nothing waits, or Redis fails."""
        try:
            while not self._is_closed and (batch := self._load()):
                if not await self._send(batch):
                    break
        finally:
            self._end()

    def _end(self) -> None:
        """Nothing is asked any more: there is no answer for what still waits."""
        self._task = None
        _settle(self._waiting)
        self._waiting.clear()

    def _load(self) -> list[Call]:
        """The next batch; what nobody waits for any more is left out."""
        batch: list[Call] = []
        while self._waiting and len(batch) < MAX_BATCH:
            call = self._waiting.popleft()
            if not call.promise.done():
                batch.append(call)
        return batch

    async def _send(self, batch: list[Call]) -> bool:
        """One round trip; false when it failed."""
        answers: Sequence[list[int] | None] = ()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                answers = await self._script.run_many([(call.keys, call.arguments) for call in batch])
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._fail(error)
            return False
        finally:
            _settle(batch, answers)
        self._has_failed = False
        return True

    def _fail(self, error: Exception) -> None:
        self._away_until = monotonic() + AWAY_SECONDS
        if not self._has_failed:
            # Its own words may hold keys, and those a user's name.
            log.warning("no answer to %s (%s): this node decides alone", self._name, type(error).__name__)
        self._has_failed = True


def _settle(calls: Sequence[Call], answers: Sequence[list[int] | None] = ()) -> None:
    """Tell the callers; without answers, that there is none."""
    for index, call in enumerate(calls):
        if not call.promise.done():
            call.promise.set_result(answers[index] if answers else None)
