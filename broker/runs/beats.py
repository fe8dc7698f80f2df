"""A worker's signs of life, from a thread with an event loop of its own.

They renew its leases also while a workflow blocks the worker's loop, with `time.sleep` or by computing: nobody else
begins its runs meanwhile. A run is kept so until its deadline and a little more, which its `finally` has. Who blocks
for longer loses it, and another worker says its end.

Out of reach: code in C that keeps the interpreter's lock. For longer than a lease, it loses all runs of its process.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Lock, Thread
from time import monotonic
from typing import Any

from ..address import Address
from ..patience import pause, repeat
from ..topology import clients
from .hold import Lease, Reason
from .queue import Queue, Ready

logger = logging.getLogger("trunkline.worker")

OUTAGE = "a worker cannot reach Redis"

BEAT_SECONDS = 3.0
CALL_SECONDS = 1.5


class Beats:
    """Every `BEAT_SECONDS` one call renews all leases, and finds what is due.

    One that fails is soon repeated: there is time for three before a hold lapses.
    """

    def __init__(
        self,
        address: Address,
        queue: Queue,
        names: Iterable[str],
        on_stop: Callable[[Lease, Reason], None],
        on_due: Callable[[list[Ready]], None],
    ) -> None:
        """`names` are the workflows that are served. The callbacks are called in the loop that runs now."""
        self._address, self._queue, self._names = address, queue, list(names)
        self._on_stop, self._on_due = on_stop, on_due
        self._worker = asyncio.get_running_loop()
        self._leases: set[Lease] = set()
        self._lock = Lock()

    def keep(self, leases: Iterable[Lease]) -> None:
        """From before Redis is asked for them: the loop may be blocked when its answer comes."""
        with self._lock:
            self._leases.update(leases)

    def drop(self, leases: Iterable[Lease]) -> None:
        with self._lock:
            self._leases.difference_update(leases)

    async def run(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.new_event_loop()
        beating = loop.create_task(self._repeat())
        over: Future[None] = Future()

        def live() -> None:
            try:
                loop.run_until_complete(asyncio.wait((beating,)))
            finally:
                over.set_result(None)

        # A daemon: should the program end in any other way, its runs are not kept by what is left of it.
        Thread(target=live, name="trunkline-beats", daemon=True).start()
        ended = asyncio.wrap_future(over)
        try:
            await asyncio.wait((ended,))
        finally:
            loop.call_soon_threadsafe(beating.cancel)
            await asyncio.wait((ended,))
            loop.close()
        beating.result()  # a bug of ours

    # -- in the thread

    async def _repeat(self) -> None:
        async with clients.client(self._address, "trunkline-beats") as redis:
            queue = self._queue.over(redis)
            await repeat(lambda: self._beat(queue), logger, OUTAGE)

    async def _beat(self, queue: Queue) -> None:
        asked = monotonic()
        with self._lock:
            leases = list(self._leases)
        async with asyncio.timeout(CALL_SECONDS):
            found = await queue.beat(
                self._names, [lease.execution for lease in leases], [lease.holder for lease in leases]
            )
        for lease, state in zip(leases, found.states, strict=True):
            if state in ("held", "cancel"):
                lease.renew(asked)
            if state == "cancel":
                self._tell(self._on_stop, lease, Reason.CANCELLED)
            elif state == "lost" and lease.is_granted_before(asked):
                self._tell(self._on_stop, lease, Reason.LOST)
        self._tell(self._on_due, found.due)
        await pause(BEAT_SECONDS)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        self._worker.call_soon_threadsafe(what, *arguments)
