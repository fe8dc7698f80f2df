"""What dialects share in reading a client's message. Errors say where and what was expected, never what was given."""

import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from broker.errors import Invalid
from broker.keyspace import check_id

from ..messages import Refused
from ..reasons import INVALID_MESSAGE

MAX_VALUES = 1000

M = TypeVar("M")


def read(decoder: msgspec.json.Decoder[M], text: str, types: Iterable[str]) -> M:
    """The message in `text`, one of `types`. Raises `Refused` with the path of what is wrong."""
    try:
        return decoder.decode(text)
    except RecursionError:
        raise Refused(INVALID_MESSAGE, "nested too deeply") from None
    except msgspec.ValidationError as error:
        raise Refused(INVALID_MESSAGE, _explain(str(error), types)) from None
    except (msgspec.DecodeError, ValueError):
        raise Refused(INVALID_MESSAGE, "not JSON") from None


def _explain(error: str, types: Iterable[str]) -> str:
    """msgspec's words, with the path first and the message types by name."""
    text, _, path = error.partition(" - at ")
    path = path.strip("`") or "$"
    if path == "$.type" or "missing required field `type`" in text:
        return f"$.type: expected one of {', '.join(types)}"
    what, _, name = text.partition(" unknown field ")
    if name and not may_be_told(name.strip("`")):
        text = f"{what} unknown field"
    return f"{path}: {text[:1].lower()}{text[1:].replace('`', '')}"


# What a client said may be repeated to it, unless it looks like a secret that it put in the wrong place.
_SECRET = re.compile(r"eyJ[\w-]*\.|tlk_|[\w-]{65,}")


def may_be_told(text: str) -> bool:
    """Whether it may stand in an answer."""
    return len(text) <= 255 and text.isprintable() and not _SECRET.search(text)


def ids(given: str | list[str] | None, path: str) -> frozenset[str] | None:
    """One id or several. Raises `Refused` for what is no id, and for an empty list."""
    if given is None:
        return None
    values = frozenset((given,) if isinstance(given, str) else given)
    if not values:
        raise Refused(INVALID_MESSAGE, f"{path}: expected at least one value, or no such filter")
    for value in values:
        one_id(value, path)
    return values


def one_id(value: str, path: str) -> str:
    """An id. Raises `Refused`."""
    try:
        return check_id(value, path)
    except Invalid as error:
        raise Refused(INVALID_MESSAGE, str(error)) from None
