"""What breaks while runs are under way, and what must be true of them afterwards."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from redis.asyncio import Redis

from broker import Event
from broker.positions import order

from .agnt5 import ENDS
from .agnt5_chaos_client import ChaosClient, Story
from .agnt5_chaos_worker import Line, read
from .support import Node

OUR_CONNECTIONS = "tests"
ALIVE = float("inf")


class Crew:
    """Workers as processes, `size` of them. `deaths` says when each that was killed was surely dead."""

    def __init__(self, size: int, redis_url: str, prefix: str, directory: Path) -> None:
        self.journal, self.log = directory / "journal", directory / "workers.log"
        self.deaths: dict[int, float] = {}
        self.ended: list[int] = []  # who did though nobody killed it
        self._size, self._processes = size, list[subprocess.Popen[bytes]]()
        self._words = {"REDIS_URL": redis_url, "PREFIX": prefix, "JOURNAL": str(self.journal)}

    def complete(self) -> None:
        """Replace who is gone, as a supervisor does: also who could not begin, since Redis was cut just then."""
        self.ended += [process.pid for process in self._processes if process.poll() is not None]
        self._processes = [process for process in self._processes if process.returncode is None]
        while len(self._processes) < self._size:
            self._hire()

    def kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.kill()
        process.wait(10)
        self.deaths[process.pid] = time.monotonic()

    def dismiss(self) -> None:
        while self._processes:
            self.kill(0)

    def _hire(self) -> None:
        command = [sys.executable, "-m", "tests.agnt5_chaos_worker"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=os.environ | self._words, stdout=log, stderr=log)
        self._processes.append(process)


class Havoc:
    """Kills workers, restarts nodes and cuts Redis, each in a rhythm of its own, until it is `over`."""

    def __init__(self, crew: Crew, nodes: Sequence[Node], redis: Redis, chance: random.Random) -> None:
        self._crew, self._nodes, self._redis, self._chance = crew, nodes, redis, chance
        self.over = asyncio.Event()
        self.done = Counter[str]()

    async def wreak(self) -> None:
        """All nodes and workers are there again when this returns."""
        await asyncio.gather(
            self._every(1.5, 3.5, self._kill_worker),
            self._every(0.3, 0.3, self._replace_workers),
            self._every(3.0, 6.0, self._restart_node),
            self._every(0.7, 2.5, self._cut_redis),
        )

    async def _every(self, least: float, most: float, deed: Callable[[], Awaitable[None]]) -> None:
        while not self.over.is_set():
            await deed()
            self.done[deed.__name__.strip("_")] += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), self._chance.uniform(least, most))

    async def _kill_worker(self) -> None:
        self._crew.complete()
        self._crew.kill(self._chance.randrange(4))

    async def _replace_workers(self) -> None:
        self._crew.complete()

    async def _restart_node(self) -> None:
        """The one that has most clients; one at a time, so that there is always another."""
        counts = [await asyncio.to_thread(node.metric, "trunkline_connections") for node in self._nodes]
        node = self._nodes[counts.index(max(counts))]
        way = signal.SIGKILL if self.done["restart_node"] % 2 else signal.SIGTERM
        node.signal(way)
        await asyncio.to_thread(node.wait)
        await asyncio.to_thread(node.start)
        self.done[way.name] += 1

    async def _cut_redis(self) -> None:
        """All connections but our own."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in await self._redis.client_list():
                if not one["name"].startswith(OUR_CONNECTIONS):
                    pipe.client_kill_filter(_id=one["id"])
            self.done["cut"] += sum(await pipe.execute())


# -- what must be true: each yields what is not


def faults_of_log(said: dict[str, list[Event]], wanted: set[str]) -> Iterator[str]:
    """Every run that was wanted, and no other, begins and ends once, and nothing is said after its end."""
    if lost := wanted - said.keys():
        yield f"{len(lost)} runs lost: {sorted(lost)[:5]}"
    if others := said.keys() - wanted:
        yield f"{len(others)} runs that nobody started: {sorted(others)[:5]}"
    for execution, events in said.items():
        kinds = [event.type for event in events]
        if sum(kind in ENDS for kind in kinds) != 1 or kinds[-1] not in ENDS:
            yield f"{execution} does not end once: {kinds}"
        if kinds[0] != "execution_started":
            yield f"{execution} does not begin: {kinds}"


