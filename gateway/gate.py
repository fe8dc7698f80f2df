"""The gate: how many newcomers a node lets in per second. Pure: time is an argument, in seconds.

When a node dies or a fleet is deployed, thousands of clients come back in the same moment, and each handshake takes CPU
from those who are connected. What a node cannot carry now is told when to come again, so many for each second: the
storm comes back spread, to whichever node has room.
"""

from math import ceil

# Nobody is sent away for longer: who comes again and again, whatever is said, counts each time.
LONGEST_SECONDS = 15


class Gate:
    """Lets in `rate` a second, and after a quiet second as many at once. A `rate` of 0 lets everybody in."""

    __slots__ = ("_at", "_away", "_rate", "_room")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._room = float(rate)
        self._away = 0.0  # who was sent away and has not been told to be back yet
        self._at = now

    def wait(self, now: float) -> int:
        """0 lets one in that comes now; else it should come again after so many seconds."""
        if not self._rate:
            return 0
        passed = (now - self._at) * self._rate
        self._room, self._away = min(float(self._rate), self._room + passed), max(0.0, self._away - passed)
        self._at = now
        if self._room >= 1:
            self._room -= 1
            return 0
        self._away = min(self._away + 1, float(self._rate * LONGEST_SECONDS))
        return ceil(self._away / self._rate)
