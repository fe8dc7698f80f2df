"""What the agents of one workspace do, in figures. Pure: events and the time in, the figures of `metrics_update` out.

Window     The figures are of the present second and the 59 before it; of less, if less is known, but never of less than
           a second. A window is kept as sums per second. Time is when an event arrived: its own timestamp is its
           producer's, whose clock may be anywhere.
Work       is FreeAgentics' inferences and MaxiCore's tasks, from `started` to `completed` or `failed`. Their ids are
           unique in a workspace. Progress starts no work: it may come late, and would then never end.
Status     is the first of these that is known: offline by presence · what `agent_status` said (an idle agent with work
           is active all the same) · active with work or by presence · what `agent_created` said · idle.
Bounds     The agents that were heard last are known, up to `MAX_AGENTS`; work is forgotten after an hour.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import floor
from typing import NamedTuple

from msgspec import Struct
from msgspec.json import Decoder

from broker.events import Carried

from .figures import WINDOW_SECONDS, Agent, Figures, Key, Sums

WORK_SECONDS = 3600.0
MAX_AGENTS = 1000
MAX_WORK = 10_000
MAX_STATUS_CHARACTERS = 64
# The agents of one reading, as JSON, stay below what one event may have.
MAX_READING_BYTES = 250 * 1024
_AGENT_BYTES = 140
# Longer than any real one: a sum of such stays a number.
_MAX_PROCESSING_SECONDS = 1e9
# A share of fewer says nothing.
FEWEST_ENDED = 5


class Reading(NamedTuple):
    """The figures of each agent, of those heard last if they are too many for one event, and of all together.

    `failure_percent` is 0 while fewer than `FEWEST_ENDED` ended.
    """

    agents: dict[str, Figures]
    active_agents: int
    response_seconds: float
    failure_percent: float


# Of each type only what the catalog types: another field may be anything.
class _Status(Struct):
    new_status: str


class _Created(Struct):
    status: str = ""


class _Ended(Struct):
    processing_time: float = -1.0


_new_status = Decoder(_Status).decode
_created = Decoder(_Created).decode
_ended = Decoder(_Ended).decode


class _Work(NamedTuple):
    """A task or an inference that is running."""

    agent_id: str
    started: float


class Meter:
    """The figures of one workspace. Every `now` is in seconds of one clock; it should not go back."""

    def __init__(self, now: float) -> None:
        self._since = now  # what happened from here on is known
        self._agents: OrderedDict[str, Agent] = OrderedDict()  # the one heard last stands last
        self._work: OrderedDict[Key, _Work] = OrderedDict()  # by start
        # Late events of a deleted agent do not bring it back.
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def take(self, event: Carried, now: float) -> None:
        """An event of the workspace arrived at `now`, which may be before this meter was made."""
        self._since = min(self._since, now)
        take = _TAKES.get(event.type)
        if take is not None:
            take(self, event, now)

    def read(self, now: float) -> Reading:
        """The figures now."""
        self._forget_work(now)
        span = max(1.0, now - max(self._since, floor(now) - WINDOW_SECONDS + 1))
        agents: dict[str, Figures] = {}
        total, active, left = Sums(), 0, MAX_READING_BYTES
        for agent_id, agent in reversed(self._agents.items()):
            status, sums = agent.status, agent.read(now)
            total.add(sums)
            active += status == "active"
            # At most: in JSON a printable character may be escaped by one, any other by five.
            left -= _AGENT_BYTES + 2 * len(agent_id.encode()) + 6 * len(status)
            if left >= 0:
                agents[agent_id] = sums.figures(status, span)
        return Reading(
            # In an order that stays, as a page shows it.
            agents=dict(sorted(agents.items())),
            active_agents=active,
            response_seconds=total.response_seconds,
            failure_percent=100 * total.failed / total.ended if total.ended >= FEWEST_ENDED else 0.0,
        )

    # -- one method for each kind of event

    def _on_status(self, event: Carried, now: float) -> None:
        agent = self._agent(event.agent_id)
        if agent is not None:
            agent.said = _new_status(event.data).new_status[:MAX_STATUS_CHARACTERS]
            agent.is_present = agent.is_present or None

    def _on_created(self, event: Carried, now: float) -> None:
        agent = self._agent(event.agent_id, revives=True)
        if agent is not None:
            agent.said = ""
            agent.initial = _created(event.data).status[:MAX_STATUS_CHARACTERS]

    def _on_updated(self, event: Carried, now: float) -> None:
        agent = self._agent(event.agent_id)
        if agent is not None:
            agent.initial = _created(event.data).status[:MAX_STATUS_CHARACTERS] or agent.initial

    def _on_deleted(self, event: Carried, now: float) -> None:
        if event.agent_id is not None:
            self._drop(event.agent_id)
            self._deleted[event.agent_id] = None
            if len(self._deleted) > MAX_AGENTS:
                self._deleted.popitem(last=False)

    def _on_online(self, event: Carried, now: float) -> None:
        agent = self._agent(event.agent_id, revives=True)
        if agent is not None:
            agent.is_present = True

    def _on_offline(self, event: Carried, now: float) -> None:
        agent = self._agent(event.agent_id)
        if agent is not None:
            agent.is_present = False

    def _on_started(self, event: Carried, now: float) -> None:
        agent = self._agent(event.agent_id, revives=True)
        key = (event.task_id, event.inference_id)
        if agent is None or event.agent_id is None or key in self._work:
            return
        agent.is_present = agent.is_present or None
        agent.start(key, now)
        self._work[key] = _Work(event.agent_id, now)
        if len(self._work) > MAX_WORK:
            self._forget_oldest(now)

    def _on_completed(self, event: Carried, now: float) -> None:
        self._end(event, now, failed=0)

    def _on_failed(self, event: Carried, now: float) -> None:
        self._end(event, now, failed=1)

    def _end(self, event: Carried, now: float, *, failed: int) -> None:
        # A task says nothing of the kind.
        seconds = _ended(event.data).processing_time if event.inference_id is not None else -1.0
        key = (event.task_id, event.inference_id)
        work = self._work.pop(key, None)
        agent = self._agent(work.agent_id if work is not None else event.agent_id)
        if agent is None:  # a task whose start we have not seen: nobody knows whose it was
            return
        if work is not None:
            agent.stop(key, now)
            seconds = seconds if seconds >= 0 else now - work.started
        is_timed = 0 <= seconds <= _MAX_PROCESSING_SECONDS
        took = round(seconds * 1e6) if is_timed else 0
        agent.note(floor(now), Sums(ended=1, failed=failed, timed=int(is_timed), took=took))

    # -- who and what is known

    def _agent(self, agent_id: str | None, *, revives: bool = False) -> Agent | None:
        """The agent of an event; None when it has none, or a deleted one that this event does not bring back."""
        if agent_id is None:
            return None
        if agent_id in self._deleted:
            if not revives:
                return None
            del self._deleted[agent_id]
        agent = self._agents.get(agent_id)
        if agent is not None:
            self._agents.move_to_end(agent_id)
            return agent
        if len(self._agents) >= MAX_AGENTS:
            self._drop(next(iter(self._agents)))
        agent = self._agents[agent_id] = Agent()
        return agent

    def _drop(self, agent_id: str) -> None:
        """Forget an agent and its work."""
        agent = self._agents.pop(agent_id, None)
        for key in agent.running if agent is not None else ():
            del self._work[key]

    def _forget_work(self, now: float) -> None:
        """Whoever started what is older than an hour will not tell of its end."""
        while self._work:
            ends = next(iter(self._work.values())).started + WORK_SECONDS
            if ends > now:
                return
            self._forget_oldest(ends)

    def _forget_oldest(self, now: float) -> None:
        key, work = self._work.popitem(last=False)
        self._agents[work.agent_id].stop(key, now)


_TAKES: dict[str, Callable[[Meter, Carried, float], None]] = {
    "agent_status": Meter._on_status,
    "agent_created": Meter._on_created,
    "agent_updated": Meter._on_updated,
    "agent_deleted": Meter._on_deleted,
    "agent.online": Meter._on_online,
    "agent.offline": Meter._on_offline,
    "inference_started": Meter._on_started,
    "inference_completed": Meter._on_completed,
    "inference_failed": Meter._on_failed,
    "task.started": Meter._on_started,
    "task.completed": Meter._on_completed,
    "task.failed": Meter._on_failed,
}
