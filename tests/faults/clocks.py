"""The wall clock, and others that jump, one for each process that is started with its `environment`.

It takes a C compiler, which CI has; where there is none no clock jumps, and the story says so.
"""

import shutil
import struct
import subprocess
import time
from pathlib import Path

from ..support import IN_CI

_SOURCE = Path(__file__).with_name("clock.c")


def now() -> str:
    """The greatest position that an event can have that is published now.

    Redis' clock is this one too, unless it jumps, which it does where nothing can be lost.
    """
    return f"{time.time_ns() // 1_000_000}-{2**64 - 1}"


class Clock:
    """One process' clock; `library` None: it cannot jump."""

    def __init__(self, library: Path | None, path: Path) -> None:
        self._library, self._path = library, path
        self._set(0)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._path)} if self._library else {}

    def jump(self, seconds: float) -> None:
        """From now on it is ahead by `seconds`, whole ones. Raises `OSError` where it cannot jump."""
        if self._library is None:
            raise OSError("there is no clock that jumps")
        self._set(seconds)

    def _set(self, seconds: float) -> None:
        if not self._path.exists():
            self._path.write_bytes(struct.pack("d", 0))
        with self._path.open("r+b") as file:
            file.write(struct.pack("d", seconds))


def build(directory: Path) -> Path | None:
    """The library to preload; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        assert not IN_CI, "no C compiler found"
        return None
    library = directory / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    return library
