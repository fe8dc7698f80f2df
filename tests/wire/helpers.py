"""What the wire's tests share: a workspace with somebody who sees everything in it, and clients with bad habits."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import websockets.asyncio.client
from websockets.frames import Frame, Opcode
from websockets.protocol import Event as FrameEvent

from broker import Broker, Event

from ..support import Client, Node, maxicore, token


def producer(node: Node) -> Any:
    """A broker on the Redis of `node`, to be entered."""
    return Broker.connect(node.redis_url, prefix=node.prefix)


def progress(
    workspace: str, step: int = 1, *, agent: str | None = "agent-123", task: str = "task-456", **options: Any
) -> Event:
    """A `task.progress`, known again by its step."""
    data = {"task_id": task, "step": step}
    return Event(type="task.progress", workspace_id=workspace, agent_id=agent, data=data, **options)


def as_event(example: dict[str, Any], workspace: str) -> Event:
    """The event that a producer publishes to have `example` appear."""
    data = {key: value for key, value in example.items() if key not in ("type", "timestamp", "agent_id")}
    agent = example.get("agent_id", "agent-123")
    return Event(
        type=example["type"], workspace_id=workspace, agent_id=agent, data=data, timestamp=example.get("timestamp")
    )


def steps(messages: list[dict[str, Any]]) -> list[int]:
    """The steps of the `task.progress` events among `messages`."""
    return [message["step"] for message in messages if message["type"] == "task.progress"]


async def receive_steps(client: Client, count: int) -> list[int]:
    """The steps of the next `count` messages."""
    return steps([await client.receive() for _ in range(count)])


async def ask(client: Client, message: Any) -> list[dict[str, Any]]:
    """Everything that came in answer to `message`; nothing, when it succeeded in silence."""
    await client.send(message)
    return await client.synchronise()


def errors(messages: list[dict[str, Any]]) -> list[str]:
    """The codes of the errors among `messages`; each is complete."""
    found = [message["error"] for message in messages if message["type"] == "error"]
    assert all(error["message"] and isinstance(error["message"], str) for error in found), found
    return [error["code"] for error in found]


class Stage:
    """Workspaces of one test, a producer, and a witness who is sent everything that is published in them.

    Once the witness has an event, the node has handed it to everybody: a client that then asks and is answered has
    all that it will ever get of it.
    """

    def __init__(self, node: Node, broker: Broker, witness: Client, workspaces: list[str]) -> None:
        self.node, self.broker, self.witness, self.workspaces = node, broker, witness, workspaces
        self._awaited: set[tuple[str, str]] = set()

    @property
    def workspace(self) -> str:
        return self.workspaces[0]

    @property
    def other(self) -> str:
        return self.workspaces[1]

    def client(self, *workspaces: str, query: str = "") -> contextlib.AbstractAsyncContextManager[Client]:
        """A client with a token for `workspaces`; without any, for the first."""
        return maxicore(self.node, token(*(workspaces or [self.workspace])), query)

    async def publish(self, *events: Event) -> list[str]:
        """Publish durable events; their positions."""
        positions = [str(await self.broker.publish(event)) for event in events]
        self._awaited |= {(event.workspace_id, position) for event, position in zip(events, positions, strict=True)}
        return positions

    async def settle(self) -> None:
        """Until the node has handed on everything published up to now: to who comes later it is no longer live."""
        while self._awaited:
            event = await self.witness.receive()
            self._awaited.discard((event["workspace_id"], event["event_id"]))

    async def delivered(self, client: Client) -> list[dict[str, Any]]:
        """What `client` was sent and did not read yet, everything published up to now included."""
        await self.settle()
        return await client.synchronise()


@contextlib.asynccontextmanager
async def staged(node: Node, workspaces: list[str] | None = None) -> AsyncIterator[Stage]:
    """A stage on `node`: in workspaces of these names, or in two that nobody else has."""
    name = f"ws-{secrets.token_hex(4)}"
    workspaces = workspaces or [name, f"{name}-b"]
    async with producer(node) as broker, maxicore(node, token(*workspaces)) as witness:
        await witness.subscribe()
        await witness.synchronise()
        yield Stage(node, broker, witness, workspaces)


class Deaf(websockets.asyncio.client.ClientConnection):
    """A connection that leaves ping frames unanswered, and counts them. Used as `create_connection=Deaf`."""

    def __init__(self, protocol: Any, **options: Any) -> None:
        super().__init__(protocol, **options)
        self.ping_frames = 0
        send = protocol.send_frame
        protocol.send_frame = lambda frame: None if frame.opcode is Opcode.PONG else send(frame)

    def process_event(self, event: FrameEvent) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.ping_frames += 1
        super().process_event(event)
