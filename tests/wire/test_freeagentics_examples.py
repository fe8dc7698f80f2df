"""Every JSON example of the FreeAgentics document over a real socket: a test each, named by its section.

An event's example is produced when it arrives as it stands, with its position and workspace on top. What is said about
a connection is produced when it has the example's shape, and its very words where these do not depend on the moment.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import Command, Event

from ..freeagentics import FreeAgentics, FreeStage, freeagentics, user
from ..support import Node, until
from . import freeagentics_examples as examples

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.freeagentics_fixtures"]

Message = dict[str, Any]

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z")


def as_event(example: Message, workspace: str) -> Event:
    """The event that a producer publishes to have `example` appear."""
    return Event(
        type=example["type"], workspace_id=workspace, data=dict(example["data"]), timestamp=example["timestamp"]
    )


def assert_said(message: Message, example: Message, *varying: str) -> None:
    """`message` has the shape of `example`, and its values but for `varying`. (Fields on top of that are allowed.)"""
    assert message.keys() >= example.keys()
    assert message["type"] == example["type"]
    assert MOMENT.fullmatch(message["timestamp"]), message["timestamp"]
    data, shown = message["data"], example["data"]
    assert data.keys() >= shown.keys()
    for name, value in shown.items():
        assert type(data[name]) is type(value), name
        if name not in varying:
            assert data[name] == value, name
        elif isinstance(value, str):
            assert MOMENT.fullmatch(data[name]) if MOMENT.fullmatch(value) else data[name], name


# --- Server → client: events ---


@pytest.mark.parametrize("name", examples.EVENTS)
async def test_event(free_stage: FreeStage, name: str) -> None:
    example = examples.EVENTS[name]
    event = as_event(example, free_stage.workspace)
    async with free_stage.client() as client, free_stage.client(free_stage.other) as stranger:
        await client.subscribe([name])
        await stranger.subscribe([name])
        positions = await free_stage.publish(event)
        message = await client.receive()
        while message["data"].get("agents", {}).keys() != event.data.get("agents", {}).keys():
            message = await client.receive()  # those of the elected node
        on_top = {"workspace_id": free_stage.workspace} | ({"event_id": positions[0]} if positions else {})
        assert message == example | on_top
        assert bool(positions) == (name != "metrics_update")
        # What is handed on after it shows that the stranger had its turn.
        await free_stage.publish(as_event(examples.EVENTS["system_status"], free_stage.workspace))
        await free_stage.settle()
        seen = await stranger.synchronise()
        assert [event for event in seen if event["workspace_id"] != free_stage.other] == []


# --- Server → client: about the connection ---


async def test_connection_established(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        assert_said(client.greeting[0], examples.CONNECTION_ACKNOWLEDGED, "client_id", "session_id")
        assert_said(client.greeting[0], examples.CONNECTION_ESTABLISHED, "client_id", "session_id", "server_version")


async def test_connection_pool_info(quiet_node: Node) -> None:
    """The third of a user's five."""
    whose = user()
    async with (
        freeagentics(quiet_node, whose),
        freeagentics(quiet_node, whose),
        freeagentics(quiet_node, whose) as third,
    ):
        assert_said(third.greeting[1], examples.CONNECTION_POOL_INFO, "pool_id")


async def test_subscription_confirmed(free_stage: FreeStage) -> None:
    shown = examples.SUBSCRIPTION_CONFIRMED["data"]
    async with free_stage.client() as client:
        answer = await client.subscribe(shown["events"], shown["agents"])
    assert_said(answer, examples.SUBSCRIPTION_CONFIRMED)


async def test_command_error(quiet_node: Node) -> None:
    shown = examples.COMMAND_ERROR["data"]
    command = {name: shown[name] for name in ("agent_id", "command", "request_id")}
    async with freeagentics(quiet_node, user("ws-of-nobody", scope="commands:send")) as client:
        await client.send({"type": "command", "data": command})
        assert_said(await client.receive(), examples.COMMAND_ERROR)


