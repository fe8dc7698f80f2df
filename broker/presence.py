"""Presence: an agent is online as long as there are signs of life of it, from whatever process.

Leases    A sign of life is a lease of `GRACE_SECONDS`, by Redis' own time: of an agent's socket at a node, of who
          listens for its commands, of a program that calls `Agents.present`. All renew the same one. The first sign is
          `agent.online`; when the lease ends `agent.offline` is told, however many there were. FreeAgentics' clients
          hear of both by `agent_status`.
Leaving   A goodbye is the last sign of life and says why; what comes within the grace, anywhere, takes it back.
Sweeping  One elected node looks every second for leases that have ended. The election spares work, no more: the script
          decides and tells as one step, so that two that sweep tell each once.
Outages   While Redis was away or stood still, or no node was there, nobody could give a sign of life; and none is good
          for anything once Redis' clock has leapt. All of it shows as time of Redis' that whoever sweeps has not seen
          pass. After that nobody is swept for the length of a grace, in which all who live say so: to them nothing has
          happened.
Finding   The workspaces in which somebody is present are a set of their own. A name goes in before the lease, and again
          after it: whoever sweeps takes out a workspace where nobody is, and may do so between the two.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .events import now
from .keyspace import STATE_SECONDS, Keyspace
from .patience import pause
from .script import Script

logger = logging.getLogger("trunkline.presence")

# Without a sign of life for so long an agent has gone.
GRACE_SECONDS = 15.0
# How often whoever keeps agents present says so.
BEAT_SECONDS = 5.0
SWEEP_SECONDS = 1.0
LEASE_SECONDS = 6.0
LEAVE_SECONDS = 1.0
MAX_AGENTS = 100  # in one call

CAME = "Client connected"
LEFT = "Client disconnected"  # the words of seed 000, "agent.offline"
TIMED_OUT = "Client timed out"


class Presence:
    """The leases of all workspaces. Every method raises redis-py's errors, and may be called again then."""

    def __init__(self, redis: Redis, keys: Keyspace, *, log_events: int, log_seconds: int) -> None:
        self._redis = redis
        self._keys = keys
        self._bounds = (log_events, log_seconds, STATE_SECONDS, keys.publish)
        self._script = Script(redis, "presence")

    async def renew(self, workspace: str, agents: Sequence[str]) -> list[bool]:
        """The agents live. False for each that was deleted, of which nothing is kept."""
        await self._redis.sadd(self._keys.workspaces, workspace)
        answers = await self._each(workspace, "renew", CAME, agents)
        await self._redis.sadd(self._keys.workspaces, workspace)
        return [bool(is_kept) for is_kept in answers]

    async def leave(self, workspace: str, agents: Sequence[str]) -> None:
        """One of those who kept them present has left; the others will say that they are there."""
        await self._each(workspace, "leave", LEFT, agents)

    async def sweep(self, workspaces: Sequence[str], until: float) -> list[int]:
        """Tell whose leases had ended by then, in Redis' time (s); answers how many are left in each workspace."""
        terms = [MAX_AGENTS, int(until * 1000)]
        left = dict.fromkeys(workspaces, 0)
        some = list(workspaces)
        while some:
            answers = await self._script.run_many(
                [self._call(workspace, "sweep", TIMED_OUT, terms) for workspace in some]
            )
            left |= {workspace: remaining for workspace, (_, remaining) in zip(some, answers, strict=True)}
            some = [name for name, (ended, _) in zip(some, answers, strict=True) if ended == MAX_AGENTS]
            await pause(0)
        return list(left.values())

    async def _each(self, workspace: str, action: str, reason: str, agents: Sequence[str]) -> list[int]:
        calls = [self._call(workspace, action, reason, some) for some in _batches(agents)]
        return [one for answer in await self._script.run_many(calls) for one in answer] if calls else []

    def _call(
        self, workspace: str, action: str, reason: str, rest: Sequence[str | int]
    ) -> tuple[Sequence[str], Sequence[str | int]]:
        keys = self._keys
        names = [keys.presence(workspace), keys.farewells(workspace), keys.deleted(workspace)]
        names += [keys.log(workspace), keys.workspace(workspace), keys.online(workspace), keys.offline(workspace)]
        terms: list[str | int] = [
            action,
            workspace,
            now(),
            round(GRACE_SECONDS * 1000),
            *self._bounds,
            keys.channel(workspace),
        ]
        return names, [*terms, keys.agent(workspace, ""), reason, *rest]


class Sweeper:
    """A node's part in telling which agents have gone."""

    def __init__(self, redis: Redis, keys: Keyspace, presence: Presence, node: str) -> None:
        """`node` names this life of the node, and no other."""
        self._redis = redis
        self._keys = keys
        self._presence = presence
        self._node = node
        self._lead = Script(redis, "lead")
        self._is_redis_up = True
        self._seen: float | None = None  # Redis' time (s) at the last turn
        self._sweeps_from = 0.0

    async def run(self) -> None:
        """Sweep whenever this node is elected, until cancelled; then let another node."""
        try:
            while True:
                await self._turn()
                await pause(SWEEP_SECONDS)
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._contest(0)

    async def _turn(self) -> None:
        try:
            is_elected = await self._contest(LEASE_SECONDS)
            now = await self._now()
            if is_elected and now >= self._sweeps_from:
                await self._sweep(now)
        except (RedisError, OSError) as error:
            if self._is_redis_up:
                logger.warning("cannot look for agents that have gone: %s", type(error).__name__)
            self._is_redis_up = False
            self._seen = None
        except Exception:
            logger.exception("a bug: agents that have gone are not told of")
        else:
            self._is_redis_up = True

    async def _now(self) -> float:
        """Redis' time (s). When some of it has passed unseen, nobody is swept for a grace from now on."""
        seconds, microseconds = await self._redis.time()
        now = seconds + microseconds / 1e6
        if self._seen is None or not 0 <= now - self._seen <= BEAT_SECONDS:
            self._sweeps_from = now + GRACE_SECONDS
        self._seen = now
        return now

    async def _contest(self, seconds: float) -> bool:
        return bool(await self._lead.run([self._keys.sweeper], [self._node, round(seconds * 1000)]))

    async def _sweep(self, until: float) -> None:
        name = self._keys.workspaces
        found: Any = await self._redis.smembers(name)
        for some in _batches(workspace.decode() for workspace in found):
            empty = await self._without_agents(some, until)
            if empty:
                await self._redis.srem(name, *empty)
                # Somebody may have come meanwhile, whose lease is there already.
                if again := set(empty) - set(await self._without_agents(empty, until)):
                    await self._redis.sadd(name, *again)

    async def _without_agents(self, workspaces: Sequence[str], until: float) -> list[str]:
        left = await self._presence.sweep(workspaces, until)
        return [workspace for workspace, number in zip(workspaces, left, strict=True) if not number]


def _batches(names: Iterable[str]) -> Iterable[list[str]]:
    rest = iter(names)
    while some := list(islice(rest, MAX_AGENTS)):
        yield some
