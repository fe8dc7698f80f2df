"""Souls as YAML: what JSON can say too, and nothing else. Pure.

The parser's events are read one by one, so that nothing is built but dictionaries, lists and scalars. Anchors, aliases
and tags are refused where they appear, and so are more values or levels than a soul may have: there is no bomb, no
object of somebody's choice. Plain scalars mean what they mean in the core schema of YAML 1.2, not in 1.1: `no` is a
text, `010` is ten, `0o10` is eight, a date is a text.
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
    StreamEndEvent,
)

from broker import Invalid
from broker.agents.documents import MAX_SOUL_DEPTH, MAX_SOUL_VALUES, TOO_DEEP, TOO_MANY

_WORDS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_BASES = {"0o": 8, "0x": 16}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_MAX_DIGITS = 300  # more is past what a float holds


def read(text: str) -> dict[str, Any]:
    """The mapping in `text`. Raises `Invalid` with the path of what is wrong, or with its line."""
    try:
        return _Reader(yaml.parse(text, Loader=yaml.CSafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Invalid("$", f"not YAML{where}") from None
    except yaml.YAMLError:  # a character that YAML does not allow
        raise Invalid("$", "not YAML") from None


class _Reader:
    """One document, event by event. Its parser goes no further than what has been read."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._place: list[str] = []  # of the value that is read: the way to it from the root
        self._left = MAX_SOUL_VALUES

    def document(self) -> dict[str, Any]:
        events = self._events
        next(events)  # the stream begins
        if isinstance(next(events), StreamEndEvent):
            raise Invalid("$", "expected an object, got nothing")
        value = self._value(next(events))
        next(events)  # the document ends
        if isinstance(next(events), DocumentStartEvent):
            raise Invalid("$", "expected one document")
        if not isinstance(value, dict):
            raise Invalid("$", "expected an object")
        return value

    def _value(self, event: Event) -> Any:
        self._check(event)
        if isinstance(event, ScalarEvent):
            return self._plain(event.value) if event.implicit[0] else event.value
        if len(self._place) >= MAX_SOUL_DEPTH:
            raise self._wrong(TOO_DEEP)
        return self._mapping() if isinstance(event, MappingStartEvent) else self._sequence()

    def _check(self, event: Event) -> None:
        assert isinstance(event, NodeEvent)
        if event.anchor:  # an alias has one too: the name that it repeats
            raise self._wrong("anchors and aliases are refused")
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag:
            raise self._wrong("tags are refused")

    def _mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event)
            if key in found:
                raise self._wrong("a key stands twice")
            found[key] = self._member(f".{key}" if _NAME.fullmatch(key) else "[…]", next(self._events))
        return found

    def _key(self, event: Event) -> str:
        self._check(event)
        if not isinstance(event, ScalarEvent):
            raise self._wrong("expected texts as keys")
        if event.value == "<<" and event.implicit[0]:
            raise self._wrong("merge keys are refused")
        return str(event.value)

    def _sequence(self) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            found.append(self._member(f"[{len(found)}]", event))
        return found

    def _member(self, place: str, event: Event) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Invalid("$", TOO_MANY)
        self._place.append(place)
        value = self._value(event)
        self._place.pop()
        return value

    def _plain(self, text: str) -> Any:
        """What a scalar without quotes means."""
        if text in _WORDS:
            return _WORDS[text]
        is_integer = _INTEGER.fullmatch(text)
        is_number = is_integer or _FLOAT.fullmatch(text)
        if (is_number and len(text) > _MAX_DIGITS) or _NO_NUMBER.fullmatch(text):
            raise self._wrong("a number that JSON does not have")
        if is_integer:
            return int(text, _BASES.get(text[:2], 10))
        if not is_number:
            return text
        number = float(text)
        if not math.isfinite(number):
            raise self._wrong("a number that JSON does not have")
        return number

    def _wrong(self, reason: str) -> Invalid:
        return Invalid("$" + "".join(self._place), reason)
