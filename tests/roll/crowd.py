"""Many clients in a process of their own, told what to do through a pipe; and the producer of what they watch."""

import asyncio
import multiprocessing
import multiprocessing.connection
from collections import Counter
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, NamedTuple, Self

import uvloop

from broker import Broker

from ..bench.machine import raise_open_files
from ..support import token, until
from .client import Client, Journal
from .words import FREEAGENTICS, MAXICORE, Tongue

# Events by workspace and kind.
Published = dict[tuple[str, str], int]

GATHER_SECONDS = 60.0
FREE_SHARE = 10  # every tenth client speaks FreeAgentics, every tenth event of a workspace is for those

Pipe = Any  # a multiprocessing Connection, whose type has no arguments at run time


class Audience(NamedTuple):
    """Clients with the numbers from `first` on, spread over the workspaces, who connect to `port`."""

    first: int
    number: int
    workspaces: tuple[str, ...]
    port: int


class Show(NamedTuple):
    """So many events a second, over all workspaces."""

    redis_url: str
    workspaces: tuple[str, ...]
    events_per_second: float


class _Process:
    """A process that does its work when its context is entered, and ends with it or with us."""

    def __init__(self, work: Callable[[Pipe, Any], Coroutine[Any, Any, None]], plan: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(work, theirs, plan), daemon=True)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join(10)

    def _ask(self, question: Any) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()


class Crowd(_Process):
    """An audience, and the journal that it keeps."""

    def __init__(self, audience: Audience) -> None:
        super().__init__(_attend, audience)

    def gather(self) -> None:
        """Wait until everybody is here. Raises `AssertionError` when they are not within `GATHER_SECONDS`."""
        missing = self._ask(None)
        assert not missing, f"{missing} clients do not come"

    def end(self, published: Published) -> Journal:
        """What they have seen, once they have all that was published, or do not get it."""
        journal: Journal = self._ask(published)
        return journal


class Producer(_Process):
    """A steady stream of events."""

    def __init__(self, show: Show) -> None:
        super().__init__(_perform, show)

    def end(self) -> Published:
        """What it has published."""
        published: Published = self._ask(None)
        return published


def _run(work: Callable[[Pipe, Any], Coroutine[Any, Any, None]], pipe: Pipe, plan: Any) -> None:
    raise_open_files()
    uvloop.run(work(pipe, plan))


# -- in the crowd's process


async def _attend(pipe: Pipe, audience: Audience) -> None:
    journal = Journal()
    clients = [_client(number, audience, journal) for number in range(audience.first, audience.first + audience.number)]
    lives = [asyncio.create_task(client.live()) for client in clients]
    while (published := await asyncio.to_thread(pipe.recv)) is None:
        await _wait_until(lambda: all(client.is_here for client in clients))
        pipe.send(sum(not client.is_here for client in clients))
    await _wait_until(lambda: all(client.tally.expected >= _total(client, published) for client in clients))
    for client in clients:
        tally = client.tally
        lost = tally.lost(_total(client, published))
        journal.wrong += Counter(lost=lost, doubled=tally.doubled, reordered=tally.reordered)
    pipe.send(journal)
    await asyncio.gather(*lives)  # they stay until the process is ended


def _client(number: int, audience: Audience, journal: Journal) -> Client:
    tongue = MAXICORE if number % FREE_SHARE else FREEAGENTICS
    workspace = audience.workspaces[number // FREE_SHARE % len(audience.workspaces)]
    credentials = token(workspace, sub=f"user-{number}")
    return Client(number, tongue, workspace, port=audience.port, token=credentials, journal=journal)


def _total(client: Client, published: Published) -> int:
    return published[client.workspace, client.tongue.kind]


async def _wait_until(condition: Callable[[], bool]) -> None:
    try:
        await until(condition, GATHER_SECONDS)
    except AssertionError:
        return  # whoever asked is told what is missing


# -- in the producer's


async def _perform(pipe: Pipe, show: Show) -> None:
    """At its pace whatever Redis does: what is late is published at once."""
    ending = asyncio.create_task(asyncio.to_thread(pipe.recv))
    steps = Counter[tuple[str, Tongue]]()
    async with Broker.connect(show.redis_url) as broker, asyncio.TaskGroup() as publishing:
        started, number = monotonic(), 0
        while not ending.done():
            workspace = show.workspaces[number % len(show.workspaces)]
            tongue = MAXICORE if number // len(show.workspaces) % FREE_SHARE else FREEAGENTICS
            event = tongue.event(workspace, steps[workspace, tongue], monotonic())
            publishing.create_task(broker.publish(event))
            steps[workspace, tongue] += 1
            number += 1
            await asyncio.sleep(max(0.0, started + number / show.events_per_second - monotonic()))
    pipe.send(
        {
            (workspace, tongue.kind): steps[workspace, tongue]
            for workspace in show.workspaces
            for tongue in (MAXICORE, FREEAGENTICS)
        }
    )
