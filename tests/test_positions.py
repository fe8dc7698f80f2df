"""Positions: two numbers, compared as numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.positions import START, Position, before, is_after, order, parse

LARGEST = 2**64 - 1
numbers = st.integers(0, LARGEST)
pairs = st.tuples(numbers, numbers)


def written(pair: tuple[int, int]) -> str:
    return f"{pair[0]}-{pair[1]}"


@given(pairs)
def test_what_redis_writes_is_read(pair: tuple[int, int]) -> None:
    assert parse(written(pair)) == order(written(pair)) == pair


@given(pairs, pairs)
def test_they_are_ordered_as_two_numbers_and_never_as_text(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert is_after(written(one), written(other)) == (one > other)
    assert not is_after(written(one), written(one))


def test_a_longer_number_is_a_larger_one() -> None:
    assert is_after("10-0", "9-0")
    assert is_after("5-10", "5-9")
    assert not is_after("9-99", "10-0")


def test_everything_is_after_the_start() -> None:
    assert parse(START) == (0, 0)
    assert is_after("0-1", START)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "-",
            "5",
            "5-",
            "-5",
            "5-5-5",
            "a-b",
            "5-a",
            "+5-0",
            "-5-0",
            "5--0",
            "5.0-0",
            "0x5-0",
            "5_0-0",
            "$",
            "*",
            "+",
        ),
        *(
            " 5-0",
            "5-0 ",
            "5-0\n",
            "5 -0",
            "５-０",
            "٥-٠",
            "5–0",
            f"{LARGEST + 1}-0",
            f"0-{LARGEST + 1}",
            "1" * 1000 + "-0",
        ),
    ],
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert parse(text) is None


@given(st.text() | st.text("0123456789-", max_size=50))
def test_any_text_is_a_position_or_none(text: str) -> None:
    pair = parse(text)
    if pair is not None:
        assert order(text) == pair
        assert text.isascii()
        assert max(pair) <= LARGEST


@pytest.mark.parametrize(("position", "expected"), [("5-1", "5-0"), ("5-0", f"4-{2**64 - 1}"), ("17-300", "17-299")])
def test_nothing_stands_between_a_position_and_the_one_before(position: Position, expected: str) -> None:
    assert before(position) == expected
    assert is_after(position, before(position))
