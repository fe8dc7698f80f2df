"""Replays: a client that comes back with a position first gets what it missed, once and in order, then what is live.

    hold live events (a group of its own) → join the channels → is the position valid? → read the log to its end
    → let everything that Redis had published by then pass the feed → hand on what was held behind the end → its group

Clients that resume in the same workspace at the same time share one walk through its log: each page is read and decoded
once, each event encoded once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from broker import Unavailable
from broker.events import Carried
from broker.feed import Feed
from broker.log import Log, Page
from broker.patience import pause
from broker.positions import Position, is_after, order, parse

from .dialects import Variant
from .hub import Group, Hub, agents_of, frames_of, matches
from .messages import Follow, GapSaid, Tell
from .metrics import Metrics

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger("trunkline.replay")

_LONGEST_PAUSE = 2.0

P = ParamSpec("P")
T = TypeVar("T")


class Resume:
    """One client's way back. `cursors` are the positions up to which it has everything, by workspace."""

    def __init__(self, connection: "Connection", variant: Variant, follow: Follow, group: Group) -> None:
        self.connection = connection
        self.variant = variant
        self.follow = follow
        self.group = group
        self.cursors: dict[str, Position] = {}
        # Where live events began to be held: before it earlier subscriptions have delivered what they match.
        self.floors: dict[str, Position] = {}
        # Workspaces whose cursor is an entry of the log, so that a cut behind it can be seen.
        self.on_entry: set[str] = set()
        self.outcome = "complete"

    def wants(self, event: Carried) -> bool:
        """True when the replay owes this event."""
        follow = self.follow
        floor = self.floors.get(event.workspace_id)
        if event.id is not None and floor is not None and is_after(event.id, floor):
            return matches(follow.interest, event)
        return matches(follow.fresh, event) and not matches(follow.before, event)

    def take(self, workspace: str, page: Page) -> None:
        """Write what a page holds for this client."""
        cursor = self.cursors[workspace]
        behind = [event for event in page.events if event.id is not None and is_after(event.id, cursor)]
        if behind and workspace in self.on_entry and is_after(behind[0].prev or cursor, cursor):
            # The log was cut while we walked: between the cursor and this page something is missing.
            self.say_gap(workspace, cursor, behind[0].id)
        for _, data in frames_of([event for event in behind if self.wants(event)], self.variant):
            self.connection.write(data)
        if is_after(page.end, cursor):
            self.cursors[workspace] = page.end
            self.on_entry.add(workspace)

    def say_gap(self, workspace: str, since: str, oldest: str | None) -> None:
        self.outcome = "gap"
        self.connection.perform([Tell(GapSaid(workspace, since, oldest))])


class Replays:
    """All replays of a node."""

    def __init__(self, log: Log, feed: Feed, hub: Hub, metrics: Metrics) -> None:
        self._log = log
        self._feed = feed
        self._hub = hub
        self._metrics = metrics
        self._walks: dict[str, Walk] = {}

    async def resume(
        self, connection: "Connection", variant: Variant, follow: Follow, joined: "asyncio.Future[None] | None"
    ) -> None:
        """Perform a `Follow` with positions."""
        assert follow.since is not None
        group = self._hub.hold(connection, variant, follow.interest, 0.0)
        resume = Resume(connection, variant, follow, group)
        for workspace in follow.since:
            agents = agents_of(follow.before, workspace)
            if agents != frozenset() and (floor := self._feed.position(workspace, agents)) is not None:
                resume.floors[workspace] = floor
        if joined is not None:
            await joined
        for workspace, since in follow.since.items():
            await self._begin(resume, workspace, since)
        while not connection.is_gone:
            group.has_overflowed = False
            await asyncio.gather(*(self._walk(resume, workspace) for workspace in resume.cursors))
            for workspace in resume.cursors:
                await self._feed.settle(workspace)
            if not group.has_overflowed:
                break
        self._end(resume)

    async def _begin(self, resume: Resume, workspace: str, since: str) -> None:
        """Set the cursor of a workspace, or say the gap."""
        agents = agents_of(resume.follow.fresh, workspace)
        bounds = await _patiently(self._log.bounds, workspace, since, agents or ())
        if not bounds.is_valid:
            resume.say_gap(workspace, since, bounds.oldest)
            return
        numbers = parse(since)
        assert numbers is not None
        resume.cursors[workspace] = Position(f"{numbers[0]}-{numbers[1]}")
        if bounds.is_entry:
            resume.on_entry.add(workspace)

    async def _walk(self, resume: Resume, workspace: str) -> None:
        """Read the log to its end for this client, at its own pace."""
        is_through = False
        while not is_through:
            walk = self._walks.get(workspace)
            if walk is None:
                walk = self._walks[workspace] = Walk(self._log, workspace, self._walks)
            is_through = await walk.join(resume)
            if not is_through and not await resume.connection.drained():
                return

    def _end(self, resume: Resume) -> None:
        """Hand on what was held behind the end of the log, and take its place among the others. Waits for nothing."""
        connection, group = resume.connection, resume.group
        if connection.is_gone:
            return
        held = [event for event in group.held or () if not self._was_replayed(resume, event)]
        for _, data in frames_of(held, resume.variant):
            connection.write(data)
        self._metrics.resumes.add(resume.outcome)
        connection.place(resume.follow.interest)

    def _was_replayed(self, resume: Resume, event: Carried) -> bool:
        cursor = resume.cursors.get(event.workspace_id)
        return event.id is not None and cursor is not None and not is_after(event.id, cursor) and resume.wants(event)


class Walk:
    """One reader of a workspace's log for all who resume there now."""

    def __init__(self, log: Log, workspace: str, walks: dict[str, "Walk"]) -> None:
        self._log = log
        self._workspace = workspace
        self._walks = walks
        self._waiting: list[tuple[Resume, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    def join(self, resume: Resume) -> "asyncio.Future[bool]":
        """Answers True at the end of the log, False when the client must drain first."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((resume, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        """Walk from the oldest cursor; whoever stands at or behind ours may come along."""
        party: list[tuple[Resume, asyncio.Future[bool]]] = []
        cursor = Position("")
        try:
            while party or self._waiting:
                if not party:
                    cursor = min((self._cursor(resume) for resume, _ in self._waiting), key=order)
                joining = [entry for entry in self._waiting if not is_after(cursor, self._cursor(entry[0]))]
                self._waiting = [entry for entry in self._waiting if entry not in joining]
                party += joining
                page = await _patiently(self._log.page, self._workspace, cursor)
                cursor = page.end
                staying = []
                for resume, future in party:
                    if future.done():
                        continue
                    resume.take(self._workspace, page)
                    if page.is_last or resume.connection.is_gone or resume.connection.is_full:
                        future.set_result(page.is_last or resume.connection.is_gone)
                    else:
                        staying.append((resume, future))
                party = staying
        except BaseException as error:
            for _, future in party + self._waiting:
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            self._walks.pop(self._workspace, None)

    def _cursor(self, resume: Resume) -> Position:
        return resume.cursors[self._workspace]


async def _patiently(read: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
    """Repeat a read while Redis is away: the client waits, and is told nothing that we do not know."""
    seconds = 0.05
    while True:
        try:
            return await read(*arguments, **options)
        except Unavailable as error:
            logger.warning("a replay waits: %s", error)
            await pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)
