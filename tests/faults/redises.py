"""The Redis of a fault run, in each topology, with all that can be done to it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker import Unavailable
from broker.local import LocalRedis

from ..proxy import Proxy, proxy
from .clocks import Clock
from .plan import Fault, Plan
from .programs import redis_server, redis_version
from .story import Story

OUR_NAME = "trunkline-tests"  # connections that no fault cuts


AGAIN_SECONDS, ATTEMPTS = 0.5, 6


async def start(redis: LocalRedis) -> None:
    """Start a server, anew if need be: a client's connection may have got its port while it was away."""
    for _ in range(ATTEMPTS - 1):
        try:
            await asyncio.to_thread(redis.start)
        except Unavailable:
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            return
    await asyncio.to_thread(redis.start)


class Clocked(LocalRedis):
    """A redis-server with a clock of its own."""

    def __init__(self, program: str, clock: Clock, **options: Any) -> None:
        super().__init__(program, **options)
        self._clock = clock

    def _command(self, directory: Path, directives: dict[str, str | int]) -> list[str]:
        words = [f"{name}={value}" for name, value in self._clock.environment.items()]
        return ["env", *words, *super()._command(directory, directives)]


class Server:
    """One redis-server, with a lock: what is done to it is done one after the other."""

    def __init__(self, redis: LocalRedis, name: str, clock: Clock) -> None:
        self.redis, self.name, self.clock = redis, name, clock
        self.lock = asyncio.Lock()

    async def start(self) -> None:
        await start(self.redis)

    async def end(self, number: int) -> None:
        """Send it this signal, and wait for its end."""
        process = self.redis.process
        if process is not None:
            process.send_signal(number)
            await asyncio.to_thread(process.wait, 10)

    async def halt(self, seconds: float) -> None:
        """Let it stand still for a while."""
        os.kill(self.redis.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(self.redis.pid, signal.SIGCONT)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Redis]:
        async with Redis(port=self.redis.port, socket_timeout=5, client_name=OUR_NAME, decode_responses=True) as redis:
            yield redis

    async def kill_connections(self, kind: str) -> int:
        """All connections of one kind but our own; answers how many."""
        async with self.admin() as redis:
            victims = [one["id"] for one in await redis.client_list(_type=kind) if one["name"] != OUR_NAME]
            return sum([int(await redis.client_kill_filter(_id=victim)) for victim in victims])


class Redises:
    """One Redis; the other topologies extend it.

    `urls` are where the nodes find it, each over a link of its own; `producers_url` is over another, `url` over none.
    """

    replicas = 0  # of each master

    def __init__(self, plan: Plan, directory: Path, library: Path | None, story: Story) -> None:
        self.plan, self.directory, self.story, self._library = plan, directory, story, library
        self.servers: list[Server] = []
        self.links: list[Proxy] = []
        self._lives = AsyncExitStack()

    @property
    def url(self) -> str:
        return self.servers[0].redis.url

    @property
    def urls(self) -> list[str]:
        return [link.url for link in self.links[:-1]]

    @property
    def producers_url(self) -> str:
        return self.links[-1].url

    async def start(self) -> None:
        clock = Clock(self._library, self.directory / "redis.clock")
        self.story.say("redis", f"version {self.version}")
        redis = Clocked(redis_server(is_old=self.plan.is_old), clock, **self.persistence)
        server = Server(redis, "redis", clock)
        self.servers.append(server)
        self._lives.callback(server.redis.close)
        await server.start()
        for _ in range(self.plan.nodes + 1):
            self.links.append(await self._lives.enter_async_context(proxy(server.redis.port)))

    async def close(self) -> None:
        await self._lives.aclose()

    @property
    def deeds(self) -> dict[str, Callable[[Fault], Awaitable[str]]]:
        """Faults of this topology alone."""
        return {}

    async def revive(self, server: Server) -> None:
        """Start a server that has ended."""
        await server.start()

    async def is_well(self) -> bool:
        """True when it takes writes."""
        with suppress(RedisError, OSError):
            async with self.servers[0].admin() as redis:
                return bool(await redis.ping())
        return False

    @property
    def version(self) -> str:
        """Of its servers, which need not be the one that was planned."""
        return "{}.{}".format(*redis_version(is_old=self.plan.is_old))

    @property
    def persistence(self) -> dict[str, Any]:
        """The directives of its servers."""
        if self.plan.persistence == "none":
            return {}
        return {"appendonly": "yes", "appendfsync": self.plan.persistence}
