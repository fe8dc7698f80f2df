"""Lines: the channels that a feed follows, each a chain of positions, and what stands between them in one workspace."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Invalid
from .events import Carried
from .positions import START, Position

if TYPE_CHECKING:
    from .follower import Follower

# What is wanted: a workspace and an agent of it; None as agent is the whole workspace, "" what has no agent.
Want = tuple[str, str | None]


class Gap(NamedTuple):
    """Durable events of `workspace` may be missing after `since`; `agents` is None when it may be any of them.

    `oldest` is the oldest position that the log still holds. `is_reset`: Redis lost history that we know of and goes on
    with another; of that, nothing is known to be missing.
    """

    workspace: str
    agents: frozenset[str] | None
    since: Position
    oldest: Position | None = None
    is_reset: bool = False


class Taker:
    """Who takes what the feed brings; the calls are synchronous and in order."""

    def on_events(self, events: list[Carried]) -> None:
        """A batch: all that one read from Redis brought, or a stretch of the log that had been missed."""

    def on_gap(self, gap: Gap) -> None:
        """Events were lost for good: whoever watched that must be told."""

    def on_rejected(self, error: Invalid) -> None:
        """A message on a channel was no event."""

    def on_connection(self, *, is_up: bool) -> None:
        """A connection to Redis was made or lost; in a cluster there is one to each master."""

    def on_healed(self, events: int) -> None:
        """A hole was filled with so many events from the log."""


class Line:
    """One channel, followed."""

    __slots__ = (
        "agent",
        "before",
        "channel",
        "head",
        "is_behind",
        "is_joined",
        "leave_at",
        "position",
        "read_to",
        "workspace",
    )

    def __init__(self, workspace: "Workspace", agent: str | None, channel: str) -> None:
        self.workspace = workspace
        self.agent = agent
        self.channel = channel
        self.position: Position | None = None  # up to here all was handed on; None before the first join
        self.before: Position | None = None  # the position before it, while the last event is one that came live
        self.read_to: Position = START  # up to here the log or the head told, messages may still be on their way
        self.head: Position = START  # the newest position, when its server was asked last
        self.is_joined = False  # since the connection was made
        self.is_behind = False  # its head stands elsewhere
        self.leave_at = 0.0

    @property
    def is_wanted(self) -> bool:
        return self.workspace.wants[self.agent] > 0

    def advance(self, position: Position) -> None:
        """The next of its chain has come live."""
        self.before, self.position = self.position, position

    def stand(self, position: Position) -> None:
        """It stands where the log or the head told, whatever came before."""
        self.before, self.position, self.read_to = None, position, position


class Workspace:
    """The lines of one workspace, and what waits while one of them has a hole."""

    __slots__ = (
        "follower", "follows_whole", "healing", "held", "held_bytes", "is_waking", "lines", "name", "unjoined",
        "waiters", "wants",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.follower: Follower | None = None  # of the server that has it; None until that is known
        self.wants: Counter[str | None] = Counter()
        self.lines: dict[str | None, Line] = {}
        self.follows_whole = False
        self.unjoined = 0  # lines that have not joined
        self.is_waking = False
        self.held: list[tuple[Line, Carried]] | None = None
        self.held_bytes = 0
        self.healing: asyncio.Task[None] | None = None
        self.waiters: list[tuple[frozenset[str | None], asyncio.Future[Any]]] = []

    @property
    def wants_whole(self) -> bool:
        return self.wants[None] > 0

    @property
    def can_turn(self) -> bool:
        """True when the other kind of line is the one to hear, has joined, and nothing waits for the present kind."""
        if self.held is not None or self.follows_whole is self.wants_whole:
            return False
        if self.wants_whole:
            return self.lines[None].is_joined
        return not self.unjoined or all(self.lines[agent].is_joined for agent in self.wants)

    def needs(self, line: Line) -> bool:
        """True for a line that nobody wants, but that is heard until the wanted kind has joined."""
        return bool(self.wants) and self.follows_whole is not self.wants_whole and self.is_heard(line)

    def is_heard(self, line: Line) -> bool:
        """True when this line's messages are the ones to hand on."""
        return (line.agent is None) is self.follows_whole

    def heard(self) -> Iterator[Line]:
        return (line for line in self.lines.values() if self.is_heard(line))

    def serves(self, agents: Iterable[str | None]) -> bool:
        """True when everything of `agents` is being handed on as it arrives."""
        if self.held is not None:
            return False
        if self.follows_whole:
            agents = {None, *agents}
        elif None in agents:
            return False
        return all((line := self.lines.get(agent)) is not None and line.is_joined for agent in agents)

    def turn(self) -> None:
        """Hear the other kind of line, if that is still wanted and possible. To be called at an answer."""
        if self.can_turn:
            self.follows_whole = self.wants_whole
            self.wake()

    def unjoin(self) -> None:
        """Where the lines stand is not known any more."""
        for line in self.lines.values():
            line.is_joined = False
        self.unjoined = len(self.lines)

    def wake(self) -> None:
        """Tell those who wait that they are served; once for all that this moment brings."""
        if self.waiters and not self.is_waking:
            self.is_waking = True
            asyncio.get_running_loop().call_soon(self._wake_now)

    def _wake_now(self) -> None:
        self.is_waking = False
        waiters, self.waiters = self.waiters, []
        for agents, future in waiters:
            if future.done():
                continue  # whoever waited has gone
            # What nobody wants any more may never be joined: who waited for it has changed its mind.
            if self.serves(agents) or any(not self.wants[agent] for agent in agents):
                future.set_result(None)
            else:
                self.waiters.append((agents, future))
