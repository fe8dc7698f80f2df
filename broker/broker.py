"""The front of the package: opens what producers, watchers and agents need, holds its parts, closes them in reverse."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Self

from redis.exceptions import RedisError

from . import address as addresses
from .agents import Agents
from .commands import Command
from .commands.listener import Listener
from .errors import Invalid, Unavailable
from .events import Event, Packed, pack
from .keyspace import Keyspace, check_id, check_workspace
from .log import Log
from .positions import Position
from .presence import Presence
from .producer import Producer
from .replicas import Replicas
from .topology import clients

LOG_EVENTS = 10_000
LOG_SECONDS = 3600


class Broker:
    """A producer's and an agent's door to Trunkline.

        async with Broker.connect("redis://localhost:6379/0") as broker:
            position = await broker.publish(Event(type="agent.online", workspace_id="ws-456", agent_id="agent-123"))

    One broker serves a whole program; it belongs to the event loop that opened it.
    """

    def __init__(
        self,
        address: addresses.Address,
        *,
        prefix: str = "trunkline",
        workspace_id: str | None = None,
        log_events: int = LOG_EVENTS,
        log_seconds: int = LOG_SECONDS,
        patience_seconds: float = 10.0,
        name: str = "trunkline",
    ) -> None:
        self.address = address
        self.keys = Keyspace(prefix, is_sharded=address.is_cluster)
        self.workspace_id = workspace_id
        self.log_events = log_events
        self.log_seconds = log_seconds
        self.redis = clients.client(address, name)
        self._reads = clients.client(address, f"{name}-reads", retries=2)
        self.log = Log(self._reads, self.keys)
        self._replicas = Replicas(address, self.keys, f"{name}-replicas")
        self.producer = Producer(
            self.redis,
            self.keys,
            self._replicas,
            log_events=log_events,
            log_seconds=log_seconds,
            patience=patience_seconds,
        )
        self.presence = Presence(self.redis, self.keys, log_events=log_events, log_seconds=log_seconds)
        self.agents = Agents(self)
        self._listeners: dict[str, Listener] = {}

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "trunkline",
        workspace_id: str | None = None,
        log_events: int = LOG_EVENTS,
        log_seconds: int = LOG_SECONDS,
        patience_seconds: float = 10.0,
    ) -> AsyncIterator[Self]:
        """Open a broker for the length of an `async with`.

        `workspace_id` is where `commands` listens unless it is told.
        `log_events` and `log_seconds` bound the workspaces' logs; all producers of a workspace should say the same.
        `patience_seconds` is how long a publish goes on trying while Redis takes nothing.
        Raises `Invalid` for a URL or prefix that cannot be, `Unavailable` when Redis does not answer.
        """
        broker = cls(
            addresses.read(url),
            prefix=prefix,
            workspace_id=workspace_id,
            log_events=log_events,
            log_seconds=log_seconds,
            patience_seconds=patience_seconds,
        )
        try:
            await broker.check()
            yield broker
        finally:
            await broker.close()

    async def check(self) -> None:
        """One round trip. Raises `Unavailable` with the reason."""
        try:
            await self.redis.ping()
        except (RedisError, OSError) as error:
            raise Unavailable(f"cannot use Redis at {self.address}: {error}") from error

    async def close(self) -> None:
        await asyncio.gather(*(listener.close() for listener in self._listeners.values()))
        await self.producer.close()
        await self._replicas.close()
        await self._reads.aclose()
        await self.redis.aclose()

    async def publish(self, event: Event, *, min_replicas: int = 0) -> Position | None:
        """Append `event` to its workspace's log and tell every node, as one step; answers its position.

        Applied once, however often it has to be sent; positions of one workspace only grow. An ephemeral event has no
        position (None), nor has one of an agent that was deleted: it is live only. Raises `Invalid` with the path of
        the wrong field, `Unavailable` when Redis takes nothing for `patience_seconds`: its fate is unknown then, and
        publishing an equal event again within five minutes is safe.

        With `min_replicas` it is answered only when so many replicas of Redis have the event: it is there after a
        failover to any of them, and one that a failover took before is published again. Raises `Unreplicated` when that
        is not so for another `patience_seconds`: the event is in the log, and a failover may still lose it.
        """
        return (await self.producer.publish([pack(event)], _check_replicas(min_replicas)))[0]

    async def publish_many(self, events: Iterable[Event], *, min_replicas: int = 0) -> list[Position | None]:
        """Publish `events` in their order; answers their positions in the same order.

        All are validated before the first is sent: after `Invalid` (its path starts with the index: `[3].data.step`)
        nothing has happened. After `Unavailable` some may have been applied; calling again with equal events is safe.
        `min_replicas` is as for `publish`, for all of them.
        """
        return await self.producer.publish(_pack_all(events), _check_replicas(min_replicas))

    def commands(self, agent_id: str, *, workspace_id: str | None = None) -> AsyncGenerator[Command, None]:
        """What the agent is asked to do, for as long as the iterator lives: meanwhile the agent is present.

            async for command in broker.commands("agent-123"):
                await command.done({"new_status": "idle"})

        In the order of sending, each at least once: a command that is not settled when its listener dies or leaves goes
        to the next one; one whose deadline has passed to nobody. Several listeners for one agent share its commands.
        An outage of Redis is waited out. The iterator ends by `aclose` (`contextlib.aclosing` does it at once), by
        cancellation, with the broker, and when the agent is deleted. Raises `Invalid` for an id that is none, or
        without any workspace.
        """
        workspace = self.workspace_id if workspace_id is None else workspace_id
        if workspace is None:
            raise Invalid("workspace_id", "expected one here or in Broker.connect")
        workspace, agent = check_workspace(workspace, "workspace_id"), check_id(agent_id, "agent_id")
        listener = self._listeners.get(workspace)
        if listener is None:
            listener = self._listeners[workspace] = Listener(
                self.redis, self.address, self.keys, self.presence, workspace
            )
        return listener.commands(agent)


def _check_replicas(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise Invalid("min_replicas", "expected a number of replicas, 0 or more")
    return number


def _pack_all(events: Iterable[Event]) -> list[Packed]:
    packed = []
    for index, event in enumerate(events):
        try:
            packed.append(pack(event))
        except Invalid as error:
            raise Invalid(error.path.replace("$", f"[{index}]", 1), error.reason) from error
    return packed
