"""One window of messages, as this node counts it. Pure: time is an argument, monotonic, in seconds."""

from typing import NamedTuple


class Taken(NamedTuple):
    """Whether a message may pass, how many did in its window (this one included), and when the window ends."""

    is_granted: bool
    used: int
    resets_in: float  # seconds


class Window:
    """One fixed window of `seconds`, which starts with its first message. `now` is monotonic, in seconds."""

    __slots__ = ("_ends", "_seconds", "_used")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = float("-inf")
        self._used = 0

    def is_over(self, now: float) -> bool:
        return now >= self._ends

    def count(self, amount: int, limit: int, now: float) -> Taken:
        """Count `amount` messages if `limit` leaves room for all of them. What is refused is not counted."""
        used, resets_in = (0, self._seconds) if self.is_over(now) else (self._used, self._ends - now)
        if used + amount > limit:
            return Taken(False, used, resets_in)
        self.note(amount, resets_in, now)
        return Taken(True, used + amount, resets_in)

    def note(self, amount: int, resets_in: float, now: float) -> None:
        """Count what was granted elsewhere; a window that starts with it ends in `resets_in` seconds."""
        if self.is_over(now):
            self._used, self._ends = 0, now + resets_in
        self._used += amount
