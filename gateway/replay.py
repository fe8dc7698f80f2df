"""Replays: a client that comes back with a position first gets what it missed, once and in order, then what is live.

    hold live events (a group of its own) → join the channels → is the position valid? → read the log to its end
    → let everything that Redis had published by then pass the feed → hand on what was held behind the end → its group

Clients that resume in the same workspace at the same time share one walk through its log: each page is read and decoded
once, each event encoded once.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from broker import Unavailable
from broker.events import Carried
from broker.feed import Feed
from broker.lines import Gap
from broker.log import FIRST_PAGE_EVENTS, Log, Page
from broker.patience import pause
from broker.positions import START, Position, is_after, order, parse
from broker.topology import Host

from .dialects import Variant
from .groups import Group, frames_of
from .hub import Hub, agents_of, matches
from .messages import Follow, GapSaid, Interest, Tell
from .metrics import Metrics

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger("trunkline.replay")

_LONGEST_PAUSE = 2.0
_AHEAD_PAUSE = 0.1

# At one server of Redis: those that wait for one that is away keep nobody from the others.
MAX_WALKS = 16
TAKEN_AT_ONCE = 4096  # events, by all takers together, between two turns of the event loop
MAX_LAST_BYTES = 128 * 1024  # what may be written together with taking one's place

P = ParamSpec("P")
T = TypeVar("T")


class Resume:
    """One client's way back. `cursors` are the positions up to which it has all it is owed, by workspace."""

    def __init__(self, connection: "Connection", variant: Variant, follow: Follow, group: Group) -> None:
        self.connection = connection
        self.variant = variant
        self.follow = follow
        self.group = group
        self.cursors: dict[str, Position] = {}
        # Where live events began to be held: behind it everything is owed, before it only what is fresh.
        self.floors: dict[str, tuple[int, int]] = {}
        # Positions that the client came with.
        self.starts: dict[str, tuple[int, int]] = {}
        # Workspaces whose cursor is an entry of the log, so that it can be seen when its history goes on elsewhere.
        self.on_entry: set[str] = set()
        self.walked: set[str] = set()
        # The last event of each workspace that was read from the log for this client, or that it came with.
        self.replayed: dict[str, Position] = {}
        self.outcome = "complete"

    def wants(self, event: Carried, at: tuple[int, int]) -> bool:
        """True when the replay owes this event, which stands at `at`."""
        floor = self.floors.get(event.workspace_id)
        if floor is not None and at > floor:
            # `since` may be newer than what the feed has handed on: up to there the client has what is fresh.
            has_fresh = at <= self.starts.get(event.workspace_id, floor)
            return matches(self.follow.before if has_fresh else self.follow.interest, event)
        return matches(self.follow.fresh, event) and not matches(self.follow.before, event)

    def _came_with(self, event: Carried, at: tuple[int, int]) -> bool:
        """True when the client had this event from another node, which was ahead of us."""
        return at <= self.starts.get(event.workspace_id, (0, 0)) and matches(self.follow.interest, event)

    def take(self, workspace: str, page: Page, places: list[tuple[int, int]], purged: Position) -> None:
        """Write what a page holds for this client; `places` are its events' positions as numbers.

        Up to `purged` the events of deleted agents may have been taken out of the log.
        """
        cursor = self.cursors[workspace]
        start = bisect_right(places, order(cursor))
        if start < len(places):
            prev, is_entry = page.events[start].prev or cursor, workspace in self.on_entry
            # While we walked the log was cut, or Redis lost it and goes on from before: something is missing here.
            is_cut = (is_entry or self.follow.is_checked) and is_after(prev, cursor)
            is_reset = is_entry and is_after(cursor, prev) and is_after(cursor, purged)
            if is_cut or is_reset:
                self.say_gap(workspace, cursor, page.events[start].id)
        owed = [page.events[i] for i in range(start, len(places)) if self.wants(page.events[i], places[i])]
        self.write(owed)
        given = owed or [
            page.events[i] for i in range(start, len(places)) if self._came_with(page.events[i], places[i])
        ]
        if given and given[-1].id is not None:
            self.replayed[workspace] = Position(given[-1].id)
        if is_after(page.end, cursor):
            self.cursors[workspace] = page.end
            self.on_entry.add(workspace)

    def write(self, events: list[Carried]) -> None:
        """Write events to this client, as far as its token still goes, and count them."""
        events = [event for event in events if self.connection.may_see(event.workspace_id)]
        deliveries = self.group.deliveries
        for count, data in frames_of(events, self.variant):
            self.connection.write(data)
            deliveries.events += count
            deliveries.bytes += len(data)
        if self.connection.watch is not None:
            self.connection.watch.note(events)

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
        self._places: dict[Host | None, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_WALKS))

    async def resume(
        self, connection: "Connection", variant: Variant, follow: Follow, joined: "asyncio.Future[None] | None"
    ) -> None:
        """Perform a `Follow` with positions."""
        assert follow.since is not None
        # Only while nothing is being healed does a position say what was handed on.
        while held := [name for name in _workspaces(follow.before) if self._feed.is_held(name)]:
            await self._feed.settle(held[0])
        if connection.is_gone:
            return  # redis-py may have swallowed the cancellation of whoever comes here from Redis
        group = self._hub.hold(connection, variant, follow.interest, 0.0)
        resume = Resume(connection, variant, follow, group)
        for workspace in _workspaces(follow.before):
            self._set_floor(resume, workspace, follow.before)
        if joined is not None:
            await joined
        for workspace in _workspaces(follow.interest) - resume.floors.keys():
            if self._feed.is_held(workspace):
                await self._feed.settle(workspace)
            self._set_floor(resume, workspace, follow.interest)
        for workspace, since in follow.since.items():
            await self._begin(resume, workspace, since)
        while not connection.is_gone:
            if group.has_overflowed:
                # Something of any workspace was let go.
                resume.walked |= resume.cursors.keys()
            group.has_overflowed = False
            await asyncio.gather(*(self._walk(resume, workspace) for workspace in resume.walked))
            for workspace in resume.walked:
                await self._settle(resume, workspace)
            if not group.has_overflowed:
                break
        await self._end(resume)

    def _set_floor(self, resume: Resume, workspace: str, interest: Interest) -> None:
        """From the present position on, everything of a workspace is held or can be read."""
        agents = agents_of(interest, workspace)
        position = self._feed.position(workspace, agents)
        if position is not None:
            resume.floors[workspace] = order(position)
            resume.cursors[workspace] = position

    async def _begin(self, resume: Resume, workspace: str, since: str) -> None:
        """Set the cursor of a workspace, or say the gap."""
        agents = agents_of(resume.follow.fresh, workspace)
        bounds = await _patiently(self._log.bounds, workspace, since, agents or ())
        if not (bounds.is_valid or resume.follow.is_checked):
            resume.say_gap(workspace, since, bounds.oldest)
            return
        numbers = parse(since)
        assert numbers is not None
        resume.walked.add(workspace)
        resume.starts[workspace] = numbers
        if workspace in resume.floors and numbers > resume.floors[workspace]:
            return  # the walk begins where events began to be held, for what was followed before
        resume.cursors[workspace] = Position(f"{numbers[0]}-{numbers[1]}")
        if bounds.is_entry:
            resume.on_entry.add(workspace)

    async def _walk(self, resume: Resume, workspace: str) -> None:
        """Read the log to its end for this client, at its own pace."""
        is_through = False
        while not is_through:
            walk = self._walks.get(workspace)
            if walk is None:
                places = self._places[self._feed.server(workspace)]
                walk = self._walks[workspace] = Walk(self._log, workspace, self._walks, places)
            is_through = await walk.join(resume)
            if not await resume.connection.drained():
                return

    async def _settle(self, resume: Resume, workspace: str) -> None:
        """Wait until the feed has handed on all that the client was given from the log, so that none of it comes again.

        It has, as soon as what Redis published before has passed it; but around a failover the log may be read from the
        new master while the feed still hears the old one. What the new one turns out not to have is a gap.
        """
        await self._feed.settle(workspace)
        while self._is_ahead(resume, workspace) and not resume.connection.is_gone:
            await pause(_AHEAD_PAUSE)
            replayed = resume.replayed[workspace]
            bounds = await _patiently(self._log.bounds, workspace, replayed)
            if not bounds.is_valid:
                resume.say_gap(workspace, replayed, bounds.oldest)
                return
            await self._feed.settle(workspace)

    def _is_ahead(self, resume: Resume, workspace: str) -> bool:
        """True when the client was given more than the feed has heard of."""
        replayed = resume.replayed.get(workspace)
        position = self._feed.position(workspace, agents_of(resume.follow.interest, workspace))
        return replayed is not None and position is not None and is_after(replayed, position)

    async def _end(self, resume: Resume) -> None:
        """Hand on what was held behind the end of the log, and take its place among the others."""
        connection, group = resume.connection, resume.group
        while group.held_bytes > MAX_LAST_BYTES and not connection.is_gone and not group.has_overflowed:
            # In pieces, while more may come: only the last one and the change of place are one moment.
            held, group.held, group.held_bytes = group.held or [], [], 0
            self._hand_on(resume, held)
            await connection.drained()
        if connection.is_gone:
            return
        if group.has_overflowed:
            # It takes less than what flows: the rest is for when it comes back.
            connection.too_slow()
            return
        if not self._hand_on(resume, group.held or []):
            return
        self._metrics.resumes.add(resume.outcome)
        connection.place(resume.follow.interest)

    def _hand_on(self, resume: Resume, held: Sequence[Carried | Gap]) -> bool:
        """Write what was held, but for what the log brought; tell a gap where it came. False: that ended the client."""
        events: list[Carried] = []
        for kept in held:
            if not isinstance(kept, Gap):
                if not self._is_past(resume, kept):
                    events.append(kept)
                continue
            resume.write(events)
            events = []
            resume.connection.gap(kept)
            if resume.connection.is_gone:
                return False
        resume.write(events)
        return True

    def _is_past(self, resume: Resume, event: Carried) -> bool:
        workspace = event.workspace_id
        if event.id is None:
            return False
        at, floor = order(event.id), resume.floors.get(workspace)
        if workspace not in resume.walked:
            # Of what came before its channels had joined others may have wanted a part: behind a gap is all or nothing.
            return floor is not None and at <= floor
        if at > order(resume.cursors[workspace]):
            return False
        return (floor is not None and at > floor) or resume.wants(event, at)


