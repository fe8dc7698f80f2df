"""The documents of an agent: what a soul and a shield may be, and how a change goes into what is there. Pure.

Both are kept as JSON, in the order in which their keys came. A soul is anything that JSON can say, within its bounds:

    {"role": "Engineer", "memory": {"max_history": 5000}}  and  {"memory": {"long_term": true}}
    are together  {"role": "Engineer", "memory": {"max_history": 5000, "long_term": true}}

Paths in `Invalid` begin at the agent: `$.soul.memory`, `$.shield.filesystem`.
"""

from collections import deque
from collections.abc import Collection, Iterable
from math import isfinite
from types import NoneType
from typing import Any

import msgspec

from ..errors import Invalid
from ..shield import validate

MAX_SOUL_BYTES = 64 * 1024
MAX_SOUL_DEPTH = 32  # levels of objects and arrays, the soul itself among them
MAX_SOUL_VALUES = 10_000  # in its objects and arrays, at all depths together: each takes time, however short it is
TOO_DEEP = f"expected at most {MAX_SOUL_DEPTH} levels of nesting"
TOO_MANY = f"expected at most {MAX_SOUL_VALUES} values"
_TOO_LARGE = f"expected at most {MAX_SOUL_BYTES} bytes of JSON"
_MAX_PATH_CHARACTERS = 200

_NESTS = (dict, list)
_JSON = (*_NESTS, str, int, float, NoneType)


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says: objects are merged at every depth, everything else replaces what was there.

    Null too is a value that is kept, and removes nothing: the seed knows no removing.
    """
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def changed_soul(old: dict[str, Any], new: object) -> dict[str, Any]:
    """The soul `old` with what `new` says. Raises `Invalid`. It may yet be too large: `write_soul`."""
    if not isinstance(new, dict):
        raise Invalid("$.soul", f"expected object, got {type(new).__name__}")
    soul = merge(old, new)
    _check(soul)
    return soul


def write_soul(soul: dict[str, Any]) -> bytes:
    """A soul as it is kept. Raises `Invalid` for one that is too large, or whose text is not Unicode."""
    try:
        raw = msgspec.json.encode(soul)
    except (ValueError, RecursionError) as error:  # half a surrogate pair, or a number of thousands of digits
        raise Invalid("$.soul", f"cannot be written as JSON: {type(error).__name__}") from error
    if len(raw) > MAX_SOUL_BYTES:
        raise Invalid("$.soul", _TOO_LARGE)
    return raw


def changed_shield(old: dict[str, Any], new: object) -> dict[str, Any]:
    """The shield `old` with the sections that `new` gives in place of its own. Raises `Invalid`."""
    if not isinstance(new, dict):
        raise Invalid("$.shield", f"expected object, got {type(new).__name__}")
    try:
        return validate(old | validate(new))
    except Invalid as error:
        raise Invalid(error.path.replace("$", "$.shield", 1), error.reason) from error


def _check(soul: dict[str, Any]) -> None:
    """Whether all of `soul` is JSON, within its bounds, even where it refers to itself. Raises `Invalid`.

    Level by level, all values of a level at once: the loop waits for it, and one token may send ten souls a second.
    """
    level: list[Any] = [soul]
    left = MAX_SOUL_VALUES
    for _ in range(MAX_SOUL_DEPTH):
        left -= sum(map(len, level))
        if left < 0:
            raise Invalid("$.soul", TOO_MANY)
        keys = [key for outer in level if isinstance(outer, dict) for key in outer]
        values = [value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer)]
        if not (_are_texts(keys) and _are_json(values)):
            raise _wrong(soul)
        level = [value for value in values if isinstance(value, _NESTS)]
        if not level:
            return
    raise Invalid("$.soul", TOO_DEEP)


def _are_texts(keys: Iterable[object]) -> bool:
    return all(issubclass(kind, str) for kind in set(map(type, keys)))


def _are_json(values: Collection[object]) -> bool:
    """Whether each may stand in JSON; of an object or an array only that it is one."""
    is_known = all(issubclass(kind, _JSON) for kind in set(map(type, values)))
    return is_known and all(isfinite(value) for value in values if isinstance(value, float))


def _wrong(soul: dict[str, Any]) -> Invalid:
    """What is no JSON in `soul`, nearest to its root. Paths are made here alone: in a good soul nobody needs any."""
    waiting: deque[tuple[Any, str]] = deque([(soul, "$.soul")])
    while True:
        outer, path = waiting.popleft()
        if isinstance(outer, dict) and not _are_texts(outer):
            return Invalid(path, "expected text as keys")
        for inner, inside in _members(outer, path):
            if not _are_json((inner,)):
                return Invalid(inside, f"expected JSON, got {type(inner).__name__}")
            if isinstance(inner, _NESTS):
                waiting.append((inner, inside))


def _members(outer: dict[str, Any] | list[Any], path: str) -> Iterable[tuple[Any, str]]:
    """What is in an object or an array, each with its path."""
    path = path if len(path) <= _MAX_PATH_CHARACTERS else f"{path[:_MAX_PATH_CHARACTERS]}…"
    if isinstance(outer, dict):
        return ((inner, f"{path}.{key}") for key, inner in outer.items())
    return ((inner, f"{path}[{index}]") for index, inner in enumerate(outer))
