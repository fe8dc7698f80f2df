"""The story of a run: one timeline of all that was done and of all that came of it."""

import time
from pathlib import Path

from .clocks import now
from .plan import Fault


class Story:
    """Lines in the order in which they happened, with the seconds since the beginning; kept in a file too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()
        self.lines: list[str] = []
        self.struck: dict[Fault, str] = {}  # when it did, as a position

    def begin(self) -> None:
        """Time is counted from here; positions, of which violations speak, are milliseconds of the wall clock."""
        self.began = time.monotonic()
        self.say("run", f"everybody has come: faults begin, at {now().partition('-')[0]}")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def say_fault(self, fault: Fault, whom: str) -> None:
        self.struck.setdefault(fault, now())
        lasting = f", {fault.seconds:.2f} s" if fault.seconds else ""
        self.say("FAULT", f"{fault.kind}: {whom}{lasting}")

    def say(self, who: str, words: str) -> None:
        line = f"{self.seconds:7.3f}  {who:<14} {words}"
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(line + "\n")
