"""Every JSON example of the MaxiCore document is produced or accepted as it stands: a test each, named by its section.

An example is produced when its fields, published through Redis, stand in the message that arrives: flat and repeated in
`data` by default, flat alone or nested alone where the client asks for that.
"""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..support import Client, Node, maxicore, token
from . import examples
from .helpers import Stage, as_event, ask, errors
from .seed import block

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

ON_TOP = ("type", "timestamp", "agent_id", "task_id", "workspace_id", "event_id")

Message = dict[str, Any]
Produce = Callable[[Message], Awaitable[None]]


@pytest.fixture(params=["default", "flat", "nested"])
def envelope(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def produce(stage: Stage, envelope: str) -> Produce:
    """Publish an example and see it arrive, in one of the three shapes."""

    async def produce(example: Message) -> None:
        async with stage.client(query="" if envelope == "default" else f"envelope={envelope}") as client:
            await client.subscribe()
            await client.synchronise()
            [position] = await stage.publish(as_event(example, stage.workspace))
            message = await client.receive()
        fields = {key: value for key, value in example.items() if key not in ON_TOP}
        top = {"agent_id": "agent-123", "workspace_id": stage.workspace, "event_id": position}
        top |= {"timestamp": message["timestamp"]} | {key: example[key] for key in ON_TOP if key in example}
        assert (
            message
            == top | {"default": fields | {"data": fields}, "flat": fields, "nested": {"data": fields}}[envelope]
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", message["timestamp"])

    return produce


async def test_task_started(produce: Produce) -> None:
    await produce(examples.TASK_STARTED)


async def test_task_progress(produce: Produce) -> None:
    await produce(examples.TASK_PROGRESS)


async def test_task_completed(produce: Produce) -> None:
    await produce(examples.TASK_COMPLETED)


async def test_task_failed(produce: Produce) -> None:
    await produce(examples.TASK_FAILED)


async def test_agent_online(produce: Produce) -> None:
    await produce(examples.AGENT_ONLINE)


async def test_agent_offline(produce: Produce) -> None:
    await produce(examples.AGENT_OFFLINE)


async def test_shield_violation(produce: Produce) -> None:
    await produce(examples.SHIELD_VIOLATION)


@pytest.mark.parametrize("query", ["", "envelope=nested"])
async def test_message_format(stage: Stage, query: str) -> None:
    example = examples.MESSAGE_FORMAT
    own = {"step": 3, "total_steps": 10}
    event = as_event(example | {"data": None}, stage.workspace)
    event.data = {"task_id": example["task_id"]} | own
    async with stage.client(query=query) as client:
        await client.subscribe()
        await client.synchronise()
        await stage.publish(event)
        message = await client.receive()
    assert message.items() >= (example | {"data": own}).items()


async def watched(client: Client, stage: Stage) -> list[str]:
    """Of which example events, published in ws-456, the client is sent one."""
    await stage.publish(*(as_event(example, stage.workspace) for example in examples.EVENTS.values()))
    return [message["type"] for message in await stage.delivered(client)]


async def test_subscribe(ws_456: Stage) -> None:
    async with ws_456.client() as client:
        assert await ask(client, examples.SUBSCRIBE) == []
        assert await watched(client, ws_456) == ["task.progress", "task.completed", "task.failed"]


async def test_unsubscribe(ws_456: Stage) -> None:
    async with ws_456.client() as client:
        await client.send(examples.SUBSCRIBE)
        assert await ask(client, examples.UNSUBSCRIBE) == []
        assert await watched(client, ws_456) == []


async def test_task_watcher_subscribe(ws_456: Stage) -> None:
    async with ws_456.client() as client:
        assert await ask(client, examples.WATCH_TASK) == []
        assert await watched(client, ws_456) == ["task.started", "task.progress", "task.completed", "task.failed"]


async def test_auth_message(ws_456: Stage) -> None:
    async with maxicore(ws_456.node, "") as client:
        await client.send(examples.AUTH | {"token": examples.AUTH["token"].replace("<token>", token("ws-456"))})
        assert await ask(client, examples.SUBSCRIBE) == []
        assert await watched(client, ws_456) == ["task.progress", "task.completed", "task.failed"]


async def test_heartbeat(start_node: Callable[..., Node]) -> None:
    async with maxicore(start_node(heartbeat_seconds=1)) as client:
        assert (await client.receive()).items() >= examples.PING.items()
        assert errors(await ask(client, examples.PONG)) == []


async def test_a_client_may_ping_too(stage: Stage) -> None:
    async with stage.client() as client:
        await client.send(examples.PING)
        assert (await client.receive()).items() >= examples.PONG.items()


def test_the_examples_are_the_documents() -> None:
    for name, example in examples.EVENTS.items():
        assert json.loads(block(name, "json")) == example
    assert json.loads(re.sub(r"/\*.*?\*/", "", block("Message Format", "json"))) == examples.MESSAGE_FORMAT


def test_the_requests_are_the_documents() -> None:
    assert _sent("Connection", 2) == [examples.AUTH]
    assert _sent("Subscribe zu Events") == [examples.SUBSCRIBE]
    assert _sent("Unsubscribe") == [examples.UNSUBSCRIBE]
    assert _sent("Heartbeat (Ping/Pong)") == [examples.PONG]
    assert _sent("Beispiel: Task-Überwachung") == [examples.WATCH_TASK]


def _sent(heading: str, number: int = 1) -> list[Any]:
    """The values that the JavaScript under `heading` sends, its object literals read as JSON."""
    code = block(heading, "javascript", number).replace("'Bearer ' + token", "'Bearer <token>'").replace("'", '"')
    literals = re.findall(r"JSON\.stringify\((\{.*?\})\)", code, re.DOTALL)
    return [json.loads(re.sub(r"(\w+):", r'"\1":', literal)) for literal in literals]