def _workspaces(interest: Interest) -> set[str]:
    return {workspace for wanted in interest for workspace in wanted.workspaces}


class Walk:
    """One reader of a workspace's log for all who resume there now."""

    def __init__(self, log: Log, workspace: str, walks: dict[str, "Walk"], places: asyncio.Semaphore) -> None:
        self._log = log
        self._workspace = workspace
        self._walks = walks
        self._places = places
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
        cursor, limit = Position(""), FIRST_PAGE_EVENTS
        try:
            while party or self._waiting:
                if not party:
                    cursor = min((self._cursor(resume) for resume, _ in self._waiting), key=order)
                waiting, self._waiting = self._waiting, []
                for entry in waiting:
                    (self._waiting if is_after(cursor, self._cursor(entry[0])) else party).append(entry)
                async with self._places:
                    page = await _patiently(self._log.page, self._workspace, cursor, limit)
                    purged = await _patiently(self._log.purged, self._workspace)
                cursor, limit = page.end, page.limit
                places = [order(event.id or START) for event in page.events]
                staying, at_once = [], max(1, TAKEN_AT_ONCE // max(1, len(places)))
                for number, (resume, future) in enumerate(party, 1):
                    if number % at_once == 0:
                        await asyncio.sleep(0)
                    if future.done():
                        continue
                    try:
                        resume.take(self._workspace, page, places, purged)
                    except Exception as error:  # of one client: the others walk on
                        future.set_exception(error)
                        continue
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
