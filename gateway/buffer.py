"""What waits for one client that has bounded it: events that were written and not yet taken. Pure: told of both."""

from collections import deque
from math import ceil
from typing import NamedTuple


class Write(NamedTuple):
    """So many events in so many bytes, which end after so many bytes of all writes together."""

    end: int
    size: int
    events: int


class Buffer:
    """Counts events by the bytes before them. `limit` is how many may wait."""

    __slots__ = ("_end", "_waiting", "_writes", "is_judged", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.is_judged = False  # somebody has noticed, and looks again in a moment
        self._end = 0
        self._waiting = 0  # in all of `_writes`
        self._writes: deque[Write] = deque()

    def written(self, events: int, size: int, backlog: int) -> bool:
        """So many events were written, `backlog` bytes wait in all; answers whether too many events wait."""
        self._end += size
        self._writes.append(Write(self._end, size, events))
        self._waiting += events
        return self.is_over(backlog)

    def is_over(self, backlog: int) -> bool:
        """True when more than `limit` events wait in `backlog` bytes."""
        taken = self._end - backlog
        while self._writes and self._writes[0].end <= taken:
            self._waiting -= self._writes.popleft().events
        if not self._writes:
            return False
        # Of the first write a part may be taken: as many of its events as of its bytes.
        first = self._writes[0]
        left = ceil(first.events * min(first.end - taken, first.size) / first.size)
        return self._waiting - first.events + left > self.limit
