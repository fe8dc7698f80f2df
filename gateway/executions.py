"""Executions: what this node's clients ask about runs, on its way to workers. What comes of it comes back as events.

A client must miss no event of a run that it starts, so it follows a run before that is submitted. One with a key may
be running already; then it is followed from its beginning. What the log has let go is said as a gap, and how a run
ended is told all the same.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from broker.broker import Broker
from broker.errors import Invalid, QueueFull, TrunklineError, Unavailable, UnknownWorkflow
from broker.events import Carried, Event, pack, unpack
from broker.patience import pause
from broker.positions import START, before, is_after, order, parse
from broker.runs import Runs, Submitted, execution_id

from .groups import Watch
from .hub import Hub
from .messages import CancelRun, GapSaid, Notice, ResumeRuns, RunRequest, StartRun
from .metrics import Metrics
from .reasons import EVENTS_LOST, INVALID_MESSAGE, RUN_UNKNOWN, TOO_MANY_RUNS, UNAVAILABLE, WORKFLOW_UNKNOWN, Reason
from .settings import Settings

_REASONS: dict[type[TrunklineError], Reason] = {
    Invalid: INVALID_MESSAGE,
    UnknownWorkflow: WORKFLOW_UNKNOWN,
    QueueFull: TOO_MANY_RUNS,
    Unavailable: UNAVAILABLE,
}
RUNNING = ("queued", "running")

# A run is looked after so long past its deadline, and then from time to time; when it has ended, its last event is here
# within `HEARD_SECONDS`.
LATE_SECONDS = 2.0
AGAIN_SECONDS = 10.0
HEARD_SECONDS = 5.0


class Client(Protocol):
    """A client's connection, to its executions."""

    async def catch_up(self, runs: Mapping[str, float], since: str, *, is_checked: bool = False) -> None:
        """Follow these runs, each with its deadline, from the position `since` on.

        Where that is no longer in the log the client is told, unless it was (`is_checked`).
        """

    def say(self, notice: Notice) -> None:
        """Hear this."""

    def refused(self, request: RunRequest, reason: Reason, detail: str) -> None:
        """Hear that `request` cannot be; an empty `detail` is the reason's own text."""


