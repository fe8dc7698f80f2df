"""The timing wheel: one timer for all of a node's connections. Pure: time is an argument, in seconds."""

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

TICK_SECONDS = 0.1


class Timed(Protocol):
    """What can be put on the wheel: it keeps the tick of the one entry that counts."""

    wheel_tick: int


Item = TypeVar("Item", bound=Timed)


class Wheel(Generic[Item]):
    """Items by the tick at which their time comes. Putting one anew makes its older entry void; nothing is searched."""

    __slots__ = ("_at", "_ticks")

    def __init__(self, now: float) -> None:
        self._at = int(now / TICK_SECONDS)
        self._ticks: dict[int, list[Item]] = {}

    def put(self, item: Item, at: float) -> None:
        """Let `item` come up at `at`, or with the next tick if that is past."""
        tick = max(int(at / TICK_SECONDS) + 1, self._at + 1)
        if item.wheel_tick != tick:
            item.wheel_tick = tick
            self._ticks.setdefault(tick, []).append(item)

    def remove(self, item: Item) -> None:
        item.wheel_tick = -1

    def advance(self, now: float) -> Iterable[Item]:
        """The items whose time has come, each once; they are off the wheel then."""
        end = int(now / TICK_SECONDS)
        due: list[Item] = []
        ticks: Iterable[int] = range(self._at + 1, end + 1)
        if end - self._at > len(self._ticks):  # a long sleep, as of a suspended machine
            ticks = sorted(tick for tick in self._ticks if tick <= end)
        for tick in ticks:
            for item in self._ticks.pop(tick, ()):
                if item.wheel_tick == tick:
                    item.wheel_tick = -1
                    due.append(item)
        self._at = max(self._at, end)
        return due
