"""The JavaScript of the MaxiCore document runs in Node against a real gateway, its lines as they are.

Each script is the prelude (prelude.mjs), one or more of the document's blocks, and between them only waiting: until the
socket is open, until the test says so. Skipped where the document, Node or its `ws` package is missing; in CI all are
there.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ..support import Node, token
from . import examples
from .helpers import Stage, as_event, steps
from .seed import block, missing

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

PRELUDE = Path(__file__).with_name("prelude.mjs")
OPENED = "await opened(ws);"
TOLD = "await told();"
FOLLOW = "follow(ws);"


@cache
def package_folders() -> str | None:
    """NODE_PATH with which Node finds `ws`; None when there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        return None
    folders = [os.environ.get("NODE_PATH", ""), "/usr/share/nodejs"]
    if npm is not None:
        for scope in ((), ("--global",)):
            answer = subprocess.run(
                [npm, "root", *scope], cwd=PRELUDE.parent, capture_output=True, text=True, check=False
            )
            folders.append(answer.stdout.strip())
    path = os.pathsep.join(folder for folder in folders if folder)
    found = subprocess.run([node, "-e", "require('ws')"], env={"NODE_PATH": path}, capture_output=True, check=False)
    return path if found.returncode == 0 else None


class Script:
    """A script in Node: what it printed, sent and was sent so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.console: list[str] = []
        self.reports: dict[str, list[Any]] = {"opened": [], "sent": [], "received": [], "pinged": [], "closed": []}

    async def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def until(self, what: str, count: int = 1, seconds: float = 15.0) -> list[Any]:
        """All of `what`, once there are `count`."""
        async with asyncio.timeout(seconds):
            while len(self.reports[what]) < count:
                await self._read_line()
        return self.reports[what]

    async def synchronise(self) -> list[dict[str, Any]]:
        """What the script was sent up to now but heartbeats: the answer to a ping of ours has come."""
        await self.until("opened")
        received = self.reports["received"]
        pongs = sum(message["type"] == "pong" for message in received)
        await self.tell('{"type":"ping"}')
        async with asyncio.timeout(10):
            while sum(message["type"] == "pong" for message in received) == pongs:
                await self._read_line()
        return [message for message in received if message["type"] not in ("ping", "pong")]

    async def finish(self) -> list[str]:
        """Close the socket, let the script end by itself; all that it printed on its console."""
        await self.tell("close")
        async with asyncio.timeout(10):
            with contextlib.suppress(EOFError):
                while True:
                    await self._read_line()
            assert await self.process.wait() == 0, self.console
        return self.console

    async def _read_line(self) -> None:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        if not line:
            raise EOFError(f"the script ended:\n{chr(10).join(self.console)}")
        if line.startswith("@"):
            [(what, value)] = json.loads(line[1:]).items()
            self.reports[what].append(value)
        else:
            self.console.append(line.rstrip("\n"))


Run = Callable[..., contextlib.AbstractAsyncContextManager[Script]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run these pieces of JavaScript, behind the prelude, against a node."""
    path = package_folders()
    if path is None:
        missing("Node with its `ws` package is not installed (NODE_PATH may say where `ws` is)")

    @contextlib.asynccontextmanager
    async def run(node: Node, *pieces: str, workspace: str = "ws-456") -> AsyncIterator[Script]:
        script = tmp_path / f"script-{len(list(tmp_path.iterdir()))}.mjs"
        script.write_text("\n".join([f"import '{PRELUDE.as_uri()}';", *pieces]), encoding="utf-8")
        environment = {"NODE_PATH": str(path), "NODE_UNDER_TEST": node.ws(""), "TOKEN": token(workspace)}
        process = await asyncio.create_subprocess_exec(
            shutil.which("node") or "node",
            str(script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        try:
            yield Script(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

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
