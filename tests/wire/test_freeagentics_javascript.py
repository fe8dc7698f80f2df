"""The JavaScript of the FreeAgentics document runs in Node against a real gateway, its lines as they are.

Each script is the prelude (freeagentics_prelude.mjs), one or more of the document's blocks, and between them only what
the document leaves out. The document's own validator judges every frame that any of the scripts is sent. Skipped where
the document, Node or its `ws` package is missing; in CI all are there.
"""

import asyncio
import contextlib
import json
import re
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from broker import Broker, Event

from ..freeagentics import freeagentics
from ..support import Node, token, until
from . import freeagentics_examples as examples
from .helpers import producer
from .javascript import Script, running
from .seed import fenced

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

PRELUDE = Path(__file__).with_name("freeagentics_prelude.mjs")
SUPPLIED = (
    "WebSocket, clearInterval, complete, document, judgeBy, opened, refreshToken, report, setInterval, setTimeout, "
    "token, told, wire"
)

CONNECT = "### 1. Initial Connection"
SUBSCRIBE = "### 3. Subscribe to Events"
CLIENT = "### Automatic Reconnection"
GRACEFUL = "### Graceful Disconnection"
TOKEN_REFRESH = "### Token Refresh"
VALIDATION = "### Message Validation"
DASHBOARD = "### Real-time Dashboard"
MONITOR = "### Agent Monitor"
REFUSED = "#### Connection Refused"
DELIVERY = "#### Message Delivery Issues"
LATENCY = "#### High Latency"

OPENED = "await opened(ws);"
TOLD = "await told();"

# The document's validator knows these types and no other, not even those that the document sends unasked.
VALID = {"agent_status", "metrics_update", "system_alert"}
UNKNOWN = "Unknown message type"

SIBLINGS = (  # have no example of their own
    "agent_updated",
    "entity_deleted",
    "entity_updated",
    "maintenance_mode",
    "relationship_deleted",
    "relationship_updated",
)

Run = Callable[..., contextlib.AbstractAsyncContextManager[Script]]


def credentials(workspace: str, **claims: Any) -> str:
    """A token of a user who has no other."""
    return token(workspace, sub=f"user-{secrets.token_hex(4)}", **claims)


def check_verdicts(script: Script) -> None:
    """No frame lacked a type or a timestamp, and what the validator knows it found valid."""
    for message, verdict in zip(script.reports["received"], script.reports["judged"], strict=False):
        assert verdict == (True if message["type"] in VALID else UNKNOWN), message


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run these pieces of JavaScript, behind the prelude and the document's validator, against a node."""

    @contextlib.asynccontextmanager
    async def run(node: Node, *pieces: str, given: str, fresh: str = "") -> AsyncIterator[Script]:
        supplied = f"import {{ {SUPPLIED} }} from '{PRELUDE.as_uri()}';"
        text = "\n".join([supplied, fenced(VALIDATION), "judgeBy(validateMessage);", *pieces])
        path = tmp_path / f"script-{len(list(tmp_path.iterdir()))}.mjs"
        async with running(text, path, NODE_UNDER_TEST=node.ws(""), TOKEN=given, FRESH_TOKEN=fresh) as script:
            yield script
            check_verdicts(script)

    return run


@pytest.fixture
def workspace() -> str:
    """A workspace that nobody else has."""
    return f"ws-{secrets.token_hex(4)}"


@pytest.fixture
async def broker(shared_node: Node) -> AsyncIterator[Broker]:
    async with producer(shared_node) as broker:
        yield broker


def said(kind: str, workspace: str, **changes: Any) -> Event:
    """The document's example of an event of this type, with `changes` in its data."""
    example = examples.EVENTS[kind]
    return Event(type=kind, workspace_id=workspace, timestamp=example["timestamp"], data={**example["data"]} | changes)


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


async def subscribed(script: Script) -> None:
    """Until the script has been told that its subscription holds."""
    await script.until_true(lambda: "subscription_confirmed" in types(script.reports["received"]))


def shown(script: Script, where: str) -> list[Any]:
    """What stood there on the page, one after the other."""
    return [value for name, value in script.reports["shown"] if name == where]


# -- the client


CLIENT_CONNECTS = """
const client = new WebSocketClient('wss://api.freeagentics.com/api/v1/ws', token);
client.connect();
"""


