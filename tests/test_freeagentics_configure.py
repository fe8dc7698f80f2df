"""What a FreeAgentics client configures: how often it hears of metrics, what may wait for it, and compression."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
import websockets

from broker import Broker, Event
from broker.election import Election

from .freeagentics import QUIET, FreeAgentics, FreeStage, free_staged, freeagentics, user
from .rawsocket import OFFER, RawClient, raw_client
from .support import Node, until
from .wire.helpers import producer
from .wire.javascript import package_folders
from .wire.seed import missing

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.freeagentics_fixtures"]

Message = dict[str, Any]
StartNode = Callable[..., Node]


def configure(**data: Any) -> Message:
    return {"type": "configure", "data": data}


async def configured(client: FreeAgentics, **data: Any) -> None:
    """Configure, which is silent."""
    await client.send(configure(**data))
    assert await client.synchronise() == []


def status(workspace: str, number: int, **data: Any) -> Event:
    data = {"new_status": "active", "inference_count": number} | data
    return Event(type="agent_status", workspace_id=workspace, agent_id="a", data=data)


# --- metrics_interval ---


class Recorder:
    """Reads all that a client is sent: the numbers of metrics with the moments they came, and the types of the rest."""

    def __init__(self, client: FreeAgentics) -> None:
        self.client = client
        self.metrics: list[tuple[float, int]] = []
        self.others: list[str] = []

    async def run(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.client.socket:
                message = json.loads(text)
                if message["type"] == "metrics_update":
                    self.metrics.append((monotonic(), message["data"]["system"]["queue_length"]))
                else:
                    self.others.append(message["type"])

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.metrics]

    @property
    def gaps(self) -> list[float]:
        """Seconds between one and the next."""
        return [later - earlier for (earlier, _), (later, _) in pairwise(self.metrics)]


@contextlib.asynccontextmanager
async def no_elected_node(broker: Broker, workspace: str) -> AsyncIterator[None]:
    """Hold the workspace's lease, so that no node publishes metrics of its own there."""
    election = Election(broker.redis, broker.keys, "test")

    async def hold() -> None:
        while True:
            assert await election.lead([workspace]) == {workspace}
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as tasks:
        assert await election.lead([workspace]) == {workspace}
        holding = tasks.create_task(hold())
        yield
        holding.cancel()


class Metrics:
    """A producer of a hundred metrics a second. `sent` are the moments of those that were published, by number."""

    def __init__(self, broker: Broker, workspace: str) -> None:
        self.broker, self.workspace = broker, workspace
        self.sent: list[float] = []
        self.is_over = False

    async def run(self) -> None:
        start = monotonic()
        while not self.is_over:
            system = {"cpu_usage": 45.2, "queue_length": len(self.sent)}
            self.sent.append(monotonic())
            await self.broker.publish(
                Event(type="metrics_update", workspace_id=self.workspace, data={"system": system})
            )
            await asyncio.sleep(max(0.0, start + len(self.sent) / 100 - monotonic()))

    def assert_newest(self, recorder: Recorder) -> None:
        """What came while there was more was never older than what was published half a second before."""
        for at, number in recorder.metrics:
            assert number == len(self.sent) - 1 or at - self.sent[number] < 0.5


