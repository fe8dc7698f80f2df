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
from .exchange import Claimed, Fate
from .hold import Hold, Lease, Reason
from .outbox import Outbox
from .parameters import Parameters
from .queue import Queue
from .steps import Run, Trace
from .trouble import Retry, describe, place, root

logger = logging.getLogger("trunkline.worker")

RELEASE_SECONDS = 60.0
# When a worker that does not know a run's workflow gives it back: where another one lives that does, and where none is.
ELSEWHERE_SECONDS = 1.0
AWAY_SECONDS = 5.0
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
    """The run waits again."""

    attempt: Fate
    seconds: float = 0.0


class Attempt:
    """One attempt at a run that this worker holds."""

    def __init__(self, claimed: Claimed, lease: Lease, queue: Queue, producer: Producer) -> None:
        self.hold = Hold(claimed, lease, self._stopped)
        self.name = claimed.name
        self._claimed, self._queue = claimed, queue
        fence = queue.fence(claimed)
        self._outbox = Outbox(producer, queue.workspace, queue.endpoint, fence, lambda: self.hold.stop(Reason.LOST))

    async def make(self, workflows: Mapping[str, Workflow]) -> None:
        """From beginning to end, whatever the workflow does."""
        try:
            if self.hold.reason in (Reason.LEAVING, Reason.LAPSED):
                outcome: Ended | GivenBack | None = GivenBack("unbegun")  # it came too late
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
            logger.info("run %s of %s failed: INVALID_PARAMETERS", claimed.execution, claimed.name)
            return _failed("INVALID_PARAMETERS", str(invalid))
        trace = Trace(outbox)
        run = Run(claimed, trace)
        run.begin()
        work = asyncio.create_task(_call(workflow.function, run, parameters))
        self.hold.begin(work)
        try:
            await asyncio.wait((work,))
            return self._outcome(run, work)
        finally:
            trace.is_over = True

    def _outcome(self, run: Run, work: asyncio.Task[Any]) -> Ended | GivenBack | None:
        if left := run.end_others():
            kinds = ", ".join(left)
            logger.warning("run %s of %s ended before steps of it did: %s", run.id, run.name, kinds)
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
            error = describe(invalid)
            run.fail(error)
            logger.warning("run %s of %s failed: INVALID_OUTPUT", run.id, run.name)
            return Ended("failed", {"error": error})
        return Ended("completed", {"output": result} | run.took())

    def _interrupted(self, run: Run) -> Ended | GivenBack | None:
        run.fail(self._outbox.stopped)
        match self.hold.reason:
            case Reason.CANCELLED:
                return Ended("cancelled", run.took())
            case Reason.LEAVING | Reason.LAPSED:
                return GivenBack("spared")
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
            return GivenBack("counted", backoff(self._claimed.tries, cause.seconds))
        logger.warning("run %s of %s failed: %s", run.id, run.name, place(cause))
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
            await self._give_back(GivenBack("spared"))

    async def _give_back(self, back: GivenBack) -> None:
        """Until Redis knows, or the run's deadline has passed: however long it is away, that uses up no attempt."""
        claimed, seconds = self._claimed, _FIRST_PAUSE
        try:
            async with asyncio.timeout(max(claimed.left_ms / 1000, RELEASE_SECONDS)):
                await self._outbox.sent()
                while True:
                    try:
                        return await self._queue.release(
                            claimed.execution, claimed.holder, back.attempt, seconds=back.seconds
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
        if not claimed.served:
            return _failed("UNKNOWN_WORKFLOW", "no workflow of this name at this endpoint")
        # For another worker, of a newer version or of other workflows: it may be away for a while.
        seconds = ELSEWHERE_SECONDS if claimed.served == "live" else AWAY_SECONDS
        return GivenBack("unbegun", min(seconds, claimed.left_ms / 1000))
    return None


def backoff(tries: int, seconds: float | None) -> float:
    """How long a run waits after so many tries: 1 s, 2 s, 4 s … a minute, half of it by chance."""
    if seconds is not None:
        return max(seconds, 0.0)
    return min(2.0 ** (tries - 1), LONGEST_BACKOFF_SECONDS) * _random.uniform(0.5, 1.0)


def _failed(code: str, message: str) -> Ended:
    return Ended("failed", {"error": {"code": code, "message": message}})


async def _call(function: Callable[..., Awaitable[Any]], run: Run, parameters: dict[str, Any]) -> Any:
    """Call a workflow. What would end the program ends its run alone, if it is not raised by a task of its own."""
    try:
        return await function(run, **parameters)
    except (SystemExit, KeyboardInterrupt) as error:
        # asyncio lets these two through to whoever runs the loop, unless they are inside of something.
        raise BaseExceptionGroup("a workflow ends its program", [error]) from None
