"""Reading a workspace's log: history by position. Its writer is scripts/publish.lua."""

import logging
from collections.abc import Collection
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .errors import Unavailable
from .events import Carried, unpack
from .keyspace import Keyspace
from .positions import START, Position, order, parse

logger = logging.getLogger("trunkline.log")

# A page is as many events as make about so many bytes, as far as the page before it tells.
PAGE_BYTES = 256 * 1024
FIRST_PAGE_EVENTS = 64
MAX_PAGE_EVENTS = 500


class Bounds(NamedTuple):
    """Where a reader may start: is its position valid, does the log go on entry by entry from it, its oldest entry."""

    is_valid: bool
    is_entry: bool
    oldest: Position | None


class Page(NamedTuple):
    """Events in order; `end` is the position up to which the log was read, `is_last` that nothing was behind it."""

    events: list[Carried]
    end: Position
    is_last: bool
    limit: int = FIRST_PAGE_EVENTS  # for the next page


class Log:
    """The logs of all workspaces, for reading. Every method raises `Unavailable` when Redis cannot be reached."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self._redis = redis
        self._keys = keys

    async def page(self, workspace: str, after: str, limit: int = FIRST_PAGE_EVENTS) -> Page:
        """Up to `limit` events after the position `after`. An entry that is no event is skipped, and logged."""
        try:
            entries: list[Any] = await self._redis.xrange(self._keys.log(workspace), f"({after}", "+", limit) or []
        except (RedisError, OSError) as error:
            raise Unavailable(f"cannot read the log: {error}") from error
        events = []
        for raw_position, fields in entries:
            try:
                events.append(unpack(b"{" + fields[b"e"], workspace, position=raw_position.decode()))
            except Exception as error:
                logger.error("entry %s of a workspace's log is no event: %s", raw_position.decode(), error)
        end = Position(entries[-1][0].decode()) if entries else Position(after)
        size = sum(len(bytes(event.data)) for event in events) // max(1, len(events)) + 300
        return Page(events, end, len(entries) < limit, max(1, min(MAX_PAGE_EVENTS, PAGE_BYTES // size)))

    async def heads(self, workspace: str, agents: Collection[str | None]) -> dict[str | None, Position]:
        """The newest positions of `agents` (None: of the whole workspace), `START` where there is none."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for agent in agents:
                    pipe.hget(self._keys.head(workspace, agent), "position")
                answers = await pipe.execute()
        except (RedisError, OSError) as error:
            raise Unavailable(f"cannot read positions: {error}") from error
        return {agent: Position(head.decode()) if head else START for agent, head in zip(agents, answers, strict=True)}

    async def purged(self, workspace: str) -> Position:
        """Up to where events of deleted agents may have been taken out of the log (purge.lua)."""
        try:
            position: Any = await self._redis.hget(self._keys.workspace(workspace), "purged")
        except (RedisError, OSError) as error:
            raise Unavailable(f"cannot read positions: {error}") from error
        return Position(position.decode()) if position else START

    async def ends(self, workspace: str, executions: Collection[str]) -> list[Carried]:
        """The last events of those runs that have ended, in their order, also where the log has let them go."""
        keys = [self._keys.end(workspace, execution) for execution in executions]
        try:
            found: Any = await self._redis.mget(keys) if keys else []
        except (RedisError, OSError) as error:
            raise Unavailable(f"cannot read how runs ended: {error}") from error
        entries = [entry.partition(b" ") for entry in found if entry is not None]
        events = [unpack(b"{" + event, workspace, position=position.decode()) for position, _, event in entries]
        return sorted(events, key=lambda event: order(event.id or START))

    async def oldest(self, workspace: str) -> Position | None:
        """The oldest position in the log."""
        return (await self.bounds(workspace, START)).oldest

    async def bounds(self, workspace: str, since: str, agents: Collection[str] = ()) -> Bounds:
        """Is `since` a position that history can go on from?

        It is when its entry is in the log, or was just before the oldest one, or when it is the newest of the
        workspace, or of all `agents` (the ones that a filter pins) together. `START` is when the log was never cut.
        """
        numbers = parse(since)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xrange(self._keys.log(workspace), "-", "+", 1)
                if numbers is not None:
                    pipe.xrange(self._keys.log(workspace), since, since, 1)
                    pipe.hget(self._keys.head(workspace), "position")
                    for agent in agents:
                        pipe.hget(self._keys.head(workspace, agent), "position")
                answers = await pipe.execute()
        except (RedisError, OSError) as error:
            raise Unavailable(f"cannot read the log: {error}") from error
        first, *rest = answers
        oldest = Position(first[0][0].decode()) if first else None
        if numbers is None:
            return Bounds(False, False, oldest)
        entry, newest, *heads = rest
        if numbers == (0, 0):
            if agents and not any(heads):
                return Bounds(True, False, oldest)  # they never said anything
            never_cut = b'"prev":"%s"' % START.encode() in first[0][1].get(b"e", b"")[:32] if first else newest is None
            return Bounds(never_cut, False, oldest)
        # What is left begins just behind it: nothing is missing, though the entry itself has been let go.
        is_entry = bool(entry) or (bool(first) and first[0][1].get(b"e", b"").startswith(b'"prev":"%d-%d"' % numbers))
        is_newest = newest is not None and parse(newest.decode()) == numbers
        is_newest_of_agents = numbers == max((parse(head.decode()) or (0, 0) for head in heads if head), default=None)
        return Bounds(is_entry or is_newest or is_newest_of_agents, is_entry, oldest)
