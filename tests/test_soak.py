"""The long run in short: its guests find every lie, its figures are right, and a node keeps nothing of who has gone."""

import json
from array import array
from collections.abc import Iterable

import pytest

from broker.positions import START, Position

from .roll.words import FREEAGENTICS, MAXICORE
from .soak import figures
from .soak.figures import Stretch
from .soak.guest import Diary, Guest
from .soak.house import Habits
from .soak.run import Plan, errors, soak
from .soak.words import Interest, Published, Score, pack, unpack

INTEREST = Interest(MAXICORE, "ws-1")
GAP = '{"type":"resume.gap","since":"1-0","oldest":null}'


def event(step: int) -> str:
    return json.dumps({"type": MAXICORE.kind, "event_id": f"{step}-0", "data": {"step": step, "at": 0.0}})


def told(messages: Iterable[str], published: int = 6, since: Position | None = None) -> Diary:
    """The diary of a guest that was told this; so many events were published."""
    diary = Diary()
    guest = Guest(INTEREST, "", port=0, diary=diary, since=since)
    for message in messages:
        guest.take(message.encode())
    guest.settle(Published({(MAXICORE.kind, "ws-1", None): published}))
    return diary


def test_who_was_told_all_from_its_first_event_on_misses_nothing() -> None:
    assert told(map(event, (2, 3, 4, 5))).wrong.total() == 0
    assert +told(map(event, (2, 3, 4, 5)), since=START).wrong == {"lost": 2}, "it wanted them from the first on"
    assert +told((), since=START).wrong == {"lost": 6}


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ((0, 1, 3, 4, 5), {"lost": 1}),
        ((0, 1, 2), {"lost": 3}),
        ((0, 1, 2, 2, 3, 4, 5), {"doubled": 1}),
        ((0, 1, 3, 2, 4, 5), {"reordered": 1}),
    ],
)
def test_every_lie_is_found(steps: tuple[int, ...], wrong: dict[str, int]) -> None:
    assert +told(map(event, steps)).wrong == wrong


def test_what_a_gap_speaks_of_is_counted_apart() -> None:
    lost = told([event(0), event(1), GAP, event(4), event(5)])
    assert (lost.wrong.total(), lost.gaps, +lost.said) == (0, 1, {"lost": 2})
    again = told([event(0), event(1), event(2), GAP, event(1), *map(event, range(2, 6))])
    assert (again.wrong.total(), again.gaps, +again.said) == (0, 1, {"doubled": 2})


def test_each_interest_has_a_count_of_its_own_without_a_hole() -> None:
    score = Score(["ws-1", "ws-2"])
    seen = Published()
    for _ in range(500):
        said = score.next(0.0)
        for agent, number in ((None, said.data["step"]), (said.agent_id, said.data["turn"])):
            name = (said.type, said.workspace_id, agent)
            assert number == seen[name]
            seen[name] += 1
    assert seen == score.published == unpack(pack(score.published))
    assert seen[FREEAGENTICS.kind, "ws-1", None] == 25


def test_a_run_is_told_in_quarters_and_its_growth_from_the_first_on() -> None:
    stretches = [
        Stretch(60.0 * at, 60.0 * (at + 1), 10, array("d", [at]), 1, 2, 3, 1000 + 100 * at, 0, 0.5, float(at))
        for at in range(8)
    ]
    quarters = figures.quarters(stretches)
    assert [(one.started, one.ended, one.events, list(one.live)) for one in quarters] == [
        (120.0 * at, 120.0 * (at + 1), 20, [2 * at, 2 * at + 1]) for at in range(4)
    ]
    assert quarters[3].load == 7
    assert figures.growth(stretches) == pytest.approx(1700 / 1100 - 1)


def test_what_is_no_line_of_a_log_is_an_error_too() -> None:
    assert errors('{"level":"info"}\n{"level":"error"}\nTraceback') == ['{"level":"error"}', "Traceback"]


@pytest.mark.anyio
async def test_a_short_run_loses_nothing_and_leaves_nothing_behind() -> None:
    told: list[Stretch] = []
    plan = Plan(events=1000, seconds=3.5, workspaces=4, visitors=16, habits=Habits((0.2, 0.8), (0.05, 0.3)))
    outcome = await soak(plan, told.append)
    assert (outcome.diary.wrong.total(), outcome.diary.gaps, outcome.diary.endings) == (0, 0, {})
    assert told == outcome.stretches
    assert sum(one.events for one in told) == plan.events
    assert sum(one.caught_up for one in told) > 0
    assert outcome.diary.visits > 2 * plan.visitors
    assert not any(outcome.held.values())
    assert outcome.errors == []
