"""FreeAgentics clients over a real socket, for every test that has one."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import websockets.asyncio.client

from broker import Event
from broker.catalog import CATALOG

from .support import Client, Node, token
from .wire.helpers import Stage, producer

TYPES = [name for name, kind in CATALOG.items() if kind.dialect == "freeagentics"]

# What a node's machine and other tests do to it raises no alert, and all of them may come from one address.
QUIET = {"alert_cpu_percent": 0, "alert_memory_percent": 0, "max_connections_per_address": -1}


class FreeAgentics(Client):
    """A FreeAgentics client that keeps all it was sent. `greeting` is what the server said unasked.

    That is `connection_established` and `connection_pool_info`; of a client that was refused its `connection_error`.
    """

    greeting: list[dict[str, Any]]

    async def greet(self) -> None:
        """Read the greeting."""
        self.greeting = [await self.receive()]
        if self.greeting[0]["type"] == "connection_established":
            self.greeting.append(await self.receive())

    async def subscribe(  # type: ignore[override]
        self, events: list[str], agents: list[str] | None = None, filters: Any = None, since: Any = None
    ) -> dict[str, Any]:
        """Subscribe; answers the confirmation. With `since`, what was missed comes after it."""
        given = {"events": events, "agents": agents, "filters": filters, "since": since}
        data = {name: value for name, value in given.items() if value is not None}
        return await self.confirmed({"type": "subscribe", "data": data})

    async def unsubscribe(self, **data: Any) -> dict[str, Any]:
        """Unsubscribe; answers the confirmation."""
        return await self.confirmed({"type": "unsubscribe", "data": data})

    async def confirmed(self, message: Any) -> dict[str, Any]:
        """Send `message`; answers the confirmation. What comes before it is kept in `messages` alone."""
        await self.send(message)
        while (answer := await self.receive())["type"] != "subscription_confirmed":
            assert not answer["type"].endswith("_error"), answer
        return answer

    async def until(self, *types: str, seconds: float = 10.0) -> dict[str, Any]:
        """The next message of one of `types`; others before it are kept in `messages` alone."""
        while (message := await self.receive(seconds))["type"] not in types:
            pass
        return message


@contextlib.asynccontextmanager
async def freeagentics(
    node: Node, credentials: str | None = None, query: str = "", **options: Any
) -> AsyncIterator[FreeAgentics]:
    """A client whose greeting is read, connected with `?token=` unless `credentials` is an empty string.

    Without credentials it is a user of its own, who may read events in ws-456.
    """
    credentials = user() if credentials is None else credentials
    path = "/api/v1/ws?" + "&".join(part for part in (f"token={credentials}" if credentials else "", query) if part)
    options = {"ping_interval": None, "max_size": None, "max_queue": None, "compression": None, "proxy": None} | options
    async with websockets.asyncio.client.connect(node.ws(path), **options) as socket:
        client = FreeAgentics(socket)
        await client.greet()
        yield client


def user(*workspaces: str, **claims: Any) -> str:
    """A token of a user nobody else is: limits are counted per user."""
    return token(*workspaces, **({"sub": f"user-{secrets.token_hex(4)}"} | claims))


class FreeStage(Stage):
    """A stage whose clients and witness speak FreeAgentics. The witness sees everything but `metrics_update`."""

    def client(
        self, *workspaces: str, query: str = "", **options: Any
    ) -> contextlib.AbstractAsyncContextManager[FreeAgentics]:
        """A client of a user of its own with a token for `workspaces`; without any, for the first."""
        return freeagentics(self.node, user(*(workspaces or [self.workspace])), query, **options)

    async def publish(self, *events: Event) -> list[str]:
        """Publish events; the positions of the durable ones."""
        positions = await self.broker.publish_many(events)
        for event, position in zip(events, positions, strict=True):
            if position is not None:
                self._awaited.add((event.workspace_id, position))
        return [position for position in positions if position is not None]


@contextlib.asynccontextmanager
async def free_staged(node: Node, workspaces: list[str] | None = None) -> AsyncIterator[FreeStage]:
    """A stage on `node`: in workspaces of these names, or in two that nobody else has."""
    name = f"ws-{secrets.token_hex(4)}"
    workspaces = workspaces or [name, f"{name}-b"]
    async with producer(node) as broker, freeagentics(node, user(*workspaces)) as witness:
        await witness.subscribe([kind for kind in TYPES if kind != "metrics_update"])
        yield FreeStage(node, broker, witness, workspaces)
