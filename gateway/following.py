"""Following: what one client is delivered and in which form, as its place in the feed, the hub and the vitals.

Its session says what to follow; until Redis has joined a new channel, or a replay has ended, that is a change under
way. The connection is handed to what acts on it, and not kept: it keeps this.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .buffer import Buffer
from .dialects import Variant
from .groups import Watch
from .hub import agents_of, vital, wants, within
from .messages import Complete, Follow, Interest, Tune

if TYPE_CHECKING:
    from .connection import Connection
    from .node import Node

logger = logging.getLogger("trunkline.connection")

# How long a client that holds more than it allowed has to take it.
SLOW_SECONDS = 0.1


class Following:
    """`interest` is delivered now, in the form of `variant`; `deflated` is another form, if compression was agreed."""

    __slots__ = (
        "_deflated", "_node", "_plain", "_sampled", "_wants", "_watched", "buffer", "changes", "interest", "variant",
        "watch",
    )  # fmt: skip

    def __init__(self, node: "Node", variant: Variant, deflated: Variant | None) -> None:
        self._node = node
        self.variant = self._plain = variant
        self._deflated = deflated
        self.interest: Interest = frozenset()
        self._sampled: Interest = frozenset()
        self._wants = wants(frozenset())
        self._watched: frozenset[str] = frozenset()
        self.watch: Watch | None = None  # its runs, where it is runs that are followed
        self.buffer: Buffer | None = None
        self.changes = 0  # under way

    def follow(self, connection: "Connection", follow: Follow) -> None:
        """Deliver what `follow` says: at once when all its channels are joined, else as soon as they are."""
        needed = wants(follow.interest | follow.sampled)
        logger.debug("a client follows %d filters on %d channels", len(follow.interest), len(needed))
        joined = self._node.feed.want(needed - self._wants)
        self._node.feed.unwant(self._wants - needed)
        self._wants = needed
        self._sampled = follow.sampled
        self._watch(vital(follow.interest | follow.sampled))
        if follow.since is not None:
            if follow.said is not None:
                connection.say(follow.said)  # without a position: it is complete after the replay
            self.changes += 1
            connection.wait(self._resume(connection, follow, joined))
        elif joined is not None or self.changes:
            self._narrow(connection)
            self.changes += 1
            connection.wait(self._follow_later(connection, follow, joined))
        else:
            self._follow_now(connection, follow)

    async def _resume(self, connection: "Connection", follow: Follow, joined: "asyncio.Future[None] | None") -> None:
        await self._node.replays.resume(connection, self.variant, follow, joined)
        self.changes -= 1

    async def _follow_later(
        self, connection: "Connection", follow: Follow, joined: "asyncio.Future[None] | None"
    ) -> None:
        if joined is not None:
            await joined
        self.changes -= 1
        self._follow_now(connection, follow)

    def _follow_now(self, connection: "Connection", follow: Follow) -> None:
        self.place(connection, follow.interest)
        if follow.said is not None and not connection.is_gone:
            connection.tell(follow.said)

    def place(self, connection: "Connection", interest: Interest) -> None:
        """From now on this is what is delivered, as far as its token (a newer one, perhaps) goes."""
        claims = connection.session.claims
        if connection.is_gone or claims is None:
            return
        if self.watch is not None:
            self.interest = self.watch.interest
            self._node.hub.enter(self.watch, connection)
            return
        self.interest = within(interest, claims.workspaces)
        hub, now = self._node.hub, self._node.now()
        hub.place(connection, self.variant, self.interest, now)
        hub.sample(connection, self.variant, within(self._sampled, claims.workspaces), now)

    def watch_runs(self, workspace: str, endpoint: str) -> None:
        """What is followed is runs of this endpoint, from the first `follow` on."""
        self.watch = self._node.hub.watch(self.variant, workspace, endpoint)

    async def catch_up(
        self, connection: "Connection", runs: Mapping[str, float], since: str, *, is_checked: bool
    ) -> None:
        """Deliver these runs too, each with its deadline: first what was told of them after the position `since`."""
        watch = self.watch
        assert watch is not None
        before = watch.wanted
        watch.runs.update(runs)
        fresh = frozenset((watch.only(runs),))
        follow = Follow(watch.wanted, fresh, before, {watch.workspace: since}, is_checked=is_checked)
        self.changes += 1
        await self._node.replays.resume(connection, self.variant, follow, None)
        self.changes -= 1

    def _narrow(self, connection: "Connection") -> None:
        """What a renewed token no longer names stops now, whatever is still joining. A replay sees to it itself."""
        claims = connection.session.claims
        if claims is None or self._node.hub.holds(connection):
            return
        if within(self.interest, claims.workspaces) != self.interest:
            self.place(connection, self.interest)

    def tune(self, connection: "Connection", asked: Tune) -> None:
        """Deliver in another way; in the same place otherwise."""
        if asked.buffer_events is not None:
            self.buffer = Buffer(asked.buffer_events)
        if asked.is_compressed is not None and self._deflated is not None:
            self.variant = self._deflated if asked.is_compressed else self._plain
        self.place(connection, self.interest)

    def count(self, connection: "Connection", events: int, size: int) -> None:
        """The hub has written so many events to a client that has bounded what may wait for it."""
        buffer = self.buffer
        if buffer is not None and buffer.written(events, size, connection.backlog) and not buffer.is_judged:
            # A burst of ours is no fault of the client's, and the hub may be in the middle of its members now.
            buffer.is_judged = True
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._judge, connection, buffer)

    def _judge(self, connection: "Connection", buffer: Buffer) -> None:
        buffer.is_judged = False
        if not connection.is_gone and buffer is self.buffer and buffer.is_over(connection.backlog):
            connection.too_slow()

    def complete(self, workspaces: frozenset[str]) -> Complete:
        """Up to where a client whose token names `workspaces` has all it asked for.

        One position, or one for each workspace where the token names several; None: nobody can say now.
        """
        if not self.interest or self.changes:
            return None
        positions: dict[str, str] = {}
        for workspace in {workspace for wanted in self.interest for workspace in wanted.workspaces}:
            position = self._node.feed.position(workspace, agents_of(self.interest, workspace))
            if position is not None:
                positions[workspace] = position
        if len(workspaces) > 1:
            return positions
        return next(iter(positions.values()), None)

    def _watch(self, workspaces: frozenset[str]) -> None:
        """Whose figures it wants to see: somebody has to compute them."""
        self._node.vitals.watch(workspaces - self._watched)
        self._node.vitals.unwatch(self._watched - workspaces)
        self._watched = workspaces

    def end(self, connection: "Connection") -> None:
        """Deliver nothing more."""
        self._node.hub.remove(connection)
        self._node.feed.unwant(self._wants)
        self._watch(frozenset())
