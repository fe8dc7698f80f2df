"""Positions: where in its workspace's log an event stands.

A position is the stream's own id, `<milliseconds>-<sequence>` by Redis' clock. Within a workspace positions only grow;
they are compared as two numbers, never as text.
"""

import re
from functools import lru_cache
from typing import NewType

Position = NewType("Position", str)

# Before everything: the position of what has no event yet.
START = Position("0-0")

_POSITION = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_LARGEST = 2**64 - 1


@lru_cache(4096)  # each stands in several messages: as the position of one, and before the next
def parse(text: str) -> tuple[int, int] | None:
    """The two numbers of a position; None when `text` is not one."""
    match = _POSITION.fullmatch(text)
    if match is None:
        return None
    milliseconds, sequence = int(match[1]), int(match[2])
    return (milliseconds, sequence) if max(milliseconds, sequence) <= _LARGEST else None


def order(position: str) -> tuple[int, int]:
    """A sort key for what is known to be a position."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence)


def before(position: Position) -> Position:
    """The position just before, whether there is such an entry or not."""
    milliseconds, sequence = order(position)
    return Position(f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}")


def is_after(position: str, other: str) -> bool:
    """True when `position` is newer than `other`."""
    return order(position) > order(other)
