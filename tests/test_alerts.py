"""Performance alerts: raised after three seconds over the threshold, once until they clear, in the seed's words."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import Settings
from gateway.vitals.alerts import KINDS, Alert, Alerts, thresholds

QUIET = dict.fromkeys(KINDS, 0.0)
THRESHOLDS = {"high_cpu_usage": 80.0, "high_memory_usage": 80.0, "long_queue": 100, "slow_responses": 60.0,
              "many_failures": 50.0}  # fmt: skip


def judged(alerts: Alerts, *values: float, kind: str = "high_memory_usage", start: int = 0) -> list[int]:
    """The seconds in which an alert was raised, one value a second from `start` on."""
    return [at for at, value in enumerate(values, start) if alerts.judge(QUIET | {kind: value}, float(at))]


@pytest.mark.parametrize("kind", KINDS)
def test_three_seconds_at_the_threshold_raise_an_alert_once(kind: str) -> None:
    alerts, limit = Alerts(THRESHOLDS), THRESHOLDS[kind]
    assert judged(alerts, *[limit] * 60, kind=kind) == [3]
    assert alerts.raised == {kind}


@pytest.mark.parametrize(
    ("values", "raised"),
    [
        ([79.9] * 20, []),
        ([80, 80, 80, 79.9] * 5, []),
        ([80, 80, 80, 99], [3]),
        ([90] * 5 + [79, 85] * 30, [3]),  # it dances around the threshold
        ([90] * 5 + [73] * 60 + [90] * 5, [3]),  # not under 90 % of it
        ([90] * 5 + [71] * 10 + [90] * 5, [3]),  # for nine seconds: one too few
        ([90] * 5 + ([71] * 10 + [73]) * 3, [3]),
        ([90] * 5 + [71] * 11 + [90] * 5, [3, 19]),
        ([90] * 5 + [71] * 11 + [90] * 3 + [79] + [90] * 3, [3]),
    ],
)
def test_a_value_that_dances_gives_one_alert(values: list[float], raised: list[int]) -> None:
    assert judged(Alerts(THRESHOLDS), *values) == raised


def test_a_threshold_of_zero_never_raises() -> None:
    alerts = Alerts(dict.fromkeys(KINDS, 0), raised=KINDS)
    assert alerts.raised == frozenset()
    for at in range(20):
        assert alerts.judge(dict.fromkeys(KINDS, 1e9), at) == []


def test_all_kinds_are_judged_apart() -> None:
    alerts = Alerts(THRESHOLDS)
    values = {kind: 2 * limit for kind, limit in THRESHOLDS.items()}
    assert [alert.kind for at in range(10) for alert in alerts.judge(values, at)] == list(KINDS)


def test_what_is_raised_can_be_handed_on_and_is_neither_repeated_nor_forgotten() -> None:
    first = Alerts(THRESHOLDS)
    judged(first, *[90] * 5)
    second = Alerts(THRESHOLDS, first.raised)
    assert judged(second, *[90] * 20) == []
    assert judged(second, *[50] * 11, start=20) == []
    assert second.raised == frozenset()
    assert judged(second, *[90] * 4, start=31) == [34]


def test_an_alert_reads_as_the_seed_shows_it() -> None:
    assert Alert("high_memory_usage", 85.2, 80.0).data("alert_123") == {
        "alert_id": "alert_123",
        "severity": "warning",
        "type": "high_memory_usage",
        "message": "Memory usage above 80%",
        "affected_components": ["inference_engine"],
        "current_value": 85.2,
        "threshold": 80.0,
        "recommended_action": "Scale up resources",
    }


@pytest.mark.parametrize(
    ("value", "severity"), [(80.0, "warning"), (91.9, "warning"), (92.0, "error"), (100.0, "error")]
)
def test_far_over_the_threshold_is_an_error(value: float, severity: str) -> None:
    assert Alert("high_cpu_usage", value, 80.0).data("alert_1")["severity"] == severity


def test_the_thresholds_are_settings() -> None:
    settings = Settings(redis_url="redis://localhost", alert_queue_length=7, alert_cpu_percent=0)
    assert thresholds(settings) == {
        "high_cpu_usage": 0,
        "high_memory_usage": 80.0,
        "long_queue": 7,
        "slow_responses": 60.0,
        "many_failures": 50.0,
    }
    assert thresholds(settings).keys() == KINDS.keys()


@given(st.lists(st.floats(0, 200), max_size=120))
def test_two_alerts_of_a_kind_are_as_far_apart_as_clearing_and_raising_takes(values: list[float]) -> None:
    raised = judged(Alerts(THRESHOLDS), *values)
    assert all(later - earlier >= 14 for earlier, later in pairwise(raised))
    for at in raised:
        assert all(value >= 80 for value in values[at - 3 : at + 1])
