"""The documents of an agent: what a soul and a shield may be, and how a change goes into what is there. Pure.

Both are kept as JSON, in the order in which their keys came. A soul is anything that JSON can say, within its bounds:

    {"role": "Engineer", "memory": {"max_history": 5000}}  and  {"memory": {"long_term": true}}
    are together  {"role": "Engineer", "memory": {"max_history": 5000, "long_term": true}}

Paths in `Invalid` begin at the agent: `$.soul.memory`, `$.shield.filesystem`.
"""

from math import isfinite
from typing import Any

import msgspec

from ..errors import Invalid
from ..shield import validate

MAX_SOUL_BYTES = 64 * 1024
MAX_SOUL_DEPTH = 32
_MAX_PATH_CHARACTERS = 200

_TOO_LARGE = f"expected at most {MAX_SOUL_BYTES} bytes of JSON"


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
    """The soul `old` with what `new` says. Raises `Invalid`. Two that fit may be too large together: `write_soul`."""
    return merge(old, _checked(new))


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


def _checked(soul: object) -> dict[str, Any]:
    """Whether all of `soul` is JSON. It takes no more steps than a soul has bytes, whatever refers to itself in it."""
    if not isinstance(soul, dict):
        raise Invalid("$.soul", f"expected object, got {type(soul).__name__}")
    waiting: list[tuple[Any, str, int]] = [(soul, "$.soul", 1)]
    steps = 0
    while waiting:
        value, path, depth = waiting.pop()
        steps += 1
        if steps > MAX_SOUL_BYTES or (isinstance(value, dict | list) and len(value) > MAX_SOUL_BYTES):
            raise Invalid("$.soul", _TOO_LARGE)
        if isinstance(value, dict | list):
            if depth > MAX_SOUL_DEPTH:
                raise Invalid("$.soul", f"expected at most {MAX_SOUL_DEPTH} levels of nesting")
            waiting += [(inner, inside, depth + 1) for inner, inside in _members(value, path)]
        elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))):
            raise Invalid(path, f"expected JSON, got {type(value).__name__}")
    return soul


def _members(value: dict[Any, Any] | list[Any], path: str) -> list[tuple[Any, str]]:
    """What is in an object or an array, each with its path."""
    path = path if len(path) <= _MAX_PATH_CHARACTERS else f"{path[:_MAX_PATH_CHARACTERS]}…"
    if isinstance(value, list):
        return [(inner, f"{path}[{index}]") for index, inner in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            raise Invalid(path, f"expected text as keys, got {type(key).__name__}")
    return [(inner, f"{path}.{key}") for key, inner in value.items()]
