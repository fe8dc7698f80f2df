"""The timing wheel: what is put on it comes up when its time has come, once, whoever else is on it."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from gateway.clock import TICK_SECONDS, Wheel

START = 1000.0
LATEST = TICK_SECONDS + 1e-6  # how late something may be; a multiple of a tick is no exact number


class Alarm:
    """Something that waits for its time."""

    def __init__(self) -> None:
        self.wheel_tick = -1


def wheel_with(*times: float) -> tuple[Wheel[Alarm], list[Alarm]]:
    wheel: Wheel[Alarm] = Wheel(START)
    alarms = [Alarm() for _ in times]
    for alarm, at in zip(alarms, times, strict=True):
        wheel.put(alarm, at)
    return wheel, alarms


def test_nothing_comes_up_before_its_time_and_all_within_a_tick_after_it() -> None:
    at = START + 5.03
    wheel, [alarm] = wheel_with(at)
    assert list(wheel.advance(at)) == []
    assert list(wheel.advance(at + TICK_SECONDS)) == [alarm]
    assert list(wheel.advance(at + 100)) == []


def test_the_past_and_this_very_moment_come_up_with_the_next_tick() -> None:
    wheel, alarms = wheel_with(0.0, START - 1, START, START - math.pi)
    assert list(wheel.advance(START)) == []
    assert list(wheel.advance(START + TICK_SECONDS)) == alarms


def test_what_is_put_anew_comes_up_at_its_last_time_alone() -> None:
    for times in ([1.0, 3.0], [3.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0], [3.0, 1.0, 3.0, 2.0]):
        wheel, [alarm] = wheel_with(START + times[0])
        for at in times[1:]:
            wheel.put(alarm, START + at)
        came = [step for step in range(60) if alarm in wheel.advance(START + step * TICK_SECONDS)]
        assert len(came) == 1
        assert times[-1] <= came[0] * TICK_SECONDS <= times[-1] + 2 * TICK_SECONDS


def test_what_was_removed_does_not_come_up_until_it_is_put_again() -> None:
    wheel, [alarm] = wheel_with(START + 1)
    wheel.remove(alarm)
    assert list(wheel.advance(START + 2)) == []
    wheel.put(alarm, START + 3)
    wheel.remove(alarm)
    wheel.put(alarm, START + 3)
    assert list(wheel.advance(START + 4)) == [alarm]


def test_what_came_up_may_be_put_again_at_once() -> None:
    """A heartbeat: each time it comes, it is put for the next."""
    wheel, _ = wheel_with(START + 1)
    beats = []
    for step in range(100):
        now = START + step * TICK_SECONDS
        for due in wheel.advance(now):
            beats.append(now)
            wheel.put(due, now + 1)
    assert beats
    assert all(1 < after - before <= 1 + 2 * LATEST for before, after in itertools.pairwise([START, *beats]))


def test_after_a_long_sleep_all_of_it_comes_up_in_order() -> None:
    times = [START + delay for delay in (50_000.0, 1.0, 3600.0, 2.0, 90_000.0)]
    wheel, alarms = wheel_with(*times)
    assert list(wheel.advance(START + 60_000)) == [alarms[index] for index in (1, 3, 2, 0)]
    assert list(wheel.advance(START + 100_000)) == [alarms[4]]


def test_a_clock_that_stands_still_or_goes_back_brings_nothing_twice() -> None:
    wheel, [alarm] = wheel_with(START + 1)
    assert list(wheel.advance(START + 2)) == [alarm]
    wheel.put(alarm, START + 1.5)
    assert list(wheel.advance(START + 2)) == []
    assert list(wheel.advance(START - 50)) == []
    assert list(wheel.advance(START + 2.2)) == [alarm]


@given(st.lists(st.floats(0, 200), max_size=30), st.lists(st.floats(0, 40), max_size=30))
@settings(deadline=None)
def test_small_steps_and_a_long_one_bring_the_same(times: list[float], steps: list[float]) -> None:
    walking, walkers = wheel_with(*(START + at for at in times))
    now, came = START, []
    for step in steps:
        now += step
        came += [walkers.index(alarm) for alarm in walking.advance(now)]
    leaping, leapers = wheel_with(*(START + at for at in times))
    assert [leapers.index(alarm) for alarm in leaping.advance(now)] == came


class WheelAgainstModel(RuleBasedStateMachine):
    """The wheel against a dictionary of times, which is searched."""

    alarms = Bundle("alarms")

    @initialize()
    def start(self) -> None:
        self.now = START
        self.wheel: Wheel[Alarm] = Wheel(START)
        self.times: dict[Alarm, float] = {}

    @rule(target=alarms)
    def make(self) -> Alarm:
        return Alarm()

    @rule(alarm=alarms, delay=st.floats(-5, 60) | st.sampled_from([0.0, TICK_SECONDS, 0.3, 1.0]))
    def put(self, alarm: Alarm, delay: float) -> None:
        self.wheel.put(alarm, self.now + delay)
        self.times[alarm] = max(self.now, self.now + delay)

    @rule(alarm=alarms)
    def remove(self, alarm: Alarm) -> None:
        self.wheel.remove(alarm)
        self.times.pop(alarm, None)

    @rule(delay=st.floats(0, 3) | st.floats(0, 100) | st.sampled_from([0.0, TICK_SECONDS]))
    def advance(self, delay: float) -> None:
        self.now += delay
        due = list(self.wheel.advance(self.now))
        times = [self.times.pop(alarm) for alarm in due]  # a KeyError: twice, or never put
        assert all(at <= self.now for at in times)
        assert all(before < after + LATEST for before, after in itertools.pairwise(times))

    @invariant()
    def is_never_late_by_more_than_a_tick(self) -> None:
        assert all(at > self.now - LATEST for at in self.times.values())


TestWheelAgainstModel = WheelAgainstModel.TestCase
TestWheelAgainstModel.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
