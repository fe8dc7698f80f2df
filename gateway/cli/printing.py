"""What people are shown, and what they write as JSON."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from broker import Invalid


def as_line(value: Any) -> str:
    """One line of JSON, for programs."""
    return msgspec.json.encode(value).decode()


def read_object(text: str, path: str) -> dict[str, Any]:
    """Raises `Invalid` with `path` for what is no JSON object."""
    try:
        return msgspec.json.decode(os.fsencode(text), type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Invalid(path, "expected a JSON object") from None


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as what stands in them."""
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """A value in one line; a moment to the second."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return "-" if value is None else _printable(str(value))


def document(value: dict[str, Any]) -> str:
    """JSON in as many lines as it takes."""
    lines = msgspec.json.format(msgspec.json.encode(value)).decode().split("\n")
    return "\n".join(map(_printable, lines))


def _printable(text: str) -> str:
    """`text` with what is not printable escaped: somebody's name for an agent must not steer an operator's terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
