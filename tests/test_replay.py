"""Replays under pressure: what is held overflows, and nobody is told a position that they do not have."""

import asyncio

import pytest

from broker import Broker, Event

from .lean import LeanClient
from .support import Node, token

pytestmark = pytest.mark.anyio


def progress(workspace: str, step: int, size: int = 0) -> Event:
    data = {"task_id": "t", "step": step, "output": "x" * size}
    return Event(type="task.progress", workspace_id=workspace, agent_id="agent-1", data=data)


async def test_a_hold_that_overflows_during_a_replay_loses_nothing_of_any_workspace(
    redis_url: str, prefix: str, node: Node
) -> None:
    """One workspace is live while the history of another is replayed, and more comes there than is held."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (since, *_) = await broker.publish_many([progress("ws-b", step, 2000) for step in range(3000)])
        client = await LeanClient.connect(node, token("ws-a", "ws-b"), "envelope=flat")
        client.subscribe(workspace_id="ws-a")
        await client.synchronise()
        client.subscribe(workspace_id="ws-b", since={"ws-b": since})
        flood = asyncio.create_task(broker.publish_many([progress("ws-a", step, 8000) for step in range(800)]))
        await client.synchronise(60)
        await flood
        await client.synchronise(60)
        steps: dict[str, list[int]] = {"ws-a": [], "ws-b": []}
        for message in client.events():
            assert message["type"] == "task.progress"
            steps[message["workspace_id"]].append(message["step"])
        assert client.code is None
        assert steps["ws-b"] == list(range(1, 3000))
        assert steps["ws-a"] == list(range(800))
        client.close()