class Executions:
    """Each request is done in silence, or refused."""

    def __init__(self, broker: Broker, hub: Hub, metrics: Metrics, settings: Settings) -> None:
        self._runs = Runs(broker, max_queued=settings.max_queued_runs)
        self.waiting = self._runs.waiting
        self._log = broker.log
        self._hub = hub
        self._metrics = metrics
        self._settings = settings
        self._now = time.time()  # Redis' time, as far as we were told
        self._expiring: set[asyncio.Task[None]] = set()

    async def perform(self, client: Client, watch: Watch, request: RunRequest) -> None:
        """Do what `client`, whose runs `watch` has, asks about runs of its endpoint."""
        try:
            match request:
                case StartRun():
                    outcome = await self._start(client, watch, request)
                case CancelRun(execution):
                    outcome = await self._cancel(client, watch, execution)
                case ResumeRuns():
                    outcome = await self._resume(client, watch, request)
        except tuple(_REASONS) as error:
            reason = _REASONS[type(error)]
            self.refuse(client, request, reason, f"$.{error}" if isinstance(error, Invalid) else "")
        else:
            self._metrics.runs.add(outcome)

    def refuse(self, client: Client, request: RunRequest, reason: Reason, detail: str = "") -> None:
        """Nothing comes of it."""
        self._metrics.runs.add(reason.code.lower())
        client.refused(request, reason, detail)

    async def _start(self, client: Client, watch: Watch, run: StartRun) -> str:
        key = run.metadata.get("idempotency_key")
        execution = execution_id(watch.endpoint, run.connection or "", key)
        if execution in watch.runs or execution in watch.ended:
            submitted = await self._submit(watch, run, execution)  # something else under the same key is refused
            if not submitted.is_new:
                return "known"
            watch.ended.pop(execution, None)  # Redis had forgotten it: it begins anew
            await self._catch_up(client, watch, {execution: submitted.deadline}, submitted.since, ())
            return "started"
        may_be_known = key is not None and run.connection is not None
        self._hub.add_run(watch, execution, self._now + self._settings.run_seconds, is_in_doubt=may_be_known)
        try:
            submitted = await self._submit(watch, run, execution)
        except BaseException as error:
            # It may have been started all the same: then its client sees it, whatever it was told, or asks again.
            if may_be_known or not isinstance(error, Unavailable):
                self._hub.drop_run(watch, execution)
            else:
                watch.unanswered.add(execution)
            raise
        if submitted.is_new and self._hub.settle_run(watch, execution):
            if execution in watch.runs:  # it may have ended already
                watch.runs[execution] = submitted.deadline
        else:
            self._hub.drop_run(watch, execution)
            ended = [execution] if await self._log.ends(watch.workspace, [execution]) else []
            await self._catch_up(client, watch, {execution: submitted.deadline}, submitted.since, ended)
        return "started" if submitted.is_new else "known"

    async def _submit(self, watch: Watch, run: StartRun, execution: str) -> Submitted:
        return await self._runs.submit(
            watch.workspace,
            watch.endpoint,
            run.name,
            run.parameters,
            run.metadata,
            run.connection,
            execution=execution,
            seconds=self._settings.run_seconds,
            max_attempts=self._settings.run_attempts,
        )

    async def _cancel(self, client: Client, watch: Watch, execution: str) -> str:
        if execution in watch.ended:
            return "ended"
        outcome = "unknown"
        if execution in watch.runs:
            outcome = await self._runs.cancel(watch.workspace, execution)
        if outcome == "unknown":
            self._hub.drop_run(watch, execution)
            client.refused(CancelRun(execution), RUN_UNKNOWN, "")
        return outcome

    async def _resume(self, client: Client, watch: Watch, request: ResumeRuns) -> str:
        found = await self._runs.of_connection(watch.workspace, watch.endpoint, request.connection)
        fresh = [run for run in found if run.id not in watch.runs and run.id not in watch.ended]
        deadlines = {run.id: run.deadline for run in fresh}
        if fresh:
            since = request.since or min((run.since for run in fresh), key=order)
            await self._catch_up(client, watch, deadlines, since, [run.id for run in fresh if run.state not in RUNNING])
        elif request.since is not None:
            bounds = await self._log.bounds(watch.workspace, request.since, (watch.endpoint,))
            if not bounds.is_valid:
                client.say(GapSaid(watch.workspace, request.since, bounds.oldest))
        return "resumed"

    async def _catch_up(
        self, client: Client, watch: Watch, deadlines: Mapping[str, float], since: str, ended: Collection[str]
    ) -> None:
        """Follow runs from `since` on; those in `ended` had ended before.

        What the log has let go is a gap. It hides neither what is still there nor, told first, how runs ended.
        """
        bounds = await self._log.bounds(watch.workspace, since, (watch.endpoint,))
        heard = since if parse(since) is not None else START  # what is no position is a gap, and nothing was heard
        if bounds.is_valid or bounds.oldest is None or heard is not since or is_after(since, bounds.oldest):
            await client.catch_up(deadlines, since)
        else:
            client.say(GapSaid(watch.workspace, since, bounds.oldest))
            await self._tell_ends(watch, ended, heard, bounds.oldest)
            left = {run: deadline for run, deadline in deadlines.items() if run not in watch.ended}
            await client.catch_up(left, before(bounds.oldest), is_checked=True)
        await self._tell_ends(watch, ended, heard)
        for run in ended:
            if run in watch.runs:
                self._hub.drop_run(watch, run)  # its end was heard before, or is known no more

    async def _tell_ends(self, watch: Watch, ended: Collection[str], since: str, until: str | None = None) -> None:
        """Of runs that had ended before they were followed: the end itself, where the log had let it go."""
        for event in await self._log.ends(watch.workspace, [run for run in ended if run not in watch.ended]):
            position, run = event.id or START, event.execution_id
            if run is not None and is_after(position, since) and (until is None or is_after(until, position)):
                watch.deliver([event], time.monotonic())
                self._hub.end_run(watch, run)

    # -- deadlines

    def tick(self, watches: Iterable[Watch], now: float) -> None:
        """End what is past its deadline, which its worker does as long as one lives. `now` is Redis' time."""
        self._now = now
        late = [
            (watch, run) for watch in watches for run, deadline in watch.runs.items() if deadline + LATE_SECONDS <= now
        ]
        for watch, run in late:
            watch.runs[run] = now + AGAIN_SECONDS
        if late:
            task = asyncio.create_task(self._expire(late))
            self._expiring.add(task)
            task.add_done_callback(self._expiring.discard)

    async def _expire(self, late: Sequence[tuple[Watch, str]]) -> None:
        ended = []
        try:
            for watch, run in late:
                if run in watch.runs and await self._runs.expire(watch.workspace, run):
                    ended.append((watch, run))
        except Unavailable:
            pass  # they come again
        await pause(HEARD_SECONDS)
        for watch, run in ended:
            if run in watch.runs:
                await self._settle(watch, run)

    def missed(self, watch: Watch) -> None:
        """Events of these runs are lost: the ends among them are told all the same."""
        task = asyncio.create_task(self._look_for_ends(watch))
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _look_for_ends(self, watch: Watch) -> None:
        try:
            ends = await self._log.ends(watch.workspace, list(watch.runs))
        except Unavailable:
            return
        await pause(HEARD_SECONDS)  # what is on its way comes first, and with it what was said before
        for event in ends:
            run = event.execution_id
            if run is not None and run in watch.runs and watch.members:
                watch.deliver([event], time.monotonic())
                self._hub.end_run(watch, run)

    async def _settle(self, watch: Watch, run: str) -> None:
        """Tell an end that has not come by itself. Where Redis has lost it, its client must not wait for ever."""
        try:
            found = await self._log.ends(watch.workspace, [run])
        except Unavailable:
            return  # it comes again
        if run in watch.runs and watch.members:  # not while a replay is under way, which may bring it
            if found or run not in watch.unanswered:  # what never was does not end
                watch.deliver(found or [_lost(watch, run)], time.monotonic())
            self._hub.end_run(watch, run)


def _lost(watch: Watch, run: str) -> Carried:
    """The end of a run of which nothing is known any more: for who follows it here, and not in the log."""
    error = {"code": EVENTS_LOST.code, "message": "what became of the run is not known any more"}
    data = {"execution_id": run, "error": error}
    packed = pack(Event(type="execution_failed", workspace_id=watch.workspace, agent_id=watch.endpoint, data=data))
    return unpack(b"{" + packed.stamp + packed.rest, watch.workspace)
