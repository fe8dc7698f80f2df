"""What waits for a client that has bounded it: the events of all writes but for the part of each that was taken."""

from collections import deque
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.buffer import Buffer


def test_a_client_that_takes_everything_never_has_too_many() -> None:
    buffer = Buffer(1)
    assert not any(buffer.written(1, 100, 0) for _ in range(1000))


def test_more_events_than_allowed_are_too_many_and_as_many_are_not() -> None:
    buffer = Buffer(3)
    assert [buffer.written(1, 100, 100 * number) for number in (1, 2, 3, 4)] == [False, False, False, True]
    assert buffer.is_over(400)
    assert not buffer.is_over(300), "one was taken"


def test_an_event_waits_until_its_last_byte_is_taken() -> None:
    buffer = Buffer(1)
    buffer.written(1, 100, 100)
    assert buffer.written(1, 100, 200)
    assert buffer.is_over(101)
    assert not buffer.is_over(100)


def test_what_waited_before_it_was_bounded_stands_in_front_and_does_not_count() -> None:
    buffer = Buffer(2)
    assert not buffer.written(2, 50, 1_000_050)
    assert buffer.written(1, 50, 1_000_100)
    assert buffer.is_over(100)
    assert not buffer.is_over(50)


def test_the_events_of_one_write_count_each() -> None:
    buffer = Buffer(10)
    assert not buffer.written(10, 1000, 1000)
    assert buffer.written(1, 100, 1100)
    assert not buffer.is_over(100)
    assert buffer.written(11, 1100, 1100)


def test_nothing_is_kept_of_what_was_taken() -> None:
    buffer = Buffer(5)
    for _ in range(1000):
        buffer.written(3, 100, 50)
    assert len(buffer._writes) == 1  # it shows nowhere else


@pytest.mark.parametrize("limit", [1, 5, 50])
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 500), st.integers(0, 3000)), max_size=60))
@settings(deadline=None)
def test_it_counts_what_a_naive_model_counts(limit: int, steps: list[tuple[int, int, int]]) -> None:
    """Each step writes so many events in so many bytes, then so many bytes are taken."""
    buffer, waiting = Buffer(limit), deque[list[int]]()  # events, bytes, and how many of these wait

    def is_over() -> bool:
        return sum(ceil(events * left / size) for events, size, left in waiting) > limit

    for events, size, asked in steps:
        taken = asked
        waiting.append([events, size, size])
        assert buffer.written(events, size, sum(left for _, _, left in waiting)) == is_over()
        while waiting and taken:
            part = min(taken, waiting[0][2])
            waiting[0][2] -= part
            taken -= part
            if not waiting[0][2]:
                waiting.popleft()
        assert buffer.is_over(sum(left for _, _, left in waiting)) == is_over()


def test_of_a_write_that_is_partly_taken_the_rest_waits() -> None:
    buffer = Buffer(100)
    assert buffer.written(400, 4000, 4000)
    assert buffer.is_over(1001)
    assert not buffer.is_over(1000)
