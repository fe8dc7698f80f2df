"""Performance alerts: when a figure is too high for too long. Pure: figures and the time in, alerts out.

An alert is raised when its value was at or over the threshold for `RAISE_SECONDS` in a row, once. It clears silently
when the value was under `CLEAR_SHARE` of the threshold for `CLEAR_SECONDS` in a row; then it can be raised anew. So a
value that dances around its threshold gives one alert.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..settings import Settings

RAISE_SECONDS = 3.0
CLEAR_SECONDS = 10.0
CLEAR_SHARE = 0.9
# From this multiple of its threshold on, a value is no warning any more.
ERROR_SHARE = 1.15


class Kind(NamedTuple):
    """What an alert says; `{}` in the message is the threshold."""

    message: str
    component: str
    action: str


# In the words of seed 003, "Performance Alert". The keys are what `Alerts.judge` takes values by.
KINDS = {
    "high_cpu_usage": Kind("CPU usage above {}%", "inference_engine", "Scale up resources"),
    "high_memory_usage": Kind("Memory usage above {}%", "inference_engine", "Scale up resources"),
    "long_queue": Kind("More than {} runs and commands waiting", "task_queue", "Start more agents or workers"),
    "slow_responses": Kind("Average response time above {} s", "inference_engine", "Reduce the agents' load"),
    "many_failures": Kind("More than {}% of inferences failed", "inference_engine", "Check the agents that fail"),
}


def thresholds(settings: Settings) -> dict[str, float]:
    """The threshold of each kind; 0 never raises."""
    return {
        "high_cpu_usage": settings.alert_cpu_percent,
        "high_memory_usage": settings.alert_memory_percent,
        "long_queue": settings.alert_queue_length,
        "slow_responses": settings.alert_response_seconds,
        "many_failures": settings.alert_failure_percent,
    }


class Alert(NamedTuple):
    """One alert that was raised just now."""

    kind: str
    value: float
    threshold: float

    def data(self, alert_id: str) -> dict[str, Any]:
        """The `data` of a `performance_alert`, as seed 003 shows it."""
        message, component, action = KINDS[self.kind]
        return {
            "alert_id": alert_id,
            "severity": "error" if self.value >= ERROR_SHARE * self.threshold else "warning",
            "type": self.kind,
            "message": message.format(f"{self.threshold:g}"),
            "affected_components": [component],
            "current_value": round(self.value, 3),
            "threshold": self.threshold,
            "recommended_action": action,
        }


class Alerts:
    """The alerts of one workspace. `raised` are those that have not cleared."""

    def __init__(self, thresholds: Mapping[str, float], raised: Iterable[str] = ()) -> None:
        self._thresholds = {kind: threshold for kind, threshold in thresholds.items() if threshold > 0}
        self.raised = frozenset(raised) & self._thresholds.keys()
        # Since when the value is where it must stay for the alert to be raised, or to clear.
        self._since: dict[str, float] = {}

    def copy(self) -> "Alerts":
        """The same, to be judged without a change to this one."""
        other = Alerts(self._thresholds, self.raised)
        other._since = dict(self._since)
        return other

    def judge(self, values: Mapping[str, float], now: float) -> list[Alert]:
        """The alerts that these values raise; to be called about every second."""
        alerts = []
        for kind, threshold in self._thresholds.items():
            value, is_raised = values[kind], kind in self.raised
            turns = value < CLEAR_SHARE * threshold if is_raised else value >= threshold
            if not turns:
                self._since.pop(kind, None)
            elif now - self._since.setdefault(kind, now) >= (CLEAR_SECONDS if is_raised else RAISE_SECONDS):
                del self._since[kind]
                self.raised ^= {kind}
                if not is_raised:
                    alerts.append(Alert(kind, value, threshold))
        return alerts
