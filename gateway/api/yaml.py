"""Souls as YAML: what JSON can say too, and nothing else. Pure.

The parser's events are read one by one, so that nothing is built but dictionaries, lists and scalars. Anchors, aliases
and tags are refused where they appear: there is no bomb, no object of somebody's choice. Plain scalars mean what they
mean in YAML 1.2, not in 1.1: `no` is a text, `010` is ten, a date is a text.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.events import (
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from broker import Invalid

MAX_DEPTH = 32

_WORDS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
MAX_DIGITS = 300  # more is past what a float holds


def read(text: str) -> dict[str, Any]:
    """The mapping in `text`. Raises `Invalid` with the path of what is wrong, or with its line."""
    events: Iterator[Event] = yaml.parse(text, Loader=yaml.CSafeLoader)
    try:
        return _document(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Invalid("$", f"not YAML{where}") from None
    except yaml.YAMLError:  # a character that YAML does not allow
        raise Invalid("$", "not YAML") from None


def _document(events: Iterator[Event]) -> dict[str, Any]:
    next(events)  # the stream begins
    if isinstance(next(events), StreamEndEvent):
        raise Invalid("$", "expected an object, got nothing")
    value = _value(next(events), events, "$", 1)
    next(events)  # the document ends
    if isinstance(next(events), DocumentStartEvent):
        raise Invalid("$", "expected one document")
    if not isinstance(value, dict):
        raise Invalid("$", "expected an object")
    return value


def _value(event: Event, events: Iterator[Event], path: str, depth: int) -> Any:
    _check(event, path, depth)
    match event:
        case MappingStartEvent():
            return _mapping(events, path, depth)
        case SequenceStartEvent():
            return _sequence(events, path, depth)
    assert isinstance(event, ScalarEvent)
    return _plain(event.value, path) if event.implicit[0] else event.value


def _check(event: Event, path: str, depth: int) -> None:
    assert isinstance(event, NodeEvent)
    if event.anchor:  # an alias has one too: the name that it repeats
        raise Invalid(path, "anchors and aliases are refused")
    if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag:
        raise Invalid(path, "tags are refused")
    if depth > MAX_DEPTH and not isinstance(event, ScalarEvent):
        raise Invalid(path, f"nested deeper than {MAX_DEPTH} levels")


def _mapping(events: Iterator[Event], path: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while not isinstance(event := next(events), MappingEndEvent):
        _check(event, path, depth)
        if not isinstance(event, ScalarEvent):
            raise Invalid(path, "expected texts as keys")
        key = event.value
        if key in found:
            raise Invalid(path, "a key stands twice")
        if key == "<<" and event.implicit[0]:
            raise Invalid(path, "merge keys are refused")
        name = f"{path}.{key}" if _NAME.fullmatch(key) else f"{path}[…]"
        found[key] = _value(next(events), events, name, depth + 1)
    return found


def _sequence(events: Iterator[Event], path: str, depth: int) -> list[Any]:
    found: list[Any] = []
    while not isinstance(event := next(events), SequenceEndEvent):
        found.append(_value(event, events, f"{path}[{len(found)}]", depth + 1))
    return found


def _plain(text: str, path: str) -> Any:
    """What a scalar without quotes means."""
    if text in _WORDS:
        return _WORDS[text]
    is_number = _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text)
    if (is_number and len(text) > MAX_DIGITS) or _NO_NUMBER.fullmatch(text):
        raise Invalid(path, "a number that JSON does not have")
    if _INTEGER.fullmatch(text):
        return int(text)
    if not is_number:
        return text
    number = float(text)
    if not math.isfinite(number):
        raise Invalid(path, "a number that JSON does not have")
    return number
