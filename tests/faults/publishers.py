"""Who publishes in a fault run: producers by the SDK and by the command line, each in a process of its own."""

import asyncio
import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .journal import Journal
from .members import PREFIX
from .producer import LOG_EVENTS
from .words import SURE, Key, event


class Where(NamedTuple):
    """What all of them share."""

    redis_url: str
    journal: Path
    log: Path
    seed: int


class Publisher:
    """A producer's SDK in a process of its own, started anew under another name when it was killed.

    Its name says whether it waits for replicas (`SURE`).
    """

    def __init__(self, number: int, where: Where, *, insists: bool, min_replicas: int = 0) -> None:
        self._number, self._where, self._insists, self._min_replicas = number, where, insists, min_replicas
        self._life = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.faults: list[str] = []

    def start(self) -> None:
        name = f"{SURE if self._min_replicas else 'sdk'}-{self._number}-{self._life}"
        self._life += 1
        words = {"REDIS_URL": self._where.redis_url, "PREFIX": PREFIX, "NAME": name}
        words |= {"JOURNAL": str(self._where.journal), "SEED": str(self._where.seed)}
        words |= {"INSISTS": "yes" if self._insists else "no", "MIN_REPLICAS": str(self._min_replicas)}
        command = [sys.executable, "-m", "tests.faults.producer"]
        with self._where.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=os.environ | words, stdout=log, stderr=log)

    async def kill(self) -> None:
        process = self._present()
        process.kill()
        await asyncio.to_thread(process.wait, 10)
        self.start()

    async def stop(self) -> None:
        process = self._present()
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            self.faults.append(f"exit: producer {self._number} was told to end, and had not 10 s later")
            process.kill()
            process.wait()

    def _present(self) -> "subprocess.Popen[bytes]":
        """The process, which nothing but we may have ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            self.faults.append(f"exit: producer {self._number} has ended by itself with {self._process.returncode}")
        return self._process

    def abandon(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class CommandLine:
    """`trunkline publish --workspace … -`: a line in, a position out; begun again when it has failed."""

    def __init__(self, workspace: str, where: Where, chance: random.Random) -> None:
        self._workspace, self._where, self._chance = workspace, where, chance
        self._journal = Journal(where.journal)
        self._is_over = asyncio.Event()
        self._has_finished = asyncio.Event()
        self._life = 0

    async def run(self) -> None:
        while not self._is_over.is_set():
            await self._live()
        self._has_finished.set()

    async def finish(self) -> None:
        """When this returns all that was said has been answered, or will not be."""
        self._is_over.set()
        await self._has_finished.wait()

    async def _live(self) -> None:
        name = f"cli-{self._life}"
        self._life += 1
        command = [sys.executable, "-m", "gateway", "publish", "--workspace", self._workspace, "-"]
        words = {"TRUNKLINE_REDIS_URL": self._where.redis_url, "TRUNKLINE_PREFIX": PREFIX}
        words["TRUNKLINE_LOG_EVENTS"] = str(LOG_EVENTS)
        with self._where.log.open("ab") as log:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=log, env=os.environ | words
            )
        said: list[Key] = []
        hearing = asyncio.create_task(self._hear(process, said))
        try:
            await self._say(process, name, said, hearing)
            await asyncio.wait_for(hearing, 15)
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            pass
        finally:
            hearing.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _say(
        self, process: asyncio.subprocess.Process, name: str, said: list[Key], hearing: "asyncio.Task[None]"
    ) -> None:
        assert process.stdin is not None
        with suppress(OSError):
            while not (self._is_over.is_set() or hearing.done()):
                key = Key(self._workspace, name, len(said))
                one = event(key)
                self._journal.try_([key])
                said.append(key)
                line = {"type": one.type, "agent_id": one.agent_id, "data": one.data}
                process.stdin.write(json.dumps(line).encode() + b"\n")
                await process.stdin.drain()
                await asyncio.sleep(self._chance.uniform(0, 0.3))
            process.stdin.close()

    async def _hear(self, process: asyncio.subprocess.Process, said: list[Key]) -> None:
        assert process.stdout is not None
        number = 0
        while line := await process.stdout.readline():
            self._journal.told([(said[number], line.decode().strip())])
            number += 1