async def test_metrics_come_at_each_clients_interval_and_are_the_newest(quiet_node: Node) -> None:
    """A hundred a second arrive, for a little more than two of the longest interval."""
    workspace = "ws-intervals"
    async with (
        producer(quiet_node) as broker,
        no_elected_node(broker, workspace),
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(freeagentics(quiet_node, user(workspace))) for _ in range(5)]
        every, second, half, five, changing = recorders = [Recorder(client) for client in clients]
        await configured(second.client, metrics_interval=1000)
        for recorder in recorders:
            await recorder.client.subscribe(["metrics", "agent_status"])
        await configured(half.client, metrics_interval=500)
        await configured(changing.client, metrics_interval=3_600_000)
        metrics = Metrics(broker, workspace)
        async with asyncio.TaskGroup() as tasks:
            await configured(five.client, metrics_interval=5000)
            reading = [tasks.create_task(recorder.run()) for recorder in recorders]
            publishing = tasks.create_task(metrics.run())
            await until(lambda: five.metrics, 8, "the first after five seconds")
            # Nothing but metrics waits for an interval, and a new one holds from now on.
            await broker.publish(status(workspace, 1))
            await until(lambda: all(recorder.others == ["agent_status"] for recorder in recorders), 1)
            assert changing.metrics == []
            await changing.client.send(configure(metrics_interval=250))
            await until(lambda: len(five.metrics) == 2, 8, "the second after five seconds")
            metrics.is_over = True
            await publishing
            # What came last comes in the end, and nothing twice.
            last = len(metrics.sent) - 1
            await until(lambda: all(last in each.numbers for each in (every, second, half, changing)), 3)
            for task in reading:
                task.cancel()
    seconds = metrics.sent[-1] - metrics.sent[0]
    assert every.numbers == list(range(len(metrics.sent)))
    for recorder, interval, span in (
        (second, 1.0, seconds),
        (half, 0.5, seconds),
        (five, 5.0, seconds),
        (changing, 0.25, seconds / 2),
    ):
        assert recorder.numbers == sorted(set(recorder.numbers))
        assert all(gap > 0.7 * interval for gap in recorder.gaps), (interval, recorder.gaps)
        # The node looks at its clock a few times a second: an interval may be so much longer.
        assert span / (interval + 0.25) - 1 <= len(recorder.metrics) <= span / interval + 1.5, interval
    for recorder in (second, half, five):
        metrics.assert_newest(recorder)


# --- buffer_size ---


async def test_a_client_that_stops_reading_is_closed_when_more_events_wait_than_its_buffer_has(
    start_node: StartNode,
) -> None:
    """One that allows more stays, and has missed nothing when it reads on."""
    node = start_node(**QUIET, max_backlog_bytes=64 * 1024 * 1024, slow_close_seconds=20)
    async with free_staged(node) as stage, stage.client() as reader, contextlib.AsyncExitStack() as stack:
        small, middle, large = clients = [
            await stack.enter_async_context(raw_client(node, user(stage.workspace), receive_bytes=4096))
            for _ in range(3)
        ]
        for client, size in zip(clients, (10, 300, 10_000), strict=True):
            await client.send({"type": "subscribe", "data": {"events": ["agent_status"]}})
            await client.until("subscription_confirmed")
            await client.send(configure(buffer_size=size))
            await client.send({"type": "ping"})
            await client.until("pong")
        await configured(reader, buffer_size=1)
        await reader.subscribe(["agent_status"])
        published = 0
        for closed in (1, 2):
            while node.metric("trunkline_slow_consumers_total", dialect="freeagentics") < closed:
                assert published < 5000
                batch = range(published, published + 10)
                await stage.publish(*(status(stage.workspace, number, note="x" * 16_000) for number in batch))
                published += 10
                await stage.delivered(reader)
        received = []
        for client in (small, middle):
            *messages, warning = (await client.to_the_end())[0]
            received.append(len(messages))
            assert [message["data"]["inference_count"] for message in messages] == list(range(len(messages)))
            assert (warning["type"], warning["data"]["close_code"]) == ("disconnect_warning", 1013)
            assert warning["timestamp"]
        assert received[0] + 100 < received[1] <= published
        numbers = [(await large.until("agent_status")).message["data"]["inference_count"] for _ in range(published)]
        assert numbers == list(range(published))
        await large.send({"type": "ping"})
        await large.until("pong")
        assert [message["type"] for message in await reader.synchronise()] == []