async def test_the_client_connects_beats_and_comes_back(run: Run, start_node: Callable[..., Node]) -> None:
    """Through one outage that ends in time, and one that does not."""
    node = start_node(max_connects_per_minute=-1, drain_seconds=0)
    async with run(node, fenced(CLIENT), CLIENT_CONNECTS, given=credentials("ws-456")) as script:
        await script.until("opened")
        assert await script.until("repeated") == [30000]
        await script.tell("later")
        await script.until_true(lambda: "Heartbeat received" in script.console)
        await outage(node, script, attempts=2)
        await asyncio.to_thread(node.start)
        await script.tell("later")
        await script.until("repeated", 2)
        await script.tell("later")
        await script.until_true(lambda: script.console.count("Heartbeat received") == 2)
        await outage(node, script, attempts=5)
        await script.finish()
    back_off = [1000 * 2**attempt for attempt in range(5)]
    assert script.reports["put_off"] == [*back_off[:3], *back_off]
    assert script.reports["sent"] == [examples.PING, examples.PING]
    assert [line for line in script.console if line.startswith(("Connected", "Reconnecting"))] == [
        "Connected",
        *[f"Reconnecting (attempt {attempt})..." for attempt in (1, 2, 3)],
        "Connected",
        *[f"Reconnecting (attempt {attempt})..." for attempt in (1, 2, 3, 4, 5)],
    ]


async def outage(node: Node, script: Script, attempts: int) -> None:
    """Let the node leave, and the client try so often to come back."""
    closed = len(script.reports["closed"])
    node.signal(signal.SIGTERM)
    reports = await script.until("closed", closed + 1)
    assert reports[closed][0] == 1012
    await asyncio.to_thread(node.wait)
    for attempt in range(attempts):
        await script.tell("later")
        reports = await script.until("closed", closed + 2 + attempt)
        assert reports[-1][0] == 1006


# The snippet's `this` is a client, and its `ws` the socket of that; coming back by itself as well is of no use here.
REFRESHES = """
class RefreshingClient extends WebSocketClient {{
    connect() {{
        super.connect();
        const ws = this.ws;
        {snippet}
    }}
}}
const client = new RefreshingClient('wss://api.freeagentics.com/api/v1/ws', token);
client.maxReconnectAttempts = 0;
client.connect();
"""


async def test_a_token_that_fails_is_refreshed(run: Run, shared_node: Node, workspace: str) -> None:
    """One that never was any good, and one that expires on the way."""
    pieces = [fenced(CLIENT), REFRESHES.format(snippet=fenced(TOKEN_REFRESH))]
    expiring, good = credentials(workspace, ttl=4), credentials(workspace)
    async with (
        run(shared_node, *pieces, given="eyJ.not.good", fresh=good) as wrong,
        run(shared_node, *pieces, given=expiring, fresh=good) as expires,
    ):
        greeting = ["connection_established", "connection_pool_info"]
        for script, before in ((wrong, []), (expires, [*greeting, "disconnect_warning"])):
            received = await script.until("received", len(before) + 3)
            assert types(received) == [*before, "connection_error", *greeting]
            failure = received[len(before)]["data"]
            assert failure.keys() == examples.CONNECTION_ERROR["data"].keys()
            assert (failure["error_code"], failure["close_code"]) == ("AUTHENTICATION_FAILED", 1008)
            assert (await script.until("closed"))[0][0] == 1008
            await script.finish()


async def test_a_refusal_is_told_by_its_code(run: Run, shared_node: Node) -> None:
    pieces = [fenced(CONNECT), "ws.onclose = (error) => {", fenced(REFUSED), "};"]
    async with run(shared_node, *pieces, given="no-token") as script:
        await script.until("closed")
        console = await script.finish()
    assert console == ["Connected to FreeAgentics WebSocket", "Authentication failed - refresh token"]


async def test_it_takes_its_leave(run: Run, shared_node: Node, workspace: str) -> None:
    """And its place is another's."""
    given = credentials(workspace)
    async with run(shared_node, fenced(CONNECT), OPENED, TOLD, fenced(GRACEFUL), given=given) as script:
        await script.until("received", 2)
        assert script.reports["received"][1]["data"]["active_connections"] == 1
        await script.tell("continue")
        assert (await script.until("closed"))[0][0] == 1000
        assert await script.finish() == ["Connected to FreeAgentics WebSocket"]
    assert script.reports["sent"] == [examples.DISCONNECT]
    await until(lambda: shared_node.metric("trunkline_leases") == 0)
    async with freeagentics(shared_node, given) as client:
        assert client.greeting[1]["data"]["active_connections"] == 1


