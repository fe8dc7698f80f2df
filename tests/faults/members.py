"""The nodes of a fault run: each is started anew whenever it has ended, and has to answer for all its lives."""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..support import Node, http
from .clocks import Clock
from .producer import LOG_EVENTS
from .story import Story

PREFIX = "faults"

# Limits that leases are held under, but that nobody meets who comes back as often as here.
SETTINGS: dict[str, Any] = {
    "log_events": LOG_EVENTS,
    "max_connections_per_user": 1000,
    "max_connections_per_address": 1000,
    "max_connections_per_endpoint": 1000,
    "max_connects_per_minute": -1,
    "max_messages_per_minute": -1,
    "max_user_messages_per_minute": -1,
    "max_backlog_bytes": 64 * 1024,
    "slow_close_seconds": 2,
    "run_attempts": 10,
    "trusted_proxies": "127.0.0.1",
    "alert_cpu_percent": 0,
    "alert_memory_percent": 0,
    "drain_wait_seconds": 0.5,
    "drain_seconds": 1,
    "fast": 1,
}
# What the last sample of a node's memory may have beside its first. That is for what grows at once, as what waits for
# somebody; a little for each connection shows in a long run (tests/soak).
MORE_BYTES = 16 * 1024 * 1024
WARM_SECONDS = 5.0
LEAVE_SECONDS = 30.0


class Member:
    """A node that is started anew whenever it has ended, with what is known of all its lives."""

    def __init__(self, number: int, redis_url: str, directory: Path, clock: Clock, story: Story) -> None:
        self.name, self.clock, self._story = f"node-{number}", clock, story
        self.node = Node(redis_url, PREFIX, **SETTINGS)
        self.node.log = directory / f"{self.name}.log"
        self.node.environment = clock.environment
        self.lock = asyncio.Lock()
        self.counted = Counter[str]()  # of lives that have ended
        self._counts = Counter[str]()  # of the present one
        self.memory: list[int] = []  # bytes, of the present life
        self.faults: list[str] = []
        self.lives = self.weighed = 0  # all; those that lasted for their memory to be judged
        self.is_meant_to_run = True
        self._was_ready = False  # in the present life
        self._warm_at = 0.0

    async def start(self) -> None:
        """A new life. It may be short: a node that finds no Redis ends."""
        self.counted += self._counts
        self._counts.clear()
        self._judge_memory()
        self.memory.clear()
        self.is_meant_to_run, self._was_ready = True, False
        self.lives += 1
        await asyncio.to_thread(self.node.launch)

    async def end(self, number: int) -> None:
        """Send it this signal, and wait for its end."""
        process = self.node.process
        self.is_meant_to_run = False
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        try:
            status = await asyncio.to_thread(process.wait, LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.faults.append(f"exit: {self.name} was told to end, and had not {LEAVE_SECONDS:g} s later")
            process.kill()
            status = await asyncio.to_thread(process.wait, 10)
        self._story.say(self.name, f"has ended with {status}")
        # Before it is ready nobody waits for it to leave in peace.
        if number == signal.SIGTERM and status != 0 and self._was_ready:
            self.faults.append(f"exit: {self.name} was told to end, and ended with {status}")

    async def halt(self, seconds: float) -> None:
        process = self.node.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.send_signal(signal.SIGCONT)

    async def is_ready(self) -> bool:
        return (await asyncio.to_thread(http, self.node.http("/ready"), None, 2.0))[0] == 200

    async def keep(self) -> None:
        """Start it whenever it has ended though it should run, as a supervisor does; take its figures."""
        while True:
            process = self.node.process
            if self.is_meant_to_run and not self.lock.locked() and process is not None and process.poll() is not None:
                self._story.say(self.name, f"has ended by itself with {process.returncode}: started again")
                await self.start()
            await self._measure()
            await asyncio.sleep(0.5)

    async def _measure(self) -> None:
        process = self.node.process
        if process is None or process.poll() is not None or self.lock.locked():
            return
        is_ready = await self.is_ready()
        body = (await asyncio.to_thread(http, self.node.http("/metrics"), None, 1.0))[2].decode()
        if process is not self.node.process:
            return  # another life has begun meanwhile
        if is_ready and not self._was_ready:
            self._was_ready, self._warm_at = True, time.monotonic() + WARM_SECONDS
        if self._was_ready and time.monotonic() > self._warm_at:
            with suppress(psutil.Error):
                self.memory.append(psutil.Process(process.pid).memory_info().rss)
        for line in body.splitlines():
            for name, start in _FIGURES.items():
                if line.startswith(start):
                    self._counts[name] = int(float(line.rpartition(" ")[2]))

    @property
    def figures(self) -> Counter[str]:
        """What it counted, over all lives as far as it was asked."""
        return self.counted + self._counts

    def kill(self) -> None:
        """End it, whatever state it is in."""
        process = self.node.process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(10)

    def judge(self) -> Iterator[str]:
        """What must not be, in all its lives; to be asked once."""
        self._judge_memory()
        yield from self.faults
        for line in self.node.output().splitlines():
            if "Traceback" in line or "bug" in line:
                yield f"bug: {self.name} says {line[:300]}"

    def _judge_memory(self) -> None:
        """Of the present life."""
        if len(self.memory) <= 2:
            return
        self.weighed += 1
        if self.memory[-1] > self.memory[0] + MORE_BYTES:
            self.faults.append(f"memory: {self.name} grew from {self.memory[0]} to {self.memory[-1]} bytes")


_FIGURES = {
    "healed": 'trunkline_gaps_total{outcome="healed"}',
    "said": 'trunkline_gaps_total{outcome="said"}',
    "reconnects": "trunkline_feed_reconnects_total ",
}
