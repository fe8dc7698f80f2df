"""JavaScript: a script that tells a test what happens to it, and does what the test says; here in Node.

A script is a prelude and, behind it, pieces of a document. The prelude prints a line `@{"what": value}` for what the
test follows, between the console's own lines, and reads lines that the test tells it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

from .seed import missing

FOLDER = Path(__file__).parent


@cache
def package_folders() -> str | None:
    """NODE_PATH with which Node finds `ws`; None when there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        return None
    folders = [os.environ.get("NODE_PATH", ""), "/usr/share/nodejs"]
    if npm is not None:
        for scope in ((), ("--global",)):
            answer = subprocess.run([npm, "root", *scope], cwd=FOLDER, capture_output=True, text=True, check=False)
            folders.append(answer.stdout.strip())
    path = os.pathsep.join(folder for folder in folders if folder)
    found = subprocess.run([node, "-e", "require('ws')"], env={"NODE_PATH": path}, capture_output=True, check=False)
    return path if found.returncode == 0 else None


class Script(ABC):
    """A script somewhere: what it printed and reported so far."""

    def __init__(self) -> None:
        self.console: list[str] = []
        self.reports: defaultdict[str, list[Any]] = defaultdict(list)

    @abstractmethod
    async def tell(self, line: str) -> None:
        """Have it do what the prelude says of such a line."""

    @abstractmethod
    async def read(self) -> str:
        """The next line that it writes; empty when it has ended."""

    async def until(self, what: str, count: int = 1, seconds: float = 15.0) -> list[Any]:
        """All of `what`, once there are `count`."""
        await self.until_true(lambda: len(self.reports[what]) >= count, seconds)
        return self.reports[what]

    async def until_true(self, condition: Callable[[], Any], seconds: float = 15.0) -> None:
        """Read on until what was reported and printed makes `condition` true."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._read_line()

    async def synchronise(self) -> list[dict[str, Any]]:
        """What the script was sent up to now but heartbeats: the answer to a ping of ours has come."""
        await self.until("opened")
        received = self.reports["received"]
        pongs = self._pongs()
        await self.tell('{"type":"ping"}')
        await self.until_true(lambda: self._pongs() > pongs)
        return [message for message in received if message["type"] not in ("ping", "pong")]

    async def finish(self) -> list[str]:
        """Close the socket, let the script end by itself; all that it printed on its console."""
        await self.tell("close")
        async with asyncio.timeout(10):
            with contextlib.suppress(EOFError):
                while True:
                    await self._read_line()
        return self.console

    def _pongs(self) -> int:
        return sum(message["type"] == "pong" for message in self.reports["received"])

    async def _read_line(self) -> None:
        line = await self.read()
        if not line:
            raise EOFError(f"the script ended:\n{chr(10).join(self.console)}")
        if line.startswith("@"):
            [(what, value)] = json.loads(line[1:]).items()
            self.reports[what].append(value)
        else:
            self.console.append(line.rstrip("\n"))


class _Program(Script):
    """A script that is a process of Node."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__()
        self.process = process

    async def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def read(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode()

    async def finish(self) -> list[str]:
        await super().finish()
        async with asyncio.timeout(10):
            assert await self.process.wait() == 0, self.console
        return self.console


@contextlib.asynccontextmanager
async def running(text: str, path: Path, **environment: str) -> AsyncIterator[Script]:
    """Run `text`, written to `path`; it is killed if it has not ended by itself. Skips the test without Node."""
    folders = package_folders()
    if folders is None:
        missing("Node with its `ws` package is not installed (NODE_PATH may say where `ws` is)")
    path.write_text(text, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        shutil.which("node") or "node",
        str(path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"NODE_PATH": str(folders)} | environment,
    )
    try:
        yield _Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