async def test_subscription_error(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.send({"type": "subscribe", "data": {"events": ["invalid_event"]}})
        answer = await client.receive()
    assert_said(answer, examples.SUBSCRIPTION_ERROR, "supported_events")
    assert {"agent_status", "inference_completed"} <= set(answer["data"]["supported_events"])


async def test_heartbeat(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.send(examples.PING)
        assert_said(await client.receive(), examples.PONG, "server_time", "connection_duration")


async def test_rate_limit_warning(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        for _ in range(95):
            await client.send(examples.PING)
        assert_said(await client.until("rate_limit_warning"), examples.RATE_LIMIT_WARNING, "reset_time")


async def test_connection_error(quiet_node: Node) -> None:
    async with freeagentics(quiet_node, "rubbish") as client:
        assert_said(client.greeting[0], examples.CONNECTION_ERROR)
        assert (await client.closed())[0] == examples.CONNECTION_ERROR["data"]["close_code"]


async def test_message_format(quiet_node: Node) -> None:
    """Whatever is said has the form of all messages."""
    async with freeagentics(quiet_node, user("ws-of-nobody")) as client:
        for message in (
            examples.SUBSCRIBE,
            examples.UNSUBSCRIBE,
            examples.COMMAND,
            {"type": "subscribe", "data": {"events": ["invalid_event"]}},
            {"type": "nonsense"},
            "nonsense",
        ):
            await client.send(message)
        await client.synchronise()
    said = [message["type"] for message in client.messages if message["type"] != "metrics_update"]
    assert said == [
        "connection_established", "connection_pool_info", "subscription_confirmed", "subscription_confirmed",
        "command_error", "subscription_error", "command_error", "command_error", "pong",
    ]  # fmt: skip
    for message in client.messages:
        assert_said(message, examples.MESSAGE_FORMAT | {"type": message["type"]})


# --- Client → server ---


async def watched(client: FreeAgentics, stage: FreeStage) -> list[str]:
    """Of which example events the client is sent one."""
    await stage.publish(*(as_event(example, stage.workspace) for example in examples.EVENTS.values()))
    messages = await stage.delivered(client)
    assert all(message["workspace_id"] == stage.workspace for message in messages)
    # The elected node's figures have no agents, as none has been heard of before.
    updates = [message for message in messages if message["type"] == "metrics_update"]
    theirs = [message for message in updates if "agent_456" not in message["data"]["agents"]]
    return [message["type"] for message in messages if message not in theirs]


async def test_connection_flow_subscribe(free_stage: FreeStage) -> None:
    asked = examples.SUBSCRIBE_FIRST
    async with free_stage.client() as client:
        confirmed = await client.confirmed(asked)
        assert confirmed["data"] == asked["data"] | {"status": "active"}
        assert await watched(client, free_stage) == ["agent_status", "metrics_update", "system_alert"]


async def test_subscribe_to_events(free_stage: FreeStage) -> None:
    """Its filters keep the document's own system alert away: that is about other components."""
    asked = examples.SUBSCRIBE
    async with free_stage.client() as client:
        confirmed = await client.confirmed(asked)
        shown = {"events": asked["data"]["events"], "agents": asked["data"]["agents"], "status": "active"}
        assert confirmed["data"] == shown
        assert await watched(client, free_stage) == ["agent_status", "inference_completed", "metrics_update"]


async def test_unsubscribe_from_events(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.confirmed(examples.SUBSCRIBE_FIRST)
        confirmed = await client.confirmed(examples.UNSUBSCRIBE)
        assert confirmed["data"] == {
            "events": ["agent_status", "metrics", "system_alerts"],
            "agents": ["agent_123", "agent_456"],
            "status": "active",
        }


async def test_dashboard_subscribe(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        confirmed = await client.confirmed(examples.SUBSCRIBE_DASHBOARD)
        assert confirmed["data"] == examples.SUBSCRIBE_DASHBOARD["data"] | {"status": "active"}
        assert await watched(client, free_stage) == ["agent_status", "inference_completed", "metrics_update"]


async def test_monitor_subscribe(free_stage: FreeStage) -> None:
    asked = examples.SUBSCRIBE_MONITOR["data"] | {"agents": ["agent_123"]}
    async with free_stage.client() as client:
        confirmed = await client.confirmed(examples.SUBSCRIBE_MONITOR | {"data": asked})
        assert confirmed["data"] == asked | {"status": "active"}
        assert await watched(client, free_stage) == asked["events"]


@contextlib.asynccontextmanager
async def agent(stage: FreeStage, name: str) -> AsyncIterator[asyncio.Queue[Command]]:
    """An agent that listens, and what it is told to do."""
    told: asyncio.Queue[Command] = asyncio.Queue()

    async def listen() -> None:
        async for command in stage.broker.commands(name, workspace_id=stage.workspace):
            told.put_nowait(command)
            await command.done({"new_status": "active"})

    listening = asyncio.create_task(listen())
    try:
        await until(lambda: stage.broker.redis.exists(stage.broker.keys.listening(stage.workspace, name)))
        yield told
    finally:
        listening.cancel()
        await asyncio.wait([listening])


async def test_send_commands(free_stage: FreeStage) -> None:
    whose = user(free_stage.workspace, scope="commands:send")
    async with agent(free_stage, "agent_123") as told, freeagentics(free_stage.node, whose) as client:
        await client.send(examples.COMMAND)
        assert await client.synchronise() == []
        async with asyncio.timeout(10):
            command = await told.get()
    shown = examples.COMMAND["data"]
    assert (command.agent_id, command.name, command.parameters) == tuple(shown.values())


async def test_ping(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.send(examples.PING)
        assert (await client.receive())["type"] == "pong"


async def test_configuration_updates(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.send(examples.CONFIGURE)
        assert await client.synchronise() == []


async def test_graceful_disconnection(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        before = len(client.messages)
        await client.send(examples.DISCONNECT)
        assert (await client.closed())[0] == 1000
        assert len(client.messages) == before
