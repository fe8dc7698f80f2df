"""The vitals of the workspaces that somebody watches: one node of the fleet computes and publishes them each second.

Elections  Each second the node contests, in one round trip, the leases of all workspaces that are watched on it. For
           those it leads it has a desk, which reports within the lease alone: counted from before the node asked, so
           that it has ended here before another node can have it. What cannot be renewed is given up at once.
Beats      Every node says how busy its machine is, watched or not, and learns the mean of all: every `BEAT_SECONDS`
           while something is watched on it, else every `IDLE_BEAT_SECONDS`, half the time for which a beat counts.
Leaving    A workspace that nobody watches here any more, and all of them when the node leaves, are given back: another
           node leads within a second. From a node that dies they are free when the lease ends.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

import psutil

from broker import Unavailable
from broker.broker import Broker
from broker.election import LEASE_SECONDS, Election, Fleet, Load
from broker.patience import pause

from ..settings import Settings
from .alerts import thresholds
from .desk import Desk, Tap

logger = logging.getLogger("trunkline.vitals")

TURN_SECONDS = 1.0
BEAT_SECONDS = 2.0
IDLE_BEAT_SECONDS = 5.0
LEAVE_SECONDS = 1.0


class Vitals:
    """A node's part in it. One task owns it (`run`); `watch` and `unwatch` are synchronous."""

    def __init__(
        self,
        broker: Broker,
        node: str,
        settings: Settings,
        *,
        tap: Tap,
        queue_length: Callable[[str], Awaitable[int]],
    ) -> None:
        """`node` names this life of the node, and no other. `queue_length` counts what waits in a workspace."""
        self._broker = broker
        self._election = Election(broker.redis, broker.keys, node)
        self._fleet = Fleet(broker.redis, broker.keys, node)
        self._tap = tap
        self._queue_length = queue_length
        self._thresholds = thresholds(settings)
        self._load = measure()
        self._watchers: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._stirred = asyncio.Event()
        self._desks: dict[str, tuple[Desk, asyncio.Task[None]]] = {}
        self._is_redis_up = True

    @property
    def leads(self) -> int:
        """How many workspaces this node leads."""
        return len(self._desks)

    def watch(self, workspaces: Iterable[str]) -> None:
        """Somebody on this node wants the vitals of these; each `watch` is undone by one `unwatch`."""
        self._watchers.update(workspaces)

    def unwatch(self, workspaces: Iterable[str]) -> None:
        """They no longer do. What nobody here watches now is given back at once."""
        for workspace in workspaces:
            self._watchers[workspace] -= 1
            if self._watchers[workspace] <= 0:
                del self._watchers[workspace]
                self._close(workspace)
                self._leaving.add(workspace)
                self._stirred.set()

    async def run(self) -> None:
        """Take part until cancelled; then give back what this node leads."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_beats())
                await self._run_turns(tasks)
        finally:
            await self._leave()

    # -- elections

    async def _run_turns(self, tasks: asyncio.TaskGroup) -> None:
        at = monotonic()
        while True:
            try:
                await self._turn(tasks)
            except Exception:
                logger.exception("a bug: an election did not take place")
            # A turn that was missed is not made up for.
            at = max(at + TURN_SECONDS, monotonic())
            await self._wait_until(at)

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        """Contest what is watched; open, renew and close desks by what we lead now."""
        asked = monotonic()
        led = await self._contest()
        for workspace in self._desks.keys() - led:
            self._close(workspace)
        for workspace in led & self._watchers.keys():
            desk, task = self._desks.get(workspace, (None, None))
            if desk is None or task is None or task.done():
                desk = self._open(workspace, tasks)
            desk.renew(asked + LEASE_SECONDS)

    async def _contest(self) -> set[str]:
        """The workspaces that we lead now; none when Redis is away."""
        try:
            led = await self._election.lead(list(self._watchers))
        except Unavailable as error:
            if self._is_redis_up:
                logger.warning("no metrics are told: %s", error)
            self._is_redis_up = False
            return set()
        self._is_redis_up = True
        return led

    def _open(self, workspace: str, tasks: asyncio.TaskGroup) -> Desk:
        desk = Desk(
            workspace,
            self._broker,
            self._election,
            self._tap,
            load=lambda: self._load,
            queue_length=self._queue_length,
            thresholds=self._thresholds,
        )
        self._desks[workspace] = desk, tasks.create_task(_guard(desk))
        logger.debug("this node leads a workspace, %d in all", len(self._desks))
        return desk

    def _close(self, workspace: str) -> None:
        if workspace in self._desks:
            _, task = self._desks.pop(workspace)
            task.cancel()
            logger.debug("this node no longer leads a workspace, %d are left", len(self._desks))

    async def _wait_until(self, at: float) -> None:
        """Wait for the next turn; meanwhile give back what nobody watches any more."""
        while (seconds := at - monotonic()) > 0:
            await pause(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stirred.wait()
            await self._resign()
        await pause(0)

    async def _resign(self) -> None:
        """In the same task as contesting, so that what is watched again meanwhile is not given away behind its back."""
        self._stirred.clear()
        leaving, self._leaving = self._leaving - self._watchers.keys(), set()
        # A lease that cannot be given back ends by itself.
        with contextlib.suppress(Unavailable):
            await self._election.resign(list(leaving))

    async def _leave(self) -> None:
        """Give back what we led."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._election.resign([*self._watchers, *self._leaving])
                await self._fleet.leave()
        self._desks.clear()

    # -- beats

    async def _run_beats(self) -> None:
        measured: Load | None = self._load  # CPU is measured between two calls: the next one comes later
        while True:
            try:
                self._load = await self._fleet.beat(measured or measure())
                measured = None
            except Unavailable:
                logger.debug("a beat was not heard")  # the elections say what there is to say
            except Exception:
                logger.exception("a bug: this node's load is not told")
            await pause(BEAT_SECONDS if self._watchers else IDLE_BEAT_SECONDS)


def measure() -> Load:
    """How busy this machine is: its CPU since the last call, its memory now."""
    return Load(psutil.cpu_percent(interval=None), psutil.virtual_memory().percent)


async def _guard(desk: Desk) -> None:
    """A desk that fails is opened anew with the next turn; the others go on."""
    try:
        await desk.run()
    except Exception:
        logger.exception("a bug: the metrics of a workspace begin anew")
