"""The story of a run: one timeline of all that was done and of all that came of it."""

import time
from pathlib import Path

from .plan import Fault


class Story:
    """Lines in the order in which they happened, with the seconds since the beginning; kept in a file too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()
        self.lines: list[str] = []

    def begin(self) -> None:
        """Time is counted from here."""
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def say_fault(self, fault: Fault, whom: str) -> None:
        lasting = f", {fault.seconds:.2f} s" if fault.seconds else ""
        self.say("FAULT", f"{fault.kind}: {whom}{lasting}")

    def say(self, who: str, words: str) -> None:
        line = f"{self.seconds:7.3f}  {who:<14} {words}"
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(line + "\n")
