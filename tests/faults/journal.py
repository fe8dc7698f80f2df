"""What producers write down, so that it outlives them: what they tried, and what they were told. A line is one write.

try <key>                 about to be published; unless a `told` follows its fate is in doubt
told <key> <position>     acknowledged; without a position where the way of publishing tells none
"""

import os
from collections.abc import Iterable
from pathlib import Path

from .model import Receipt
from .words import Key


class Journal:
    """The writer's end. Lines of several processes in one file do not mix."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def try_(self, keys: Iterable[Key | str]) -> None:
        self._write([f"try {key}" for key in keys])

    def told(self, receipts: Iterable[tuple[Key, str | None]]) -> None:
        self._write([f"told {key} {position or ''}".strip() for key, position in receipts])

    def close(self) -> None:
        os.close(self._file)

    def _write(self, lines: list[str]) -> None:
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


def read(path: Path) -> tuple[frozenset[str], list[Receipt]]:
    """What was attempted, and what was told."""
    attempted: set[str] = set()
    receipts: list[Receipt] = []
    for line in path.read_text().splitlines():
        word, key, *position = line.split()
        if word == "try":
            attempted.add(key)
        else:
            receipts.append(Receipt(key, position[0] if position else None))
    return frozenset(attempted), receipts
