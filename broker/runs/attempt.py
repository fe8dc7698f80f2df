"""One attempt at a run: begin, let the workflow work, say how it ended, or give the run back.

Decide   What was claimed may end before it begins: it is to be cancelled, its deadline has passed, workers that died
         have used up its attempts, nobody knows its workflow, or its parameters are wrong.
Work     The workflow's coroutine is a task of its own, so that it can be stopped (hold.py says why) and this goes on.
End      The last event and the run's state are one step in Redis. It is refused if somebody else holds the run.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from ..errors import Invalid
from ..patience import pause
from ..producer import Producer
from .exchange import Claimed
from .hold import Hold, Lease, Reason
from .outbox import Outbox
from .parameters import Parameters
from .queue import Queue
from .steps import Run
from .trouble import Retry, describe, root

logger = logging.getLogger("trunkline.worker")

RELEASE_SECONDS = 60.0
UNSERVED_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0

_random = random.Random()  # noqa: S311 (spreads retries)


class Workflow(NamedTuple):
    """A function that users gave, and what it takes."""

    function: Callable[..., Awaitable[Any]]
    parameters: Parameters


class Ended(NamedTuple):
    """The run is over: `state` is the second word of its last event."""

    state: str
    details: dict[str, Any]


class GivenBack(NamedTuple):
    """The run waits again. A spared attempt does not count."""

    is_spared: bool
    seconds: float


class Attempt:
    """One attempt at a run that this worker holds."""

    def __init__(self, claimed: Claimed, lease: Lease, queue: Queue, producer: Producer) -> None:
        self.hold = Hold(claimed, lease, self._stopped)
        self._claimed, self._queue = claimed, queue
        fence = queue.fence(claimed)
        self._outbox = Outbox(producer, queue.workspace, queue.endpoint, fence, lambda: self.hold.stop(Reason.LOST))

    async def make(self, workflows: Mapping[str, Workflow]) -> None:
        """From beginning to end, whatever the workflow does."""
        try:
            if self.hold.reason in (Reason.LEAVING, Reason.LAPSED):
                outcome: Ended | GivenBack | None = GivenBack(is_spared=True, seconds=0)  # it came too late to begin
            else:
                outcome = judge(self._claimed, workflows) or await self._perform(workflows[self._claimed.name])
            match outcome:
                case Ended():
                    await self._end(outcome)
                case GivenBack():
                    await self._give_back(outcome)
        finally:
            self.hold.close()

    async def _perform(self, workflow: Workflow) -> Ended | GivenBack | None:
        claimed, outbox = self._claimed, self._outbox
        connection = {"connection_id": claimed.connection} if claimed.connection else {}
        retried = {"attempt": claimed.attempt} if claimed.attempt > 1 else {}
        outbox.say("execution_started", {"name": claimed.name} | connection | retried)
        try:
            parameters = workflow.parameters.check(claimed.parameters)
        except Invalid as invalid:
            return _failed("INVALID_PARAMETERS", str(invalid))
        run = Run(claimed, outbox)
        run.begin()
        work = asyncio.create_task(_call(workflow.function, run, parameters))
        self.hold.begin(work)
        await asyncio.wait((work,))
        if work.cancelled():
            return self._interrupted(run)
        if (error := work.exception()) is not None:
            return self._troubled(run, error)
        if self.hold.reason in (Reason.CANCELLED, Reason.DEADLINE):
            return self._interrupted(run)  # it did not mind, but its client was told so
        return self._done(run, work.result())

    def _done(self, run: Run, result: Any) -> Ended:
        run.output(result)
        try:
            run.end()
        except Invalid as invalid:
            error = {"code": "INVALID_OUTPUT", "message": str(invalid)}
            run.fail(error)
            return Ended("failed", {"error": error})
        return Ended("completed", {"output": result} | run.took())

    def _interrupted(self, run: Run) -> Ended | GivenBack | None:
        run.fail(self._outbox.stopped)
        match self.hold.reason:
            case Reason.CANCELLED:
                return Ended("cancelled", run.took())
            case Reason.LEAVING | Reason.LAPSED:
                return GivenBack(is_spared=True, seconds=0)
            case Reason.LOST:
                return None
            case _:  # its deadline, or it has cancelled itself
                return Ended("failed", {"error": self._outbox.stopped} | run.took())

    def _troubled(self, run: Run, error: BaseException) -> Ended | GivenBack | None:
        if self.hold.reason is not None:
            return self._interrupted(run)  # a `finally` that failed on the way out
        words = describe(error)
        run.fail(words)
        cause = root(error)
        if isinstance(cause, Retry) and self._claimed.tries < self._claimed.max_tries:
            return GivenBack(is_spared=False, seconds=backoff(self._claimed.tries, cause.seconds))
        logger.warning("a run of %s failed: %s", self._claimed.name, _place(cause))
        return Ended("failed", {"error": words} | run.took())

    def _stopped(self, reason: Reason) -> None:
        self._outbox.stopped = reason.error

    async def _end(self, ended: Ended) -> None:
        details = {"name": self._claimed.name} | ended.details
        promise = self._outbox.say(f"execution_{ended.state}", details, ended.state)
        await asyncio.wait((promise,))
        if promise.cancelled():
            # Redis was away for minutes, and what it knows is in doubt: a run that has ended is not given back.
            logger.error("the end of a run could not be told")
            await self._give_back(GivenBack(is_spared=True, seconds=0))

    async def _give_back(self, back: GivenBack) -> None:
        """Until Redis knows, or the run's deadline has passed: however long it is away, that uses up no attempt."""
        claimed, seconds = self._claimed, _FIRST_PAUSE
        try:
            async with asyncio.timeout(max(claimed.left_ms / 1000, RELEASE_SECONDS)):
                await self._outbox.sent()
                while True:
                    try:
                        return await self._queue.release(
                            claimed.execution, claimed.holder, is_spared=back.is_spared, seconds=back.seconds
                        )
                    except (RedisError, OSError):
                        await pause(seconds)
                        seconds = min(2 * seconds, _LONGEST_PAUSE)
        except TimeoutError:
            logger.warning("a run could not be given back")


def judge(claimed: Claimed, workflows: Mapping[str, Workflow]) -> Ended | GivenBack | None:
    """How a run ends before it begins; None: it may begin."""
    if claimed.is_cancelled:
        return Ended("cancelled", {"connection_id": claimed.connection} if claimed.connection else {})
    if claimed.left_ms <= 0:
        return Ended("failed", {"error": Reason.DEADLINE.error})
    if claimed.tries > claimed.max_tries:
        return _failed("WORKER_LOST", f"its worker died, {claimed.max_tries} times in all")
    if claimed.name not in workflows:
        if claimed.is_served:
            return GivenBack(is_spared=True, seconds=UNSERVED_SECONDS)  # for another worker, of a newer version
        return _failed("UNKNOWN_WORKFLOW", "no workflow of this name at this endpoint")
    return None


def backoff(tries: int, seconds: float | None) -> float:
    """How long a run waits after so many tries: 1 s, 2 s, 4 s … a minute, half of it by chance."""
    if seconds is not None:
        return max(seconds, 0.0)
    return min(2.0 ** (tries - 1), LONGEST_BACKOFF_SECONDS) * _random.uniform(0.5, 1.0)


def _failed(code: str, message: str) -> Ended:
    return Ended("failed", {"error": {"code": code, "message": message}})


async def _call(function: Callable[..., Awaitable[Any]], run: Run, parameters: dict[str, Any]) -> Any:
    return await function(run, **parameters)


def _place(error: BaseException) -> str:
    """What was raised and where. Not its message: a client's words may be in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{where}"
