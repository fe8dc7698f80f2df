"""A run in a worker's hands, from when it was claimed until it has ended or was given back.

The hold ends by our own clock, before Redis' lease does: a worker that could not renew it in time has stopped then, so
that no two workers are at one run. One that could not because Redis was away for all gives the run back, and no attempt
is used up (beat_runs.lua waits for it); one that was cut off alone looks like a dead one, and its attempt counts.
"""

import asyncio
import math
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Any

from .exchange import LEASE_SECONDS, Claimed

# What a workflow has to end in after its hold, before somebody else may begin.
MARGIN_SECONDS = 2.0


class Reason(Enum):
    """Why a run is stopped, and how its steps tell it."""

    CANCELLED = ("CANCELLED", "the run was cancelled")
    DEADLINE = ("DEADLINE_EXCEEDED", "the run took longer than it may")
    LEAVING = ("INTERRUPTED", "the worker leaves; another goes on with the run")
    LAPSED = ("INTERRUPTED", "the worker lost its connection; the run begins again")
    LOST = ("INTERRUPTED", "another worker has the run")

    @property
    def error(self) -> dict[str, str]:
        code, message = self.value
        return {"code": code, "message": message}


class Lease:
    """The right of one attempt (`holder`) to a run, as far as its worker knows. Times are monotonic.

    Granted in the worker's loop, renewed in the thread of its beats.
    """

    def __init__(self, execution: str, holder: str) -> None:
        self.execution, self.holder = execution, holder
        self._granted = math.inf
        self._asked = -math.inf  # when Redis was asked that granted it last

    @property
    def seconds_left(self) -> float:
        """Until the hold ends, by our own clock."""
        return self._asked + LEASE_SECONDS - MARGIN_SECONDS - monotonic()

    def grant(self, asked: float) -> None:
        """Redis, which was asked at `asked`, has said now that the run is held."""
        self._granted, self._asked = monotonic(), max(self._asked, asked)

    def renew(self, asked: float) -> None:
        self._asked = asked

    def is_granted_before(self, asked: float) -> bool:
        """A beat before that says nothing of it: Redis may have heard it before the claim."""
        return self._granted < asked


class Hold:
    """A run that this worker holds. `stop` cancels the workflow, once for each reason; the first one stays.

    A workflow may swallow a cancellation. It hears of the next reason all the same, and its `finally` is not disturbed
    by a beat that repeats the first.
    """

    def __init__(self, claimed: Claimed, lease: Lease, on_stop: Callable[[Reason], None]) -> None:
        self._lease = lease
        self.reason: Reason | None = None
        self.work: asyncio.Task[Any] | None = None
        self._on_stop = on_stop
        self._heard: set[Reason] = set()
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(claimed.left_ms / 1000, self.stop, Reason.DEADLINE)
        self._lapse: asyncio.Handle = self._loop.call_soon(self._watch)

    @property
    def is_at_work(self) -> bool:
        return self.work is not None and not self.work.done()

    def stop(self, reason: Reason) -> None:
        if reason in self._heard or (self.work is not None and self.work.done()):
            return
        self._heard.add(reason)
        if self.reason is None:
            self.reason = reason
            self._on_stop(reason)
        if self.work is not None:
            self.work.cancel()

    def begin(self, work: asyncio.Task[Any]) -> None:
        """`work` is the workflow's task. One that is to stop already does not begin."""
        self.work = work
        if self.reason is not None:
            work.cancel()

    def close(self) -> None:
        self._deadline.cancel()
        self._lapse.cancel()

    def _watch(self) -> None:
        """Stop when the lease has lapsed. A renewal counts also where the loop was blocked when it came."""
        if self._lease.seconds_left <= 0:
            self.stop(Reason.LAPSED)
        else:
            self._lapse = self._loop.call_later(self._lease.seconds_left, self._watch)
