"""The feed: this node's one subscription. Nothing is lost, doubled or reordered between Redis and who takes the events.

Lines      A line is one channel as we follow it: a workspace's, or one agent's. Redis counts a `position` for each, and
           each durable message names the one before it, so a line is a chain: a message is handed on when its `prev` is
           the line's `position`. Anything else is a hole, and is filled from the log (healing.py).
Wanting    Others say what they need (`want`), counted. If anyone needs the whole workspace its own channel is heard,
           else just the agents' channels. The channels of agents that are wanted besides stay subscribed and silent:
           only a plain PUBLISH is handed on from them, as that was made on this channel alone.
Servers    Each server has a follower with a connection of its own (follower.py). One Redis is one server, and so is the
           master behind sentinels; in a cluster there are several, and all channels of a workspace are at one of them.
           Every `LOOK_SECONDS`, and as soon as a connection is lost or a workspace is displaced, the feed looks which
           servers there are (topology/routes.py). A workspace that has moved joins again at its new server, and is
           healed from the log there, as after a lost connection.
"""

import asyncio
import logging
import random
import secrets
from collections import Counter
from collections.abc import Collection
from time import monotonic

from redis.asyncio import Redis

from .address import Address
from .errors import Unavailable
from .follower import Follower
from .healing import Healer
from .keyspace import Keyspace
from .lines import Line, Taker, Want, Workspace
from .log import Log
from .patience import pause
from .positions import Position, order
from .probe import Outcome, Probe
from .topology import Host
from .topology.routes import route

logger = logging.getLogger("trunkline.feed")

LINGER_SECONDS = 5.0
LOOK_SECONDS = 3.0
# While something is amiss: a server is not connected, or a workspace has none.
HURRY_SECONDS = 0.25
# Among so many names some have their slot at a given server, unless it has very few slots.
PROBE_NAMES = 2048
_TURN_SECONDS = 0.5
_BREATH_SECONDS = 0.02


