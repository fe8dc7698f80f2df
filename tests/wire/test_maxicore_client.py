"""The flows of the MaxiCore document with a client of our own: watching a task, both ways to authenticate, subscribing,
unsubscribing, both ways to answer the heartbeat. It runs where Node is not installed and the document is not there.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from ..support import Node, token
from . import examples
from .helpers import Deaf, Stage, as_event, steps

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]


class TaskWatcher:
    """Follows one task and keeps a diary of it: what anybody would write who has read the document."""

    def __init__(self, socket: ClientConnection, *, answers: bool = True) -> None:
        self.socket, self.answers = socket, answers
        self.diary: list[str] = []
        self.heartbeats = 0
        self.pongs = asyncio.Event()

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind} | fields))

    async def subscribe(self, **filters: Any) -> None:
        await self.send("subscribe", filters=filters)

    async def unsubscribe(self, **filters: Any) -> None:
        await self.send("unsubscribe", filters=filters)

    async def run(self) -> None:
        """Read until the connection ends."""
        with suppress(ConnectionClosedError):  # by whatever code: tests look at the socket's
            async for text in self.socket:
                await self._take(json.loads(text))
        self.diary.append("closed")

    async def synchronise(self) -> None:
        """Until the server has answered a ping, and so everything before it."""
        self.pongs.clear()
        await self.send("ping")
        await asyncio.wait_for(self.pongs.wait(), 10)

    async def wrote(self, line: str) -> None:
        """Until `line` stands in the diary."""
        async with asyncio.timeout(10):
            while line not in self.diary:
                await asyncio.sleep(0.01)

    async def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "ping"}:
                self.heartbeats += 1
                if self.answers:
                    await self.send("pong")
            case {"type": "pong"}:
                self.pongs.set()
            case {"type": "task.started", "description": description}:
                self.diary.append(f"started: {description}")
            case {"type": "task.progress", "step": step, "total_steps": total, "current_action": action}:
                self.diary.append(f"{step} of {total}: {action}")
            case {"type": "task.completed", "result": {"summary": summary}, "credits_used": credits_used}:
                self.diary.append(f"done for {credits_used} credits: {summary}")
            case {"type": "task.failed", "error": {"code": code, "message": reason}}:
                self.diary.append(f"failed: {code}, {reason}")
            case {"type": kind}:
                self.diary.append(f"unexpected: {kind}")


@asynccontextmanager
async def watcher(node: Node, query: str = "", *, answers: bool = True, **options: Any) -> AsyncIterator[TaskWatcher]:
    """A watcher that is connected and reads; it leaves at the end."""
    async with connect(node.ws(f"/v2/ws{query}"), ping_interval=None, proxy=None, **options) as socket:
        watcher = TaskWatcher(socket, answers=answers)
        reading = asyncio.create_task(watcher.run())
        try:
            yield watcher
        finally:
            await socket.close()
            await reading


STORY = [
    "started: Process data file",
    "3 of 10: Reading file: data.csv",
    "done for 42 credits: Processed 1000 rows in 2.5 seconds",
    "failed: FILE_NOT_FOUND, File /data/input.csv not found",
]


async def tell_the_story(stage: Stage) -> None:
    """Publish the document's examples of a task's life."""
    story = (examples.TASK_STARTED, examples.TASK_PROGRESS, examples.TASK_COMPLETED, examples.TASK_FAILED)
    await stage.publish(*(as_event(example, stage.workspace) for example in story))


async def test_a_task_is_watched_from_start_to_end(stage: Stage) -> None:
    async with watcher(stage.node, f"?token={token(stage.workspace)}") as client:
        await client.subscribe(
            task_id="task-456", event_types=["task.started", "task.progress", "task.completed", "task.failed"]
        )
        await client.synchronise()
        await stage.publish(as_event(examples.TASK_STARTED | {"task_id": "task-457"}, stage.workspace))
        await tell_the_story(stage)
        await client.wrote(STORY[-1])
    assert client.diary == [*STORY, "closed"]


async def test_the_token_may_come_in_the_first_message(stage: Stage) -> None:
    async with watcher(stage.node) as client:
        await client.send("auth", token=f"Bearer {token(stage.workspace)}")
        await client.subscribe()
        await client.synchronise()
        await tell_the_story(stage)
        await client.wrote(STORY[-1])
    assert client.diary == [*STORY, "closed"]


async def test_what_is_unsubscribed_comes_no_more(stage: Stage) -> None:
    async with watcher(stage.node, f"?token={token(stage.workspace)}") as client:
        await client.subscribe(agent_id="agent-123", event_types=["task.progress"])
        await client.subscribe(agent_id="agent-123", event_types=["task.failed"])
        await client.unsubscribe(agent_id="agent-123", event_types=["task.progress"])
        await client.synchronise()
        await tell_the_story(stage)
        await client.wrote(STORY[-1])
    assert client.diary == [STORY[-1], "closed"]


async def test_answering_the_heartbeat_in_either_way_keeps_the_connection(start_node: Callable[..., Node]) -> None:
    node = start_node(heartbeat_seconds=1)
    query = f"?token={token()}"
    async with (
        watcher(node, query, answers=False) as with_frames,
        watcher(node, query, create_connection=Deaf) as with_messages,
        watcher(node, query, answers=False, create_connection=Deaf) as silent,
    ):
        await silent.wrote("closed")
        assert (silent.socket.close_code, silent.socket.close_reason) == (1008, "PONG_TIMEOUT")
        assert silent.heartbeats >= 3
        assert isinstance(silent.socket, Deaf)
        assert silent.socket.ping_frames >= 3
        await with_frames.synchronise()
        await with_messages.synchronise()
    assert with_frames.diary == with_messages.diary == ["closed"]


async def test_what_the_command_line_publishes_arrives(shared_node: Node, ws_456: Stage) -> None:
    """One event as arguments, more of them as lines; each durable one answered by its position."""
    command = [sys.executable, "-m", "gateway", "publish", "--redis-url", shared_node.redis_url]
    command += ["--prefix", shared_node.prefix, "--workspace", "ws-456"]
    lines = [
        {"type": "task.progress", "agent_id": "agent-123", "data": {"task_id": "task-456", "step": 2}},
        {
            "type": "task.progress",
            "data": {"task_id": "task-456", "step": 3, "agent_id": "agent-123"},
            "ephemeral": True,
        },
        {"type": "task.progress", "agent_id": "agent-123", "data": {"task_id": "task-456", "step": 4}},
    ]

    def publish(*arguments: str, given: str = "") -> list[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        answer = subprocess.run(
            [*command, *arguments], input=given, capture_output=True, text=True, check=False, env=environment
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()

    async with ws_456.client() as client:
        await client.subscribe(agent_id="agent-123")
        await client.synchronise()
        one = await asyncio.to_thread(
            publish, "--agent", "agent-123", "task.progress", '{"task_id":"task-456","step":1}'
        )
        more = await asyncio.to_thread(publish, "-", given="".join(json.dumps(line) + "\n" for line in lines))
        messages = [await client.receive() for _ in range(4)]
    assert steps(messages) == [1, 2, 3, 4]
    assert [message.get("event_id", "") for message in messages] == one + more


async def test_a_client_that_leaves_in_the_middle_disturbs_nobody(stage: Stage) -> None:
    async with watcher(stage.node, f"?token={token(stage.workspace)}") as stays:
        await stays.subscribe()
        async with watcher(stage.node, f"?token={token(stage.workspace)}") as leaves:
            await leaves.subscribe()
            await leaves.synchronise()
            leaves.socket.transport.abort()
        await stays.synchronise()
        await tell_the_story(stage)
        await stays.wrote(STORY[-1])
    assert stays.diary == [*STORY, "closed"]
