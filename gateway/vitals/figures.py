"""One agent's figures: its status, and what it did in the last minute. Pure: time is an argument, in seconds.

The window is the present second and the 59 before it, as sums per second and their total, which is kept up to date: to
read costs the same whatever happened. Times are whole microseconds, so that what was added can be taken off again.
"""

from math import floor
from typing import TypedDict

WINDOW_SECONDS = 60

# The ids of a task and of an inference, one of them None.
Key = tuple[str | None, str | None]


class Figures(TypedDict):
    """One agent in a `metrics_update`: seed 003, "Real-time Metrics".

    `inference_rate`: work ended per second. `avg_response_time`: the mean of what the ended work says in
    `processing_time`, else of the seconds from its start to its end. `success_rate`: completed of all ended, 1.0 of
    none. `current_load`: the share of the window in which at least one piece of work was running.
    """

    status: str
    inference_rate: float
    avg_response_time: float
    success_rate: float
    current_load: float


class Sums:
    """What happened in one second, or in several."""

    __slots__ = ("busy", "ended", "failed", "timed", "took")

    def __init__(self, *, ended: int = 0, failed: int = 0, timed: int = 0, took: int = 0, busy: int = 0) -> None:
        self.ended = ended
        self.failed = failed  # of those that ended
        self.timed = timed  # of those that ended, how many took a time that is known
        self.took = took  # these, together (µs)
        self.busy = busy  # how long work was running (µs)

    @property
    def response_seconds(self) -> float:
        return self.took / self.timed / 1e6 if self.timed else 0.0

    def add(self, other: "Sums") -> None:
        self.ended += other.ended
        self.failed += other.failed
        self.timed += other.timed
        self.took += other.took
        self.busy += other.busy

    def take_off(self, other: "Sums") -> None:
        self.ended -= other.ended
        self.failed -= other.failed
        self.timed -= other.timed
        self.took -= other.took
        self.busy -= other.busy

    def figures(self, status: str, span: float) -> Figures:
        """These sums, of `span` seconds, for the client."""
        return {
            "status": status,
            "inference_rate": round(self.ended / span, 3),
            "avg_response_time": round(self.response_seconds, 3),
            "success_rate": round(1 - self.failed / self.ended, 3) if self.ended else 1.0,
            "current_load": round(min(1.0, self.busy / 1e6 / span), 3),
        }


class Agent:
    """One agent."""

    __slots__ = ("busy_since", "initial", "is_present", "running", "said", "total", "window")

    def __init__(self) -> None:
        self.said = ""  # by agent_status
        self.initial = ""  # by agent_created or agent_updated
        self.is_present: bool | None = None  # by agent.online or agent.offline
        self.running: set[Key] = set()
        self.busy_since = 0.0  # up to here it is noted what was running
        self.window: dict[int, Sums] = {}  # by second, the oldest first
        self.total = Sums()

    @property
    def status(self) -> str:
        if self.is_present is False:
            return "offline"
        if self.said and not (self.running and self.said == "idle"):
            return self.said
        if self.running or self.is_present:
            return "active"
        return self.initial or "idle"

    def start(self, key: Key, now: float) -> None:
        self._note_busy(now)
        self.running.add(key)

    def stop(self, key: Key, now: float) -> None:
        self._note_busy(now)
        self.running.discard(key)

    def note(self, second: int, sums: Sums) -> None:
        """Something happened in this second."""
        self._forget(second)
        noted = self.window.get(second)
        if noted is None:
            noted = self.window[second] = Sums()
        noted.add(sums)
        self.total.add(sums)

    def read(self, now: float) -> Sums:
        """The sums of the window."""
        self._note_busy(now)
        self._forget(floor(now))
        return self.total

    def _note_busy(self, now: float) -> None:
        """Note in every second up to now how much of it was spent with work running."""
        if self.running:
            first = max(self.busy_since, floor(now) - WINDOW_SECONDS + 1)
            for second in range(floor(first), floor(now) + 1):
                busy = min(now, second + 1) - max(first, second)
                if busy > 0:
                    self.note(second, Sums(busy=round(busy * 1e6)))
            now = max(now, self.busy_since)
        self.busy_since = now

    def _forget(self, second: int) -> None:
        while self.window and (oldest := next(iter(self.window))) <= second - WINDOW_SECONDS:
            self.total.take_off(self.window.pop(oldest))