def faults_of_story(story: Story, said: list[Event]) -> Iterator[str]:
    """A client was told all that was said, each event once, in its order; and it came out as it had to."""
    told, log = list(story.events), [str(event.id) for event in said]
    if told != log:
        missing, more = set(log) - set(told), set(told) - set(log)
        what = f"missing {sorted(missing)}, more {sorted(more)}" if missing or more else "out of order"
        yield f"{story.execution} ({story.wish}): its client was told otherwise, {what}: {_shape(said)}"
    if not told:
        return
    end = story.events[told[-1]]
    kind, details = end["type"], end["data"]["details"]
    match story.wish.mood:
        case _ if story.wish.is_cancelled and kind == "execution_cancelled":
            return
        case "fails":
            is_right = kind == "execution_failed" and details["error"]["code"] == "VALUE_ERROR"
        case mood:
            output = details.get("output", {})
            is_right = kind == "execution_completed" and output.get("number") == story.wish.number
            is_right &= mood != "retries" or output.get("attempt", 0) > 1
    if not is_right:
        yield f"{story.execution} ({story.wish}) ended otherwise: {end}"


def faults_of_work(crew: Crew, said: dict[str, list[Event]]) -> Iterator[str]:
    """No two live workers were at one run at once, no attempt was made twice, and none began after the run's end."""
    lines_of, deaths = _by_execution(read(crew.journal)), crew.deaths
    if fallen := {line.pid for lines in lines_of.values() for line in lines} & {*crew.ended}:
        yield f"workers have ended in the midst of it: {fallen}"
    for execution, lines in lines_of.items():
        enters = [line for line in lines if line.word == "enter"]
        leaves = {(line.attempt, line.pid): line.at for line in lines if line.word == "leave"}
        stays = [(line.at, leaves.get((line.attempt, line.pid), deaths.get(line.pid, ALIVE))) for line in enters]
        if any(end > begin for (_, end), (begin, _) in pairwise(sorted(stays))):
            yield f"{execution} was run by two at once: {lines}"
        if any(end == ALIVE for _, end in stays):
            yield f"{execution} is still being run: {lines}"
        if len({line.attempt for line in enters}) < len(enters):
            yield f"{execution} has made an attempt twice: {lines}"
        events = said.get(execution)
        if events and (late := [line for line in enters if line.told_ms > order(str(events[-1].id))[0]]):
            yield f"{execution} began again after its end: {late}"


def takeovers(crew: Crew) -> list[float]:
    """How long each run whose worker was killed waited until another began it."""
    waits = []
    for lines in _by_execution(read(crew.journal)).values():
        for line, following in pairwise(lines):
            if line.word == following.word == "enter" and line.pid in crew.deaths:
                waits.append(following.at - crew.deaths[line.pid])
    return waits


async def faults_of_memory(client: ChaosClient, said: dict[str, list[Event]]) -> list[str]:
    """Who asks for the connection from its beginning is told all of it, once and in order."""
    told = await client.recall()
    log = sorted((str(event.id) for execution in client.stories for event in said[execution]), key=order)
    return [] if told == log else [f"{client.name} recalls {len(told)} events, {len(set(told))} of {len(log)} once"]


def faults_of_nodes(nodes: Iterable[Node]) -> Iterator[str]:
    """No node has ended but by our hand, and none has met a bug."""
    for node in nodes:
        if node.process is None or node.process.poll() is not None:
            yield f"a node has ended by itself: {node.output()[-2000:]}"
        yield from (line for line in node.output().splitlines() if "Traceback" in line)


def faults_of_clients(clients: Iterable[ChaosClient]) -> Iterator[str]:
    for client in clients:
        yield from client.surprises
        yield from (f"{client.name} was told twice without asking: {event}" for event in client.doubled)


def _by_execution(lines: Iterable[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: line.at):
        found[line.execution].append(line)
    return found


def _shape(events: list[Event]) -> list[str]:
    return [f"{event.id} {event.type}" for event in events]
