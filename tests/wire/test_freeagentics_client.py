"""The flows of the FreeAgentics document with a client of our own: a dashboard, a monitor, the heartbeat, coming back
with a new token or after an outage, leaving. It runs where Node is not installed and the document is not there.
"""

import asyncio
import json
import secrets
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from broker import Broker, Event

from ..support import Node, token
from .helpers import producer

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

MAX_ATTEMPTS = 8


class Dashboard:
    """Follows agents and inferences, and comes back: what anybody would write who has read the document."""

    def __init__(self, node: Node, *tokens: str, **wanted: Any) -> None:
        """Each of `tokens` is taken when the one before it has failed; `wanted` is what it subscribes to."""
        self.node, self.tokens, self.wanted = node, list(tokens), wanted
        self.socket: ClientConnection | None = None
        self.agents: dict[str, str] = {}
        self.metrics: list[Any] = []
        self.inferences: dict[str, dict[str, Any]] = {}
        self.diary: list[str] = []
        self.latency_seconds = -1.0
        self._pinged_at = 0.0

    async def run(self) -> None:
        """Until it has left, has no token any more or cannot come back."""
        attempt = 0
        while self.tokens and attempt < MAX_ATTEMPTS:
            try:
                async with connect(self.node.ws(f"/api/v1/ws?token={self.tokens[0]}"), proxy=None) as self.socket:
                    attempt = 0
                    await self._read(self.socket)
            except (OSError, websockets.InvalidHandshake):  # nobody there, or a node about to leave
                attempt += 1
                await asyncio.sleep(0.05 * 2**attempt)
        self.diary.append("gone")

    async def send(self, kind: str, **data: Any) -> None:
        assert self.socket is not None
        self._pinged_at = monotonic()
        await self.socket.send(json.dumps({"type": kind, "data": data}))

    async def wrote(self, line: str, times: int = 1) -> None:
        """Until `line` stands in the diary so often."""
        async with asyncio.timeout(20):
            while self.diary.count(line) < times:
                await asyncio.sleep(0.01)

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                message = json.loads(text)
                assert message["type"]
                assert message["timestamp"]
                await self._take(message["type"], message.get("data", {}))
        except websockets.ConnectionClosedError:
            pass  # told by its code
        self.diary.append(f"closed with {socket.close_code}")
        if socket.close_code == 1000:
            self.tokens.clear()

    async def _take(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "connection_established":
                await self.send("subscribe", **self.wanted)
            case "connection_error" if data["error_code"] == "AUTHENTICATION_FAILED":
                self.tokens.pop(0)
            case "pong":
                self.latency_seconds = monotonic() - self._pinged_at
            case "agent_status":
                self.agents[data["agent_id"]] = data["new_status"]
            case "metrics_update":
                self.metrics.append(data)
            case "inference_started":
                self.inferences[data["inference_id"]] = {"status": "running", "progress": 0}
            case "inference_progress":
                self.inferences[data["inference_id"]]["progress"] = data["progress"]
            case "inference_completed":
                taken = {"status": "completed", "seconds": data["processing_time"]}
                self.inferences[data["inference_id"]] |= taken
        self.diary.append(kind)


@pytest.fixture
def workspace() -> str:
    """A workspace that nobody else has."""
    return f"ws-{secrets.token_hex(4)}"


async def tell(broker: Broker, workspace: str, kind: str, agent: str = "agent_123", **data: Any) -> None:
    await broker.publish(Event(type=kind, workspace_id=workspace, agent_id=agent, data=data))


async def test_a_dashboard_counts_agents_and_shows_metrics(shared_node: Node, workspace: str) -> None:
    wanted = {"events": ["agent_status", "metrics_update", "inference_completed"], "agents": []}
    figures = {"system": {"cpu_usage": 45.2, "active_agents": 12}, "agents": {}}
    dashboard = Dashboard(shared_node, token(workspace, sub=workspace), **wanted)
    async with producer(shared_node) as broker, asyncio.TaskGroup() as group:
        group.create_task(dashboard.run())
        await dashboard.wrote("subscription_confirmed")
        for agent, status in (("agent_1", "active"), ("agent_2", "active"), ("agent_1", "idle")):
            await tell(broker, workspace, "agent_status", agent, new_status=status)
        await broker.publish(Event(type="metrics_update", workspace_id=workspace, data=figures))
        await dashboard.wrote("agent_status", 3)
        async with asyncio.timeout(10):
            while figures not in dashboard.metrics:
                await asyncio.sleep(0.01)
        await dashboard.send("disconnect", reason="user_initiated")
        await dashboard.wrote("gone")
    assert dashboard.agents == {"agent_1": "idle", "agent_2": "active"}
    assert dashboard.diary[-2:] == ["closed with 1000", "gone"]


async def test_a_monitor_follows_the_inferences_of_its_agent(shared_node: Node, workspace: str) -> None:
    wanted = {"events": ["inference_started", "inference_progress", "inference_completed"], "agents": ["agent_123"]}
    monitor = Dashboard(shared_node, token(workspace, sub=workspace), **wanted)
    async with producer(shared_node) as broker, asyncio.TaskGroup() as group:
        group.create_task(monitor.run())
        await monitor.wrote("subscription_confirmed")
        await tell(broker, workspace, "inference_started", "agent_456", inference_id="inf_1")
        await tell(broker, workspace, "inference_started", inference_id="inf_789")
        await tell(broker, workspace, "inference_progress", inference_id="inf_789", progress=0.65)
        await monitor.wrote("inference_progress")
        assert monitor.inferences == {"inf_789": {"status": "running", "progress": 0.65}}
        await tell(broker, workspace, "inference_completed", inference_id="inf_789", processing_time=30.5)
        await monitor.wrote("inference_completed")
        await monitor.send("ping")
        await monitor.wrote("pong")
        await monitor.send("disconnect")
    assert monitor.inferences == {"inf_789": {"status": "completed", "progress": 0.65, "seconds": 30.5}}
    assert 0 <= monitor.latency_seconds < 10


async def test_it_comes_back_with_a_new_token_and_after_an_outage(
    start_node: Callable[..., Node], workspace: str
) -> None:
    node = start_node(drain_seconds=0)
    client = Dashboard(node, "no-token", token(workspace, sub=workspace), events=["agent_status"])
    async with asyncio.TaskGroup() as group:
        group.create_task(client.run())
        await client.wrote("subscription_confirmed")
        assert client.diary[:2] == ["connection_error", "closed with 1008"]
        node.signal(signal.SIGTERM)
        await client.wrote("closed with 1012")
        await asyncio.to_thread(node.wait)
        await asyncio.to_thread(node.start)
        await client.wrote("subscription_confirmed", 2)
        async with producer(node) as broker:
            await tell(broker, workspace, "agent_status", new_status="active")
        await client.wrote("agent_status")
        await client.send("disconnect")
    assert client.agents == {"agent_123": "active"}
