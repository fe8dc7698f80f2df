"""`trunkline publish`: one event, or a line of JSON per event from standard input."""

import argparse
import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import msgspec

from broker import Broker, Event, Invalid, Position
from broker.errors import TrunklineError, Unreplicated
from broker.events import pack

from ..settings import Settings
from .parsing import REDIS, Commands
from .printing import read_object
from .running import connect, run

READ_BYTES = 256 * 1024
MAX_CALLS = 64


def add(commands: Commands) -> None:
    publish = commands.add(
        "publish", _publish, "publish one event, or a line of JSON per event from standard input", REDIS
    )
    publish.add_argument("--workspace", required=True)
    publish.add_argument("--agent", help="agent of the event, or of lines that name none")
    publish.add_argument("--ephemeral", action="store_true", help="live only: no position, not in the log")
    publish.add_argument(
        "--min-replicas",
        type=int,
        default=0,
        metavar="N",
        help="fail unless so many replicas of Redis have what was published; positions come all the same [0]",
    )
    publish.add_argument("type", help="type of the event, or - for lines from standard input")
    publish.add_argument("data", nargs="?", help="the event's data, a JSON object [{}]")


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of `publish -`."""

    type: str
    data: dict[str, Any] = {}
    agent_id: str | None = None
    timestamp: str | None = None
    ephemeral: bool = False


_line = msgspec.json.Decoder(_Line)


def _publish(settings: Settings, options: argparse.Namespace) -> int:
    if options.min_replicas < 0:
        raise Invalid("--min-replicas", "expected 0 or more")
    if options.type == "-":
        if options.data is not None:
            raise Invalid("data", "events come from standard input")
        return run(_publish_lines(settings, options))

    async def work() -> int:
        data = read_object(options.data or "{}", "$.data")
        event = Event(
            type=options.type,
            workspace_id=options.workspace,
            agent_id=options.agent,
            data=data,
            ephemeral=options.ephemeral,
        )
        async with connect(settings) as broker:
            await _print_positions(broker.producer.publish([pack(event)], options.min_replicas))
        return 0

    return run(work())


async def _print_positions(publishing: Awaitable[list[Position | None]]) -> None:
    """A line each, also of what is published and not at as many replicas as it should be."""
    try:
        positions = await publishing
    except Unreplicated as error:
        _write_positions(error.positions)
        raise
    _write_positions(positions)


def _write_positions(positions: list[Position | None]) -> None:
    sys.stdout.write("".join(f"{position or ''}\n" for position in positions))
    sys.stdout.flush()


def _event(line: bytes, options: argparse.Namespace) -> Event:
    """The event that a line of JSON says. Raises `Invalid`."""
    try:
        said = _line.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        text, _, path = str(error).partition(" - at ")
        raise Invalid(path.strip("`") or "$", text[:1].lower() + text[1:].replace("`", "")) from None
    return Event(
        type=said.type,
        workspace_id=options.workspace,
        agent_id=said.agent_id or options.agent if "agent_id" not in said.data else said.agent_id,
        data=said.data,
        timestamp=said.timestamp,
        ephemeral=said.ephemeral or options.ephemeral,
    )


async def _publish_lines(settings: Settings, options: argparse.Namespace) -> int:
    """Publish lines as they come; print their positions in the same order.

    What has been read is published together, and reading goes on meanwhile. At the first line that is no event, or the
    first failure, reading ends; of what came before it the positions are printed as far as it is published.
    """
    calls: asyncio.Queue[asyncio.Task[list[Position | None]] | None] = asyncio.Queue()
    room, has_failed = asyncio.Semaphore(MAX_CALLS), asyncio.Event()

    async def print_positions() -> None:
        problem: TrunklineError | None = None
        while (call := await calls.get()) is not None:
            try:
                await _print_positions(call)
            except TrunklineError as error:
                problem = problem or error
                has_failed.set()
            room.release()
        if problem is not None:
            raise problem

    async def read_lines(broker: Broker) -> Invalid | None:
        number = 0
        async for lines in _lines_of_stdin():
            packed, invalid = [], None
            for line in lines:
                number += 1
                try:
                    if line.strip():
                        packed.append(pack(_event(line, options)))
                except Invalid as error:
                    invalid = Invalid(f"line {number}: {error.path}", error.reason)
                    break
            await room.acquire()
            calls.put_nowait(asyncio.create_task(broker.producer.publish(packed, options.min_replicas)))
            if invalid is not None:
                return invalid
        return None

    async with connect(settings) as broker:
        printing, reading = asyncio.create_task(print_positions()), asyncio.create_task(read_lines(broker))
        failing = asyncio.create_task(has_failed.wait())
        await asyncio.wait((printing, reading, failing), return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        reading.cancel()  # there is no use in reading on
        calls.put_nowait(None)
        await printing
        invalid = await reading
    if invalid is not None:
        raise invalid
    return 0


async def _lines_of_stdin() -> AsyncIterator[list[bytes]]:
    """Standard input, whatever it is (pipe, file, terminal): the lines that one read completes, together."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(MAX_CALLS)

    def read() -> None:
        chunk = b"-"
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while chunk and room.acquire():
                chunk = os.read(0, READ_BYTES)
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    # A thread that waits for input nobody sends must not keep the process: hence a daemon of our own, no executor.
    threading.Thread(target=read, daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        room.release()
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]
