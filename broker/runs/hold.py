"""A run in a worker's hands, from when it was claimed until it has ended or was given back.

The hold ends by our own clock, before Redis' lease does: a worker that could not renew it in time has stopped then, so
that no two workers are at one run.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
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


class Hold:
    """A run that this worker holds. `stop` cancels the workflow, once; its first reason stays."""

    def __init__(self, claimed: Claimed, asked: float, on_stop: Callable[[Reason], None]) -> None:
        """`asked` is the loop's time before Redis was asked for the run."""
        self.claimed = claimed
        self.reason: Reason | None = None
        self.work: asyncio.Task[Any] | None = None
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(claimed.left_ms / 1000, self.stop, Reason.DEADLINE)
        self._lapse = self._lapse_at(asked)

    def renew(self, asked: float) -> None:
        """Redis has renewed the lease; it was asked to at `asked`."""
        self._lapse.cancel()
        self._lapse = self._lapse_at(asked)

    def stop(self, reason: Reason) -> None:
        if self.reason is None and (self.work is None or not self.work.done()):
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

    def _lapse_at(self, asked: float) -> asyncio.TimerHandle:
        return self._loop.call_at(asked + LEASE_SECONDS - MARGIN_SECONDS, self.stop, Reason.LAPSED)
