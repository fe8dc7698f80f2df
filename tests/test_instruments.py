"""What the instruments (`make roll`, `soak`, `shards`) must not pass over: their exit status is a judgement."""

from array import array
from collections import Counter
from collections.abc import Sequence

import pytest

from .roll.client import Absence, Ending, Journal
from .roll.figures import Phase, faults, read
from .shards import __main__ as shards
from .shards.run import Outcome
from .shards.table import of
from .shards.traffic import Traffic
from .soak.figures import Stretch, drifts
from .soak.guest import Diary

ROLL = Phase("roll of A", 0.0, 20.0, {}, window=10.0)


def rolled(*absences: float, closes: Sequence[float] = ()) -> list[str]:
    """What is found in a roll in which clients were away for so many seconds, and were closed at these moments."""
    journal = Journal()
    journal.absences = [Absence(number, 1.0, 1.0 + seconds) for number, seconds in enumerate(absences)]
    journal.endings = [Ending(at, 1012) for at in closes]
    return faults(read(journal, [ROLL]), journal)


def test_a_roll_fails_for_who_is_away_for_long_and_for_a_crowd() -> None:
    assert rolled(0.5, 4.9, closes=[number / 10 for number in range(100)]) == []
    assert "roll of A: somebody was without a connection for 30.0 s" in rolled(0.5, 30.0)
    assert "roll of A: a second had 10.0 times its share of the closes" in rolled(closes=[1.0] * 100)


def test_a_roll_fails_for_what_is_lost_or_a_gap() -> None:
    journal = Journal()
    journal.gaps, journal.wrong = 1, Counter(lost=2)
    assert faults([], journal) == ["events lost: 2", "gaps said: 1"]


def soaked(*lags: float) -> list[str]:
    """What has drifted in a run of four quarters, of which each had this lag, in ms, but for every fiftieth event."""
    stretches = [
        Stretch(300.0 * at, 300.0 * (at + 1), 100, array("d", [lag / 1000] * 98 + [0.3] * 2), 0, 0, 0, 0, 0, 0.0, 0.0)
        for at, lag in enumerate(lags)
    ]
    return drifts(stretches)


def test_a_soak_fails_for_a_lag_that_grows_and_not_for_a_busy_moment() -> None:
    assert soaked(1.0, 1.0, 1.0, 2.1) == []
    assert soaked(1.0, 90.0, 90.0, 6.9) == []
    assert soaked(1.0, 3.0, 5.0, 7.5) == ["p50 7.5 ms in the last quarter, 1.0 ms in the first"]
    assert [line.partition(" ")[0] for line in soaked(1.0, 1.0, 1.0, 900.0)] == ["p50", "p99"]


@pytest.mark.parametrize(
    ("received", "is_wrong"),
    [((1200, 1300, 2400), False), ((1200, 1600, 2400), True), ((2000, 2000, 2000), True), ((0, 0, 0), False)],
)
def test_shards_fails_when_a_node_receives_what_is_for_others(received: Sequence[int], is_wrong: bool) -> None:
    traffic = [
        Traffic(name, one, own, 2000) for name, one, own in zip("ABC", received, (1000, 1000, 2000), strict=True)
    ]
    outcome = Outcome(traffic, traffic, [], [Diary()], {"healed": 0, "said": 0}, [])
    assert shards.is_wrong(outcome) is is_wrong
    assert any("more than its clients want" in line for line in shards.verdict(outcome)) is is_wrong
    assert len(of(traffic).splitlines()) == 4


def test_shards_fails_for_what_is_lost_without_a_word_and_for_an_error() -> None:
    diary = Diary()
    diary.wrong["lost"] = 1
    quiet = Outcome([], [], [], [Diary()], {"healed": 0, "said": 0}, [])
    assert not shards.is_wrong(quiet)
    assert shards.is_wrong(quiet._replace(diaries=[diary]))
    assert shards.is_wrong(quiet._replace(errors=["Traceback"]))