class Feed:
    """The node's subscription, owned by one task (`run`)."""

    def __init__(
        self,
        address: Address,
        keys: Keyspace,
        log: Log,
        taker: Taker,
        name: str = "trunkline-feed",
        *,
        publisher: Redis | None = None,
    ) -> None:
        """With a `publisher` its connections are probed: through it goes what they must bring."""
        self._keys = keys
        self._taker = taker
        self._name = name
        self._route = route(address, keys)
        self._healer = Healer(log, taker, self.server, self._healed)
        self._version = -1  # of the route, when all workspaces were given to their followers
        self._followers: dict[Host, Follower] = {}
        self._tasks: dict[Host, asyncio.Task[None]] = {}
        self._workspaces: dict[str, Workspace] = {}
        self._homeless: dict[Workspace, None] = {}
        self._leaving: list[Line] = []
        self._stirred = asyncio.Event()
        self._failures = 0  # looks in a row that found nothing
        self._publisher = publisher
        self._probe_name = f"probe:{secrets.token_hex(8)}"
        self.probes: Counter[Outcome] = Counter()

    @property
    def is_connected(self) -> bool:
        """True while any server is heard; what another one has waits meanwhile."""
        return any(follower.is_connected for follower in self._followers.values())

    @property
    def is_whole(self) -> bool:
        """True while every server is heard, and every workspace has one."""
        return bool(self._followers) and not self._is_amiss and not self.is_deaf

    @property
    def is_deaf(self) -> bool:
        """True while a server is known to answer, and not to bring what is published there."""
        return any(follower.is_deaf for follower in self._followers.values())

    @property
    def channels(self) -> int:
        return sum(len(workspace.lines) for workspace in self._workspaces.values())

    # -- what others want ---------------------------------------------------------------------------------------------

    def want(self, wants: Collection[Want]) -> "asyncio.Future[None] | None":
        """Need these from now on; each `want` is undone by one `unwant`.

        Answers None when all of it is being handed on already, else a future that is done as soon as it is.
        """
        by_workspace: dict[str, set[str | None]] = {}
        for name, agent in wants:
            by_workspace.setdefault(name, set()).add(agent)
        waiting = []
        for name, agents in by_workspace.items():
            workspace = self._workspace(name)
            for agent in agents:
                self._line(workspace, agent)
            workspace.wants.update(agents)
            self._ask_to_turn(workspace)
            if not workspace.serves(agents):
                future = asyncio.get_running_loop().create_future()
                workspace.waiters.append((frozenset(agents), future))
                waiting.append(future)
        if not waiting:
            return None
        return waiting[0] if len(waiting) == 1 else asyncio.ensure_future(_all(waiting))

    def unwant(self, wants: Collection[Want]) -> None:
        """No longer need what a `want` asked for; its channels are left after a while."""
        leave_at = monotonic() + LINGER_SECONDS
        for name, agent in wants:
            workspace = self._workspaces[name]
            workspace.wants[agent] -= 1
            if workspace.wants[agent] <= 0:
                del workspace.wants[agent]
                line = workspace.lines[agent]
                line.leave_at = leave_at
                self._leaving.append(line)
        for name in {name for name, _ in wants}:
            self._ask_to_turn(self._workspaces[name])
            self._workspaces[name].wake()

    def server(self, name: str) -> Host | None:
        """Who has the workspace, as far as that is known."""
        return self._route.server(name)

    def is_held(self, name: str) -> bool:
        """True while events of the workspace wait behind a hole."""
        workspace = self._workspaces.get(name)
        return workspace is not None and workspace.held is not None

    def position(self, name: str, agents: Collection[str] | None) -> Position | None:
        """The position up to which all events of the workspace (of `agents`) were handed on; None while unknown."""
        workspace = self._workspaces.get(name)
        if workspace is None:
            return None
        whole = workspace.lines.get(None)
        if workspace.follows_whole and whole is not None:
            return whole.position
        if agents is None:
            return None
        positions = [line.position for agent in agents if (line := workspace.lines.get(agent)) and line.position]
        if len(positions) < len(agents) or not positions:
            return None
        # The one connection of a workspace keeps the order over its channels, so the newest speaks for all, unless one
        # has a hole: then only what is filled will tell.
        if workspace.held is not None and len(positions) > 1:
            return None
        return max(positions, key=order)

    async def settle(self, name: str) -> None:
        """Wait until all that Redis published in the workspace before this call has been handed on."""
        while True:
            workspace = self._workspaces.get(name)
            if workspace is None:
                return
            follower = workspace.follower
            if workspace.held is not None or follower is None or not follower.is_connected:
                passed = asyncio.get_running_loop().create_future()
                workspace.waiters.append((frozenset(), passed))
                await passed
            elif await follower.pass_by() and workspace.held is None:
                return

    def _workspace(self, name: str) -> Workspace:
        workspace = self._workspaces.get(name)
        if workspace is None:
            workspace = self._workspaces[name] = Workspace(name)
            self._house(workspace)
            self._stirred.set()
        return workspace

    def _line(self, workspace: Workspace, agent: str | None) -> None:
        """Make the line of `agent`, when there is none; the follower joins it."""
        if agent in workspace.lines:
            return
        line = workspace.lines[agent] = Line(workspace, agent, self._keys.channel(workspace.name, agent))
        workspace.unjoined += 1
        if workspace.follower is not None:
            workspace.follower.join(line)

    def _ask_to_turn(self, workspace: Workspace) -> None:
        """Hear the other kind of line, if that is what is wanted now.

        Each event comes on both kinds, one copy after the other, and a read may end between the two. So the change is
        made at an answer, which never comes between them.
        """
        if workspace.follows_whole is workspace.wants_whole:
            return
        if all(line.position is None for line in workspace.heard()):
            workspace.follows_whole = workspace.wants_whole  # nothing was heard yet
        elif workspace.can_turn and workspace.follower is not None:
            workspace.follower.turn_at_answer(workspace)

    def _healed(self, workspace: Workspace) -> None:
        self._ask_to_turn(workspace)
        workspace.wake()

    # -- the owner's task ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the subscription until cancelled."""
        look_at = 0.0
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._stirred.clear()
                    now = monotonic()
                    if now >= look_at or self._is_amiss:
                        await self._look(group)
                        look_at = now + LOOK_SECONDS
                    self._leave(now)
                    await self._rest(HURRY_SECONDS if self._is_amiss else _TURN_SECONDS)
        finally:
            for workspace in self._workspaces.values():
                if workspace.healing is not None:
                    workspace.healing.cancel()

    @property
    def _is_amiss(self) -> bool:
        return bool(self._homeless) or not all(follower.is_connected for follower in self._followers.values())

    async def _rest(self, seconds: float) -> None:
        """Until something stirs; but never without a breath, as what stirs may do so again at once."""
        await pause(_BREATH_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        except TimeoutError:
            return

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Find the servers, have a follower for each, and each workspace with the follower of its server."""
        try:
            await self._route.look()
        except Unavailable as error:
            if self._failures in (0, 10) or self._failures % 100 == 0:
                logger.warning("%s", error)
            self._failures += 1
        else:
            self._failures = 0
        servers = self._route.servers
        for host, address in servers.items():
            if host not in self._followers:
                follower = Follower(self._keys, self._route.words, self._healer, self._taker, self, self._name, address)
                self._followers[host] = follower
                self._tasks[host] = group.create_task(follower.run())
        moved = self._workspaces.values() if self._version != self._route.version else self._homeless
        self._version = self._route.version
        for workspace in list(moved):
            self._house(workspace)
        for host in self._followers.keys() - servers.keys():
            del self._followers[host]
            self._tasks.pop(host).cancel()

    def _house(self, workspace: Workspace) -> None:
        """Give a workspace to the follower of its server."""
        host = self._route.server(workspace.name)
        follower = self._followers.get(host) if host is not None else None
        if follower is None or follower is not workspace.follower:
            if workspace.follower is not None:
                workspace.follower.drop(workspace)
            self._homeless.pop(workspace, None)
            if follower is None:
                self._homeless[workspace] = None
            else:
                follower.adopt(workspace)

    def displaced(self, workspace: Workspace, by: Follower, words: str) -> None:
        by.drop(workspace)
        self._homeless[workspace] = None
        self._route.hear(words, by.address.hosts[0])
        # Where nobody has it now, to ask at once again and again would only be a storm.
        if not words or words.startswith("MOVED "):
            self._stirred.set()

    def lost(self) -> None:
        self._stirred.set()

    def probe(self) -> Probe | None:
        return None if self._publisher is None else Probe(self._publisher, self._keys)

    def free_name(self, by: Follower, name: str | None) -> str | None:
        """Whoever may subscribe to workspaces may subscribe to it, too."""
        host, first = by.address.hosts[0], random.randrange(2**32)  # noqa: S311
        if name is not None and self._route.server(name) == host:
            return name
        names = (f"{self._probe_name}:{number}" for number in range(first, first + PROBE_NAMES))
        return next((name for name in names if self._route.server(name) == host), None)

    def probed(self, outcome: Outcome) -> None:
        self.probes[outcome] += 1

    def _leave(self, now: float) -> None:
        """Leave the channels that have not been wanted for a while."""
        if not self._leaving or self._leaving[0].leave_at > now:
            return
        due = dict.fromkeys(line for line in self._leaving if line.leave_at <= now)
        # What is still heard, until the other kind of line has joined, stays meanwhile.
        kept = [line for line in due if not line.is_wanted and line.workspace.needs(line)]
        for line in kept:
            line.leave_at = now + LINGER_SECONDS
        self._leaving = [line for line in self._leaving if line.leave_at > now and line not in due] + kept
        gone: dict[Follower, list[Line]] = {}
        for line in due:
            workspace = line.workspace
            if line.is_wanted or line.leave_at > now or workspace.lines.get(line.agent) is not line:
                continue
            del workspace.lines[line.agent]
            workspace.unjoined -= not line.is_joined
            if workspace.follower is not None:
                gone.setdefault(workspace.follower, []).append(line)
            if not workspace.lines and not workspace.wants:
                self._workspaces.pop(workspace.name, None)
                self._homeless.pop(workspace, None)
        for follower, lines in gone.items():
            follower.leave(lines)


async def _all(futures: "list[asyncio.Future[None]]") -> None:
    await asyncio.gather(*futures)
