"""Souls as YAML: what JSON can say is read, and nothing else is built."""

import tracemalloc
from typing import Any

import pytest

from broker import Invalid
from broker.agents.documents import MAX_SOUL_DEPTH, MAX_SOUL_VALUES, changed_soul
from gateway.api.yaml import read

SOUL = """
name: DataBot v2
personality:
  tone: technical      # and never "casual"
  proactivity: "medium"
constraints: {max_concurrent_tasks: 5, timeout_seconds: 1.8e3}
notes: |
  first
  second
tags: [a, 'b', true, null]
"""


def test_a_soul_is_read_as_it_stands() -> None:
    assert read(SOUL) == {
        "name": "DataBot v2",
        "personality": {"tone": "technical", "proactivity": "medium"},
        "constraints": {"max_concurrent_tasks": 5, "timeout_seconds": 1800.0},
        "notes": "first\nsecond\n",
        "tags": ["a", "b", True, None],
    }


@pytest.mark.parametrize(
    ("scalar", "meant"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("010", 10),
        ("0x1F", 31),
        ("0o14", 12),
        ("0o18", "0o18"),
        ("0b11", "0b11"),
        ("-0x1F", "-0x1F"),
        ("0X1F", "0X1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-03-27", "2026-03-27"),
        ("-7", -7),
        (".5", 0.5),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("TRUE", True),
        ("=", "="),
        ("\ud55c", "한"),
    ],
)
def test_a_plain_scalar_means_what_it_does_in_yaml_1_2(scalar: str, meant: Any) -> None:
    assert read(f"a: {scalar}") == {"a": meant}


@pytest.mark.parametrize("key", ["1", "null", "true", "2026-03-27"])
def test_keys_are_texts(key: str) -> None:
    assert read(f"{key}: x") == {key: "x"}


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("a: &x 1", "$.a", "anchors"),
        ("a: *x", "$.a", "anchors"),
        ("&x a: 1", "$", "anchors"),
        ("a: [1, {b: &x {}}]", "$.a[1].b", "anchors"),
        ("a: !!str 1", "$.a", "tags"),
        ("a: ! 1", "$.a", "tags"),
        ("!!map {a: 1}", "$", "tags"),
        ("!!python/object/apply:os.system ['id']", "$", "tags"),
        ("<<: {a: 1}", "$", "merge keys"),
        ("a: 1\na: 2", "$", "twice"),
        ("? [1]\n: 2", "$", "texts as keys"),
        ("a: 1\n---\nb: 2", "$", "one document"),
        ("a: .inf", "$.a", "a number"),
        ("a: .NaN", "$.a", "a number"),
        ("a: 1e999", "$.a", "a number"),
        ("a: " + "9" * 400, "$.a", "a number"),
        ("a: 0x" + "9" * 400, "$.a", "a number"),
        ("a: {b: [1], c: 2, c: 3}", "$.a", "twice"),
        ("a: [{b: 1}, [2], &x 3]", "$.a[2]", "anchors"),
        ("", "$", "nothing"),
        ("# only a comment", "$", "nothing"),
        ("- 1", "$", "an object"),
        ("text", "$", "an object"),
        ("a: [", "$", "line 2"),
        ("\ta: 1", "$", "line 1"),
        ('a: "\\ud800"', "$", "line 1"),
        ("a: \x00", "$", "not YAML"),
        ("...", "$", "line 1"),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_place(text: str, path: str, reason: str) -> None:
    with pytest.raises(Invalid) as refused:
        read(text)
    assert refused.value.path == path
    assert reason in refused.value.reason


def test_depth_is_bounded_as_in_json() -> None:
    deep = "{a: " * (MAX_SOUL_DEPTH - 1) + "{b: 1}" + "}" * (MAX_SOUL_DEPTH - 1)
    assert changed_soul({}, read(deep)) == read(deep)
    with pytest.raises(Invalid, match="expected at most 32 levels of nesting") as refused:
        read(f"{{a: {deep}}}")
    assert refused.value.path == "$" + ".a" * MAX_SOUL_DEPTH


@pytest.mark.parametrize("value", ["1,", "[],", "{},", "{a: []},"])
def test_values_are_bounded_as_in_json(value: str) -> None:
    count = (MAX_SOUL_VALUES - 1) // (1 + value.count("a"))  # the list is one too
    full = "a: [" + value * count + "]"
    assert changed_soul({}, read(full)) == read(full)
    with pytest.raises(Invalid, match=r"^\$: expected at most 10000 values$"):
        read("a: [" + value * (count + 1) + "]")


def test_no_more_is_parsed_than_a_soul_may_have() -> None:
    """What is behind could not be read at all."""
    with pytest.raises(Invalid, match="values"):
        read("a: [" + "1," * 2 * MAX_SOUL_VALUES + "&")


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{'*' + a},{'*' + a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "bomb",
    [
        LAUGHS,
        "[" * 65_000,
        "{a: " * 16_000,
        "- " * 32_000,
        "? " * 32_000,
        "&" * 65_000,
        "a " * 32_000 + ": 1",
        "a:\n" + " \n" * 30_000,
        "a: [" + "1," * 32_000 + "]",
        "".join(f"k{number}: 1\n" for number in range(7_000)),
    ],
    ids=["laughs", "lists", "maps", "dashes", "questions", "anchors", "a long key", "lines", "a long list", "keys"],
)
def test_no_64_kb_take_more_than_a_few_megabytes(bomb: str) -> None:
    tracemalloc.start()
    try:
        read(bomb)
    except Invalid:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4_000_000