async def test_a_burst_that_is_read_in_time_ends_nobody(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await configured(client, buffer_size=1)
        await client.subscribe(["agent_status"])
        await free_stage.publish(*(status(free_stage.workspace, number) for number in range(1000)))
        assert len(await free_stage.delivered(client)) == 1000


# --- compression ---


@contextlib.asynccontextmanager
async def raw(stage: FreeStage, offer: str | None = OFFER) -> AsyncIterator[RawClient]:
    """A raw client that is subscribed to `agent_status`."""
    async with raw_client(stage.node, user(stage.workspace), offer=offer) as client:
        await client.send({"type": "subscribe", "data": {"events": ["agent_status"]}})
        await client.until("subscription_confirmed")
        yield client


async def set_compression(client: RawClient, *, on: bool) -> None:
    await client.send(configure(compression=on))
    await client.send({"type": "ping"})
    await client.until("pong")


async def test_compression_changes_the_frames_on_a_live_socket(free_stage: FreeStage) -> None:
    """Off until it is asked for; the other clients of the workspace keep what they have."""
    async with raw(free_stage) as client, raw(free_stage) as other:
        assert "permessage-deflate" in client.head
        for on in (None, True, False, True):
            if on is not None:
                await set_compression(client, on=on)
            await free_stage.publish(status(free_stage.workspace, 7, note="again and " * 50))
            frame, plain = await client.until("agent_status"), await other.until("agent_status")
            assert (frame.is_compressed, plain.is_compressed) == (bool(on), False)
            assert frame.message == plain.message
            assert (len(frame.wire) < len(plain.wire) / 2) == bool(on)


async def test_the_clients_of_a_group_share_their_compressed_frames(free_stage: FreeStage) -> None:
    """Byte for byte, whatever each was sent before."""
    async with raw(free_stage) as one:
        await set_compression(one, on=True)
        await free_stage.publish(status(free_stage.workspace, 1, note="seen by one alone " * 20))
        await one.until("agent_status")
        async with raw(free_stage, "permessage-deflate; server_max_window_bits=12") as other:
            await set_compression(other, on=True)
            for number in range(2, 5):
                await free_stage.publish(status(free_stage.workspace, number, note="seen by both " * 20))
                frames = [await client.until("agent_status") for client in (one, other)]
                assert frames[0].is_compressed
                assert frames[0].wire == frames[1].wire


async def test_compression_that_was_not_negotiated_is_not_used(free_stage: FreeStage) -> None:
    async with raw(free_stage, offer=None) as client:
        assert "permessage-deflate" not in client.head
        await set_compression(client, on=True)
        await free_stage.publish(status(free_stage.workspace, 1, note="x" * 500))
        assert not (await client.until("agent_status")).is_compressed


async def test_compressed_messages_of_a_client_are_understood(free_stage: FreeStage) -> None:
    """Before it switches compression on too: what it has negotiated it may use."""
    async with raw(free_stage) as client:
        await client.send({"type": "subscribe", "data": {"events": ["agent_created"]}}, is_compressed=True)
        confirmed = await client.until("subscription_confirmed")
        assert confirmed.message["data"]["events"] == ["agent_status", "agent_created"]


async def test_the_websockets_client_interoperates_with_compression_on(free_stage: FreeStage) -> None:
    async with free_stage.client(compression="deflate") as client:
        assert [extension.name for extension in client.socket.protocol.extensions] == ["permessage-deflate"]
        await configured(client, compression=True)
        await client.subscribe(["agent_status"], [f"agent-{number}" for number in range(200)] + ["a"])
        await free_stage.publish(*(status(free_stage.workspace, n, note="x" * n * 200) for n in range(100)))
        messages = await free_stage.delivered(client)
        assert [len(message["data"]["note"]) for message in messages] == [n * 200 for n in range(100)]


NODE_CLIENT = """
const WebSocket = require('ws');
const ws = new WebSocket(process.argv[1], { perMessageDeflate: { threshold: 0 } });
const send = (type, data) => ws.send(JSON.stringify({ type, data }), { compress: true });
ws.on('open', () => {
    send('configure', { compression: true });
    send('subscribe', { events: ['agent_status'] });
});
ws.on('message', (text) => {
    const message = JSON.parse(text);
    if (message.type === 'subscription_confirmed') console.log(ws.extensions);
    if (message.type === 'agent_status') {
        console.log(message.data.inference_count, message.data.note.length);
        if (message.data.inference_count === 99) send('disconnect', {});
    }
});
ws.on('close', (code) => console.log(code));
"""


async def test_the_ws_of_node_interoperates_with_compression_on(free_stage: FreeStage) -> None:
    if (folders := package_folders()) is None:
        missing("Node or its `ws` package is not there")
    process = await asyncio.create_subprocess_exec(
        "node", "-e", NODE_CLIENT, free_stage.node.ws(f"/api/v1/ws?token={user(free_stage.workspace)}"),
        stdout=subprocess.PIPE, env={"NODE_PATH": folders or ""},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert b"permessage-deflate" in await process.stdout.readline()
        await free_stage.publish(*(status(free_stage.workspace, n, note="x" * n * 200) for n in range(100)))
        lines = (await process.stdout.read()).decode().splitlines()
        await process.wait()
    assert lines == [f"{n} {n * 200}" for n in range(100)] + ["1000"]
