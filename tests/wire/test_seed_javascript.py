"""The JavaScript of the MaxiCore document runs in Node against a real gateway, its lines as they are.

Each script is the prelude (prelude.mjs), one or more of the document's blocks, and between them only waiting: until the
socket is open, until the test says so. Skipped where the document, Node or its `ws` package is missing; in CI all are
there.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ..support import Node, token
from . import examples
from .helpers import Stage, as_event, steps
from .javascript import Script, running
from .seed import block

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

PRELUDE = Path(__file__).with_name("prelude.mjs")
OPENED = "await opened(ws);"
TOLD = "await told();"
FOLLOW = "follow(ws);"

Run = Callable[..., contextlib.AbstractAsyncContextManager[Script]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run these pieces of JavaScript, behind the prelude, against a node."""

    @contextlib.asynccontextmanager
    async def run(node: Node, *pieces: str, workspace: str = "ws-456") -> AsyncIterator[Script]:
        text = "\n".join([f"import '{PRELUDE.as_uri()}';", *pieces])
        path = tmp_path / f"script-{len(list(tmp_path.iterdir()))}.mjs"
        async with running(text, path, NODE_UNDER_TEST=node.ws(""), TOKEN=token(workspace)) as script:
            yield script

    return run


CONNECT_WITH_QUERY = ("Connection", "javascript", 1)
CONNECT_WITH_MESSAGE = ("Connection", "javascript", 2)
SUBSCRIBE = ("Subscribe zu Events", "javascript")
UNSUBSCRIBE = ("Unsubscribe", "javascript")
HEARTBEAT = ("Heartbeat (Ping/Pong)", "javascript")
WATCHER = ("Beispiel: Task-Überwachung", "javascript")


async def test_the_task_watcher_prints_what_happens_to_its_task(run: Run, stage: Stage) -> None:
    story = [examples.TASK_STARTED, examples.TASK_PROGRESS, examples.TASK_COMPLETED, examples.TASK_FAILED]
    async with run(stage.node, block(*WATCHER), FOLLOW, workspace=stage.workspace) as script:
        await script.synchronise()
        for example in story:
            await stage.publish(as_event(example | {"task_id": "task-457"}, stage.workspace))
            await stage.publish(as_event(example, stage.workspace))
        await script.until("received", 1 + len(story))
        assert await script.finish() == [
            "Task gestartet: Process data file",
            "Progress: 3/10",
            "Aktion: Reading file: data.csv",
            "Task abgeschlossen!",
            "Ergebnis: {",
            "  success: true,",
            "  summary: 'Processed 1000 rows in 2.5 seconds',",
            "  output_files: [ 'result.json' ]",
            "}",
            "Credits verbraucht: 42",
            "Task fehlgeschlagen: File /data/input.csv not found",
            "WebSocket geschlossen",
        ]
    assert script.reports["sent"] == [examples.WATCH_TASK]


@pytest.mark.parametrize("connect", [CONNECT_WITH_QUERY, CONNECT_WITH_MESSAGE], ids=["query", "first message"])
async def test_it_connects_subscribes_and_receives(run: Run, shared_node: Node, ws_456: Stage, connect: Any) -> None:
    async with run(shared_node, block(*connect), OPENED, block(*SUBSCRIBE), FOLLOW) as script:
        assert await script.synchronise() == []
        await ws_456.publish(*(as_event(example, "ws-456") for example in examples.EVENTS.values()))
        await script.until("received", 4)
        assert [message["type"] for message in await script.synchronise()] == examples.SUBSCRIBE["filters"][
            "event_types"
        ]
        await script.finish()


async def test_it_unsubscribes(run: Run, shared_node: Node, ws_456: Stage) -> None:
    pieces = [block(*CONNECT_WITH_QUERY), OPENED, block(*SUBSCRIBE), FOLLOW, TOLD, block(*UNSUBSCRIBE)]
    event = as_event(examples.TASK_PROGRESS, "ws-456")
    async with run(shared_node, *pieces) as script:
        await script.synchronise()
        await ws_456.publish(event)
        await script.until("received", 2)
        await script.tell("continue")
        assert await script.until("sent", 2) == [examples.SUBSCRIBE, examples.UNSUBSCRIBE]
        await script.synchronise()
        await ws_456.publish(event)
        async with ws_456.client() as client:
            await ws_456.delivered(client)
        assert steps(await script.synchronise()) == [3]
        await script.finish()


async def test_answering_the_heartbeat_in_either_way_keeps_the_connection(
    run: Run, start_node: Callable[..., Node]
) -> None:
    with_frames, with_messages = block(*HEARTBEAT).split("// Oder")
    connect = block(*CONNECT_WITH_QUERY)
    node = start_node(heartbeat_seconds=1)
    async with (
        run(node, connect, with_frames, FOLLOW) as frames,
        run(node, connect, with_messages, FOLLOW) as messages,
        run(node, connect, block(*HEARTBEAT), FOLLOW) as both,
        run(node, connect, FOLLOW) as silent,
    ):
        assert await silent.until("closed") == [[1008, "PONG_TIMEOUT"]]
        assert len(silent.reports["pinged"]) >= 3
        for script in (frames, messages, both):
            await script.until("pinged", len(silent.reports["pinged"]) + 2)
            await script.synchronise()
            assert script.reports["closed"] == []
        assert frames.reports["sent"] == []
        assert messages.reports["sent"][:3] == [examples.PONG] * 3
        for script in (frames, messages, both):
            await script.finish()
