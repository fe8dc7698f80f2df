"""Wall clocks that jump, one for each process that is started with its `environment`.

It takes a C compiler; where there is none no clock jumps, and the story says so.
"""

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """One process' clock; `library` None: it cannot jump."""

    def __init__(self, library: Path | None, path: Path) -> None:
        self._library, self._path = library, path
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._path)} if self._library else {}

    @property
    def can_jump(self) -> bool:
        return self._library is not None

    def set(self, seconds: float) -> None:
        """From now on it is ahead by `seconds`, whole ones."""
        if not self._path.exists():
            self._path.write_bytes(struct.pack("d", 0))
        with self._path.open("r+b") as file:
            file.write(struct.pack("d", seconds))


def build(directory: Path) -> Path | None:
    """The library to preload; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    return library