async def test_the_latency_is_probed(run: Run, shared_node: Node, workspace: str) -> None:
    pieces = [fenced(CONNECT), OPENED, fenced(LATENCY)]
    async with run(shared_node, *pieces, given=credentials(workspace)) as script:
        await script.until_true(lambda: len(script.console) == 2)
        greeted, measured = await script.finish()
    assert greeted == "Connected to FreeAgentics WebSocket"
    assert re.fullmatch(r"Latency: \d{1,4}ms", measured)
    assert script.reports["sent"] == [examples.PING]


async def test_a_message_waits_for_the_connection(run: Run, shared_node: Node, workspace: str) -> None:
    supplied = "const messageQueue = [], message = { type: 'ping' };"
    tells = "report('queued', messageQueue);"
    pieces = [fenced(CONNECT), supplied, fenced(DELIVERY), tells, OPENED, fenced(DELIVERY), tells]
    async with run(shared_node, *pieces, given=credentials(workspace)) as script:
        await script.until_true(lambda: "pong" in types(script.reports["received"]))
        console = await script.finish()
    assert console == ["Connection not ready, queuing message", "Connected to FreeAgentics WebSocket"]
    assert script.reports["queued"] == [[examples.PING]] * 2
    assert script.reports["sent"] == [examples.PING]


# -- events


async def test_it_connects_subscribes_and_receives(run: Run, shared_node: Node, workspace: str, broker: Broker) -> None:
    pieces = [fenced(CONNECT), OPENED, fenced(SUBSCRIBE)]
    async with run(shared_node, *pieces, given=credentials(workspace)) as script:
        await subscribed(script)
        confirmed = script.reports["received"][-1]["data"]
        assert confirmed == examples.SUBSCRIBE_FIRST["data"] | {"status": "active"}
        for agent in ("agent_123", "agent_789", "agent_456"):
            await broker.publish(said("agent_status", workspace, agent_id=agent))
        await broker.publish(said("agent_created", workspace))
        await broker.publish(said("system_alert", workspace))
        await script.until_true(lambda: "system_alert" in types(script.reports["received"]))
        events = [
            message for message in script.reports["received"] if message["type"].startswith(("agent_", "system_"))
        ]
        await script.finish()
    assert script.reports["sent"] == [examples.SUBSCRIBE_FIRST]
    assert [(event["type"], event["data"].get("agent_id")) for event in events] == [
        ("agent_status", "agent_123"),
        ("agent_status", "agent_456"),
        ("system_alert", None),
    ]


DASHBOARD_STARTS = """
complete(WebSocketClient);
const dashboard = new AgentDashboard();
wire(dashboard);
dashboard.updateMetricsDisplay = () => {
    document.getElementById('metrics').textContent = dashboard.metrics;
};
await dashboard.start();
await told();
report('agents', [...dashboard.agents]);
"""


async def test_the_dashboard_counts_agents_and_shows_metrics(
    run: Run, shared_node: Node, workspace: str, broker: Broker
) -> None:
    pieces = [fenced(CLIENT), fenced(DASHBOARD), DASHBOARD_STARTS]
    example = examples.EVENTS["metrics_update"]["data"]
    async with run(shared_node, *pieces, given=credentials(workspace)) as script:
        await subscribed(script)
        for agent, status in (("123", "active"), ("456", "active"), ("789", "pending"), ("123", "idle")):
            await broker.publish(said("agent_status", workspace, agent_id=f"agent_{agent}", new_status=status))
        await broker.publish(said("inference_completed", workspace))
        await script.until_true(lambda: "inference_completed" in types(script.reports["received"]))
        assert shown(script, "agent-count") == [1, 2, 3, 3]
        assert shown(script, "active-agents") == [1, 2, 2, 1]
        await broker.publish(said("metrics_update", workspace))
        await script.until_true(lambda: example in shown(script, "metrics"))
        await script.until_true(lambda: has_fleets_own(shown(script, "metrics")))
        await script.tell("continue")
        await script.until("agents")
        console = await script.finish()
    assert script.reports["sent"] == [examples.SUBSCRIBE_DASHBOARD]
    assert {agent: state["status"] for agent, state in script.reports["agents"][0]} == {
        "agent_123": "idle",
        "agent_456": "active",
        "agent_789": "pending",
    }
    assert console[0] == "Connected"


def has_fleets_own(metrics: list[Any]) -> bool:
    """Are there figures that the fleet computed from these agents' events?"""
    example = examples.EVENTS["metrics_update"]["data"]
    expected = {"agent_123": "idle", "agent_456": "active", "agent_789": "pending"}
    return any(
        {agent: figures["status"] for agent, figures in found["agents"].items()} == expected
        and found["system"]["active_agents"] == 1
        for found in metrics
        if found.keys() == example.keys() and found != example
    )


