"""What a soul may be. How its errors are told over HTTP is in test_api.py, what is stored in test_agents.py."""

import enum
import sys
from types import FrameType
from typing import Any

import pytest

from broker import Invalid
from broker.agents.documents import MAX_SOUL_DEPTH, MAX_SOUL_VALUES, changed_soul, merge


def nested(levels: int, innermost: dict[str, Any]) -> dict[str, Any]:
    return innermost if levels == 1 else {"a": nested(levels - 1, innermost)}


def refusal(new: object, old: dict[str, Any] | None = None) -> str:
    with pytest.raises(Invalid) as refused:
        changed_soul(old or {}, new)
    return str(refused.value)


def test_objects_are_merged_at_every_depth_and_everything_else_replaces() -> None:
    old = {"a": {"b": {"c": 1, "d": [1]}}, "e": 1}
    assert merge(old, {"a": {"b": {"d": [2], "f": None}}, "e": {}}) == {
        "a": {"b": {"c": 1, "d": [2], "f": None}},
        "e": {},
    }
    assert old == {"a": {"b": {"c": 1, "d": [1]}}, "e": 1}


class Mood(enum.StrEnum):
    CALM = "calm"


@pytest.mark.parametrize(
    "soul",
    [
        {},
        {"": ""},
        {"a": [None, True, 1, -1.5, "x", [], {}]},
        {"mood": Mood.CALM},
        {Mood.CALM: 1},
        nested(32, {"z": 1}),
    ],
    ids=repr,
)
def test_a_soul_is_anything_that_json_can_say(soul: dict[str, Any]) -> None:
    assert changed_soul({}, soul) == soul


@pytest.mark.parametrize(
    ("soul", "said"),
    [
        (5, "$.soul: expected object, got int"),
        ({"a": (1,)}, "$.soul.a: expected JSON, got tuple"),
        ({"a": [{}, {"b": [0, {1}]}]}, "$.soul.a[1].b[1]: expected JSON, got set"),
        ({"a": {"b": {5: 1}}}, "$.soul.a.b: expected text as keys"),
        ({"a": [float("inf")]}, "$.soul.a[0]: expected JSON, got float"),
        ({"a" * 300: {"b": b""}}, f"$.soul.{'a' * 193}….b: expected JSON, got bytes"),
        (nested(MAX_SOUL_DEPTH, {"a": object()}), f"$.soul{'.a' * MAX_SOUL_DEPTH}: expected JSON, got object"),
        (nested(MAX_SOUL_DEPTH + 1, {}), "$.soul: expected at most 32 levels of nesting"),
    ],
    ids=["no object", "a tuple", "a set", "keys", "infinity", "a long path", "at the bottom", "too deep"],
)
def test_what_is_wrong_is_named(soul: object, said: str) -> None:
    assert refusal(soul) == said


def test_what_is_wrong_is_found_beside_what_has_no_end() -> None:
    cycle: dict[str, Any] = {}
    cycle["a"] = [cycle] * 10
    cycle["b"] = {"c": {1, 2}, "d": [0] * 1_000_000}
    assert refusal(cycle) == "$.soul.b.c: expected JSON, got set"


def bomb(levels: int) -> list[Any]:
    return [bomb(levels - 1)] * 10 if levels else []


MANY = [
    {"a": [0] * MAX_SOUL_VALUES},
    {"a": [[]] * MAX_SOUL_VALUES},
    {str(number): None for number in range(MAX_SOUL_VALUES + 1)},
    {"a": bomb(20)},
]


@pytest.mark.parametrize("soul", MANY, ids=["numbers", "arrays", "keys", "a bomb"])
def test_its_values_are_bounded(soul: dict[str, Any]) -> None:
    assert refusal(soul) == "$.soul: expected at most 10000 values"


def test_a_soul_may_not_grow_past_that_either() -> None:
    full = {"a": [0] * (MAX_SOUL_VALUES - 1)}
    assert changed_soul(full, {"a": full["a"][::-1]}) == full
    assert refusal({"b": 0}, full) == "$.soul: expected at most 10000 values"


def test_a_good_soul_is_judged_without_a_step_for_each_of_its_values() -> None:
    """One token may send ten a second."""
    soul = {"a": [[]] * 4000, "b": [{"c": 1}] * 2000}
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        changed_soul(soul, soul)
    finally:
        sys.setprofile(None)
    assert calls < 200
