"""What the nodes settle among themselves in Redis: who leads a workspace, what a leader hands down, how they fare.

The lease of a workspace belongs to the node that found it free, as long as that node renews it. Its time is Redis' own.
A leader goes by a stricter one: it counts from before it asked, so it stops before Redis lets another one in.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .errors import Unavailable
from .keyspace import Keyspace
from .script import Script

LEASE_SECONDS = 6.0
# How long the alerts that a leader raised are remembered after their last change.
ALERTS_SECONDS = 3600
# How long a node's beat counts, and how long the last beat of all is kept.
BEAT_COUNTS_SECONDS = 10.0
NODES_SECONDS = 60


class Legacy(NamedTuple):
    """What a new leader finds: the alerts that are raised, and the time (s) on the clock that positions go by."""

    raised: frozenset[str]
    now: float


class Election:
    """One node's part in the elections of all workspaces. Every method raises `Unavailable` when Redis is away."""

    def __init__(self, redis: Redis, keys: Keyspace, node: str) -> None:
        self._redis = redis
        self._keys = keys
        self._node = node
        self._script, self._alerts = Script(redis, "lead"), Script(redis, "alerts")

    async def lead(self, workspaces: Collection[str]) -> set[str]:
        """Get or renew the lease of each that is free or ours, in one round trip; answers those that are ours now.

        They are ours for `LEASE_SECONDS` from before this call, and after `Unavailable` no longer than that.
        """
        milliseconds = int(LEASE_SECONDS * 1000)
        answers = await self._call(workspaces, milliseconds)
        return {workspace for workspace, is_ours in zip(workspaces, answers, strict=True) if is_ours}

    async def resign(self, workspaces: Collection[str]) -> None:
        """Give back what of these is ours, so that another node may lead at once."""
        await self._call(workspaces, 0)

    async def inherit(self, workspace: str) -> Legacy:
        """What the leader before handed down; one round trip."""
        with _redis_away("take over a workspace"):
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.smembers(self._keys.alerts(workspace))
                pipe.time()
                raised, (seconds, microseconds) = await pipe.execute()
        return Legacy(frozenset(name.decode() for name in raised), seconds + microseconds / 1e6)

    async def hand_down(self, workspace: str, raised: Iterable[str]) -> None:
        """Keep the alerts that are raised now for the next leader."""
        with _redis_away("keep alerts"):
            await self._alerts.run([self._keys.alerts(workspace)], [ALERTS_SECONDS, *raised])

    async def _call(self, workspaces: Collection[str], milliseconds: int) -> list[int]:
        if not workspaces:
            return []
        with _redis_away("elect"):
            calls = [([self._keys.election(name)], (self._node, milliseconds)) for name in workspaces]
            return await self._script.run_many(calls)


class Load(NamedTuple):
    """How busy machines are, in percent."""

    cpu: float
    memory: float


class Fleet:
    """How all nodes fare, as each says of itself. Every method raises `Unavailable` when Redis is away."""

    def __init__(self, redis: Redis, keys: Keyspace, node: str) -> None:
        self._redis = redis
        self._keys = keys
        self._node = node
        self._script = Script(redis, "beat")

    async def beat(self, load: Load) -> Load:
        """Say this node's load; answers the mean over all nodes heard within `BEAT_COUNTS_SECONDS`. One round trip."""
        arguments = (self._node, load.cpu, load.memory, int(BEAT_COUNTS_SECONDS * 1000), NODES_SECONDS)
        with _redis_away("beat"):
            answer = [float(value) for value in await self._script.run([self._keys.nodes], arguments)]
        return Load(fmean(answer[::2]), fmean(answer[1::2]))

    async def leave(self) -> None:
        """This node's load counts no longer."""
        with _redis_away("leave the fleet"):
            await self._redis.hdel(self._keys.nodes, self._node)


@contextmanager
def _redis_away(what: str) -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"cannot {what}: {error}") from error