MONITOR_STARTS = """
complete(WebSocketClient);
const monitor = new AgentMonitor('agent_123');
wire(monitor);
monitor.updateInferenceList = () => {
    document.getElementById('inferences').textContent = monitor.inferences;
};
monitor.updateProgressBar = (id, progress) => {
    document.getElementById(id).textContent = progress;
};
await monitor.start();
"""


async def test_the_monitor_follows_the_inferences_of_its_agent(
    run: Run, shared_node: Node, workspace: str, broker: Broker
) -> None:
    """What it reads as `data.timestamp`, the document's examples do not have: a producer may say it."""
    pieces = [fenced(CLIENT), fenced(MONITOR), MONITOR_STARTS]
    began, ended = "2024-01-15T10:34:00Z", "2024-01-15T10:34:30Z"
    async with run(shared_node, *pieces, given=credentials(workspace)) as script:
        await subscribed(script)
        await broker.publish_many(
            [
                said("inference_started", workspace, agent_id="agent_456", inference_id="inf_other"),
                said("inference_started", workspace, timestamp=began),
                said("inference_progress", workspace, progress=0.25),
                said("inference_started", workspace, inference_id="inf_790"),
                said("inference_progress", workspace),
                said("inference_completed", workspace, agent_id="agent_456", inference_id="inf_other"),
                said("inference_completed", workspace, timestamp=ended),
            ]
        )
        await script.until("shown", 5)
        await script.finish()
    running = {"id": "inf_789", "status": "running", "started": began, "progress": 0}
    second = {"id": "inf_790", "status": "running", "progress": 0}
    done = running | {"status": "completed", "progress": 0.65, "completed": ended, "processing_time": 30.5}
    assert script.reports["shown"] == [
        ["inferences", [running]],
        ["inf_789", 0.25],
        ["inferences", [running | {"progress": 0.25}, second]],
        ["inf_789", 0.65],
        ["inferences", [done, second]],
    ]
    monitor = examples.SUBSCRIBE_MONITOR
    assert script.reports["sent"] == [monitor | {"data": monitor["data"] | {"agents": ["agent_123"]}}]


# -- the validator


def of_every_type(workspace: str) -> list[Event]:
    """An event of each type of the document."""
    siblings = [Event(type=name, workspace_id=workspace, agent_id="agent_9", data={}) for name in SIBLINGS]
    return [said(name, workspace) for name in examples.EVENTS] + siblings


async def ask(script: Script, kind: str, **data: Any) -> None:
    await script.tell(json.dumps({"type": kind, "data": data}))


async def test_the_validator_passes_all_that_its_client_asked_for(
    run: Run, shared_node: Node, workspace: str, broker: Broker
) -> None:
    async with run(shared_node, fenced(CONNECT), OPENED, given=credentials(workspace)) as script:
        await script.until("opened")
        await ask(script, "subscribe", events=sorted(VALID))
        await subscribed(script)
        before = len(script.reports["received"])
        await broker.publish_many([*of_every_type(workspace), said("system_alert", workspace, alert_id="the-end")])
        await script.until_true(lambda: "the-end" in str(script.reports["received"][-1]))
        assert set(script.reports["judged"][before:]) == {True}
        assert set(types(script.reports["received"][before:])) == VALID
        await script.finish()


async def test_every_frame_has_type_and_timestamp(run: Run, shared_node: Node, workspace: str, broker: Broker) -> None:
    """The validator complains of nothing but types beyond its three. (What ends a connection is judged above.)"""
    events = of_every_type(workspace)
    async with run(shared_node, fenced(CONNECT), OPENED, given=credentials(workspace)) as script:
        await script.until("opened")
        await ask(script, "subscribe", events=[event.type for event in events])
        await ask(script, "subscribe", events=["invalid_event"])
        await ask(script, "command", agent_id="agent_123", command="start")
        await script.tell("no message")
        await subscribed(script)
        await broker.publish_many(events)
        for _ in range(100):
            await script.tell(json.dumps(examples.PING))
        await script.until_true(lambda: "RATE_LIMIT_EXCEEDED" in str(script.reports["received"][-1]))
        expected = {event.type for event in events} | {
            "connection_established",
            "connection_pool_info",
            "subscription_confirmed",
            "subscription_error",
            "command_error",
            "rate_limit_warning",
            "pong",
        }
        await script.until_true(lambda: set(types(script.reports["received"])) == expected)
        await script.finish()
