"""The probe: a message of our own that a follower's connection must bring back.

A connection may answer and yet bring nothing of what is published: its subscriptions were taken away, something on the
way swallows what is pushed, or it leads to another server than the one that is published to. Nobody sees that from the
outside: no news looks like deafness. So the node publishes something itself, from time to time, as events are
published: through the broker's client, at the follower's server, on a channel that only the follower subscribes to.
"""

import asyncio
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .keyspace import Keyspace

# What came of a probe. Unsent: Redis did not take it, so nothing is known.
Outcome = Literal["heard", "missed", "unsent"]


class Probe:
    """The probes over one connection, one at a time."""

    def __init__(self, publisher: Redis, keys: Keyspace) -> None:
        self._publisher = publisher
        self._keys = keys
        self._number = 0
        self._heard = asyncio.Event()
        self.name: str | None = None  # of a workspace that there is not; the connection is subscribed to its channel

    @property
    def channel(self) -> str:
        return self._keys.channel(self.name or "")

    async def send(self) -> bool:
        """Publish the next one; False when Redis did not take it."""
        self._number += 1
        self._heard.clear()
        try:
            await self._publisher.execute_command(  # type: ignore[no-untyped-call]
                self._keys.publish, self.channel, self._number
            )
        except (RedisError, OSError):
            return False
        return True

    def hear(self, channel: bytes, message: bytes) -> None:
        """A message came on a channel that is nobody's line."""
        if message == b"%d" % self._number and channel == self.channel.encode():
            self._heard.set()

    @property
    def is_heard(self) -> bool:
        return self._heard.is_set()

    async def heard(self, seconds: float) -> bool:
        """Wait for it, so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True
