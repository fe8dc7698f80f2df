"""Cuts: whatever byte a connection ends behind, a watch brings every event once and in order."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Iterable

import pytest

from broker import Event
from broker.client import course, watch

from .support import Node, token
from .wire.helpers import Stage, progress

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]


@contextlib.asynccontextmanager
async def cutting(node: Node, bounds: Iterable[tuple[int | None, int | None]]) -> AsyncIterator[str]:
    """A proxy before a node; each connection is cut behind so many bytes up and down. None: never."""
    pending, is_abort = iter(bounds), itertools.cycle((True, False))
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bound: int | None) -> None:
        while bound is None or bound > 0:
            data = await reader.read(65_536 if bound is None else bound)
            if not data:
                return
            writer.write(data)
            await writer.drain()
            bound = bound - len(data) if bound is not None else None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = next(pending, (None, None))
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", node.port)
        pumps = [asyncio.create_task(pump(reader, up_writer, up)), asyncio.create_task(pump(up_reader, writer, down))]
        tasks.update(pumps)
        try:
            with contextlib.suppress(OSError):
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            tasks.difference_update(pumps)
            # A reset for the one, an end for the other: what had been sent arrives before an end, and not always else.
            up_writer.transport.abort()
            if next(is_abort):
                writer.transport.abort()
            else:
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2/ws"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


LAST = -1


async def take(url: str, workspaces: list[str]) -> dict[str, list[str | None]]:
    """What a watch brings of each workspace, from the beginning up to the step `LAST`."""
    brought: dict[str, list[str | None]] = {workspace: [] for workspace in workspaces}
    missing = set(workspaces)
    since = dict.fromkeys(workspaces, "0-0")
    async with (
        asyncio.timeout(60),
        contextlib.aclosing(watch(url, token=token(*workspaces), since=since)) as items,
    ):
        async for item in items:
            assert isinstance(item, Event), item
            brought[item.workspace_id].append(item.id)
            if item.data["step"] == LAST:
                missing.remove(item.workspace_id)
            if not missing:
                return brought
    raise AssertionError(f"no end of {missing}")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "FIRST_PAUSE_SECONDS", 0.0)


async def test_a_cut_behind_every_byte_of_what_a_gateway_says_loses_doubles_and_swaps_nothing(stage: Stage) -> None:
    """The handshake and an event: each next connection lives a byte longer."""
    positions = await stage.publish(*(progress(stage.workspace, step) for step in (*range(190), LAST)))
    bounds = [(None, down) for down in range(1, 561)]
    async with cutting(stage.node, bounds) as url:
        brought = await take(url, [stage.workspace])
    assert brought[stage.workspace] == positions


@pytest.mark.parametrize("seed", range(4))
async def test_cuts_anywhere_while_events_flow_lose_double_and_swap_nothing(stage: Stage, seed: int) -> None:
    chance = random.Random(seed)
    workspaces = stage.workspaces if seed % 2 else [stage.workspace]
    bounds = [
        (chance.choice((None, None, chance.randrange(600))), chance.choice((None, chance.randrange(4_000))))
        for _ in range(60)
    ]
    published: dict[str, list[str]] = {workspace: [] for workspace in workspaces}

    async def publish() -> None:
        for step in range(120):
            workspace = chance.choice(workspaces)
            published[workspace] += await stage.publish(progress(workspace, step))
            if chance.random() < 0.1:
                await stage.settle()
        for workspace in workspaces:
            published[workspace] += await stage.publish(progress(workspace, LAST))

    async with cutting(stage.node, bounds) as url:
        brought, _ = await asyncio.gather(take(url, workspaces), publish())
    assert brought == published, f"seed {seed}"
