"""The desk of a leader: one workspace whose `metrics_update` and `performance_alert` this node publishes.

Catching up  The desk taps the live events first and holds them, then reads the log up to its end, then takes what it
             held behind that. So the statuses and the last minute are right from the first report on. An event that
             names another one before it than the last one taken shows a hole, and the desk catches up again.
Reporting    Once per turn, and only within the lease: a turn that comes too late says nothing.
Failing      A report that fails is lost, its alerts are not: they are raised again. The next turn tries again.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

from broker import Event, Unavailable
from broker.broker import Broker
from broker.election import Election, Load
from broker.events import Carried
from broker.log import FIRST_PAGE_EVENTS
from broker.patience import pause
from broker.positions import START, Position, is_after, order

from .alerts import Alerts
from .meter import Meter, Reading

logger = logging.getLogger("trunkline.vitals")

# Makes the node hand all events of a workspace to a function from now on; answers what ends it.
Tap = Callable[[str, Callable[[list[Carried]], None]], Callable[[], None]]

# How long a new leader reads the log from its beginning, and then the last minute, before it goes on with what is live.
HISTORY_SECONDS = 1.0
MINUTE_SECONDS = 60
MAX_HELD_EVENTS = 50_000


class Desk:
    """One workspace, as long as this node leads it; `run` is its task, to be cancelled when it no longer does."""

    def __init__(
        self,
        workspace: str,
        broker: Broker,
        election: Election,
        tap: Tap,
        *,
        load: Callable[[], Load],
        queue_length: Callable[[str], Awaitable[int]],
        thresholds: Mapping[str, float],
    ) -> None:
        self.workspace = workspace
        self._broker = broker
        self._election = election
        self._tap = tap
        self._load = load
        self._queue_length = queue_length
        self._thresholds = thresholds
        self._lease_end = 0.0
        self._turn = asyncio.Event()
        self._meter = Meter(monotonic())
        self._alerts: Alerts | None = None  # until the first catching up
        self._position = START
        self._held: list[tuple[Carried, float]] | None = []  # while we catch up, or have to

    def renew(self, lease_end: float) -> None:
        """We lead until then, by our own clock: report once."""
        self._lease_end = lease_end
        self._turn.set()

    async def run(self) -> None:
        """Report whenever a turn has come. Ends with an exception only if the tap fails."""
        end_tap = self._tap(self.workspace, self.take)
        try:
            while True:
                await pause(0)
                await self._turn.wait()
                self._turn.clear()
                await self._take_turn()
        finally:
            end_tap()

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(self._lease_end - monotonic()):
                if self._held is not None:
                    await self._catch_up()
                await self._report()
        except (Unavailable, TimeoutError) as error:
            logger.warning("metrics of a workspace are late: %s", error or "the lease has ended")
        except Exception:
            logger.exception("a bug: metrics of a workspace are not told")

    # -- what flows

    def take(self, events: list[Carried]) -> None:
        """A batch of the workspace's live events."""
        now = monotonic()
        for event in events:
            if self._held is not None:
                self._hold(event, now)
            elif event.id is not None and is_after(event.prev or START, self._position):
                self._held = [(event, now)]
            else:
                self._take(event, now)

    def _hold(self, event: Carried, now: float) -> None:
        assert self._held is not None
        if len(self._held) >= MAX_HELD_EVENTS:
            # They come faster than the log can be read: figures of such a second may miss some.
            self._held.clear()
        self._held.append((event, now))

    def _take(self, event: Carried, now: float) -> None:
        """An event that comes next, or that the log has shown before."""
        if event.id is not None:
            if not is_after(event.id, self._position):
                return
            self._position = Position(event.id)
        try:
            self._meter.take(event, now)
        except Exception:
            logger.exception("a bug: an event does not count in a workspace's metrics")

    # -- what was

    async def _catch_up(self) -> None:
        """Take what the log holds behind our position, then what was held meanwhile."""
        legacy = await self._election.inherit(self.workspace)
        await self._read_log(legacy.now)
        # With the second turn we look once more: in the first the tap may not have flowed yet, and nothing tells what
        # was missed until something follows it.
        held, self._held = self._held or [], [] if self._alerts is None else None
        for event, at in held:
            self._take(event, at)
        if self._alerts is None:
            self._alerts = Alerts(self._thresholds, legacy.raised)

    async def _read_log(self, redis_now: float) -> None:
        """Read on from our position; from the last minute, when that takes too long; not at all, when this does too."""
        offset = monotonic() - redis_now
        last_minute = Position(f"{int((redis_now - MINUTE_SECONDS) * 1000)}-0")
        if not await self._read_from(self._position, offset):
            if await self._read_from(max(self._position, last_minute, key=order), offset):
                return
            heads = await self._broker.log.heads(self.workspace, [None])
            self._position = max(self._position, heads[None], key=order)

    async def _read_from(self, position: Position, offset: float) -> bool:
        """Take the log's events after `position`; our clock is ahead of Redis' by `offset`. False: it took too long."""
        deadline = monotonic() + HISTORY_SECONDS
        is_last, limit = False, FIRST_PAGE_EVENTS
        while not is_last:
            if monotonic() > deadline:
                return False
            events, position, is_last, limit = await self._broker.log.page(self.workspace, position, limit)
            now = monotonic()
            for event in events:
                # It arrived when Redis gave it its position.
                self._take(event, min(now, order(event.id or START)[0] / 1000 + offset))
            await pause(0)
        return True

    # -- what is told

    async def _report(self) -> None:
        """Publish the figures of this moment, and the alerts that they raise."""
        assert self._alerts is not None
        waiting = await self._queue_length(self.workspace)
        now = monotonic()
        if now >= self._lease_end:
            return
        load, reading, alerts = self._load(), self._meter.read(now), self._alerts.copy()
        raised = alerts.judge(_values(load, reading, waiting), now)
        events = [self._event("metrics_update", _metrics(load, reading, waiting))]
        events += [self._event("performance_alert", alert.data(f"alert_{secrets.token_hex(8)}")) for alert in raised]
        await self._broker.publish_many(events)
        if alerts.raised != self._alerts.raised:
            await self._election.hand_down(self.workspace, alerts.raised)
        # Only now: an alert that was not published, or not handed down, is raised again. Rather twice than never.
        self._alerts = alerts

    def _event(self, kind: str, data: dict[str, Any]) -> Event:
        return Event(type=kind, workspace_id=self.workspace, data=data)


def _values(load: Load, reading: Reading, waiting: int) -> dict[str, float]:
    """What alerts are judged by."""
    return {
        "high_cpu_usage": load.cpu,
        "high_memory_usage": load.memory,
        "long_queue": waiting,
        "slow_responses": reading.response_seconds,
        "many_failures": reading.failure_percent,
    }


def _metrics(load: Load, reading: Reading, waiting: int) -> dict[str, Any]:
    """The `data` of a `metrics_update`: seed 003, "Real-time Metrics"."""
    return {
        "system": {
            "cpu_usage": round(load.cpu, 1),
            "memory_usage": round(load.memory, 1),
            "active_agents": reading.active_agents,
            "queue_length": waiting,
        },
        "agents": reading.agents,
    }
