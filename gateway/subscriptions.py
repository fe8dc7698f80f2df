"""What a connection has subscribed to, in the two ways that protocols know. Pure.

`ByFilter`: each subscribe is a filter of its own; they are ORed, and leave as a whole.
`ByType`:   a table of event types; agents come and go under each.
"""

from collections import defaultdict
from typing import Protocol

from broker.catalog import CATALOG
from broker.filters import Filter, Narrow

from .limits import Limits
from .messages import Asked, Confirmed, Interest, Refused
from .reasons import INVALID_MESSAGE, TOO_MANY_EVENT_TYPES, TOO_MANY_SUBSCRIPTIONS

# Combinations of a type and other filters that one connection may have.
MAX_ENTRIES = 200

# Places in the hub's index that the agents of one connection may take: what one more message of it costs everybody.
MAX_PLACES = 4000


class Subscriptions(Protocol):
    """`own` are the workspaces of the token: what a subscription asks for that names none."""

    def subscribe(self, asked: Asked) -> None:
        """Add what is asked. Raises `Refused`; nothing has changed then."""

    def unsubscribe(self, asked: Asked, own: frozenset[str]) -> None:
        """Take away what is asked. Raises `Refused`; nothing has changed then."""

    def interest(self, own: frozenset[str]) -> Interest:
        """All of it, as filters."""

    def alone(self, asked: Asked, own: frozenset[str]) -> Interest:
        """What one subscribe asks, as filters."""

    def confirmed(self) -> Confirmed | None:
        """All of it, in the client's words. None: success is silent."""


class ByFilter:
    """Equal subscriptions count once."""

    __slots__ = ("_asked", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._asked: dict[Asked, None] = {}  # the order is theirs

    def subscribe(self, asked: Asked) -> None:
        values = sum(len(part or ()) for one in (*self._asked, asked) for part in one.ids)
        _check_values(values, self._limits, "$.filters")
        if (allowed := self._limits.max_subscriptions) is not None and len({**self._asked, asked: None}) > allowed:
            raise Refused(TOO_MANY_SUBSCRIPTIONS)
        self._asked[asked] = None

    def unsubscribe(self, asked: Asked, own: frozenset[str]) -> None:
        """Remove each subscription that, for each given part, asks only for given values. None is split."""
        self._asked = {kept: None for kept in self._asked if not _covers(asked, kept, own)}

    def interest(self, own: frozenset[str]) -> Interest:
        return frozenset(wanted for asked in self._asked for wanted in self.alone(asked, own))

    def alone(self, asked: Asked, own: frozenset[str]) -> Interest:
        workspaces = (asked.workspaces or own) & own
        if not workspaces:
            return frozenset()
        wanted = Filter(workspaces=workspaces, agents=asked.agents, subjects=asked.subjects, types=asked.types)
        return frozenset((wanted,))

    def confirmed(self) -> None:
        return None


def _covers(asked: Asked, kept: Asked, own: frozenset[str]) -> bool:
    """True when `kept` asks, in every part that `asked` gives, only for values that `asked` gives.

    A subscription that names no workspace asks for the token's `own`.
    """
    parts = (
        (asked.workspaces, kept.workspaces or own),
        (asked.agents, kept.agents),
        (asked.subjects, kept.subjects),
        (asked.types, kept.types),
    )
    return all(given is None or (held is not None and held <= given) for given, held in parts)


# A type, and the way it was asked for: the severities and components of its other filters.
Entry = tuple[str, frozenset[str] | None, frozenset[str] | None]
Way = tuple[frozenset[str] | None, frozenset[str] | None]


class Agents:
    """The agents of one entry: some, or all but some. The order of the named ones is the client's."""

    __slots__ = ("named", "without")

    def __init__(self) -> None:
        self.named: dict[str, None] | None = {}  # None: all
        self.without: frozenset[str] = frozenset()

    def copy(self) -> "Agents":
        other = Agents()
        other.named, other.without = None if self.named is None else dict(self.named), self.without
        return other

    def add(self, agents: tuple[str, ...] | None) -> None:
        if agents is None:
            self.named, self.without = None, frozenset()
        elif self.named is None:
            self.without -= frozenset(agents)
        else:
            self.named |= dict.fromkeys(agents)

    def remove(self, agents: frozenset[str] | None) -> None:
        if agents is None:
            self.named, self.without = {}, frozenset()
        elif self.named is None:
            self.without |= agents
        else:
            self.named = {agent: None for agent in self.named if agent not in agents}

    @property
    def is_empty(self) -> bool:
        return self.named is not None and not self.named

    @property
    def values(self) -> frozenset[str]:
        return self.without if self.named is None else frozenset(self.named)


class ByType:
    """Agents narrow only events that have one: of the others those without an agent belong to every subscription."""

    __slots__ = ("_agents", "_limits", "_words")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._words: dict[str, str] = {}  # each type's word, the first that was used for it
        self._agents: dict[Entry, Agents] = {}

    def subscribe(self, asked: Asked) -> None:
        types = self._words.keys() | {kind for kind, _ in asked.words}
        if (allowed := self._limits.max_event_types) is not None and len(types) > allowed:
            raise Refused(TOO_MANY_EVENT_TYPES, f"At most {allowed} event types per connection")
        entries = [(kind, asked.severities, asked.components) for kind, _ in asked.words]
        if len(self._agents.keys() | entries) > MAX_ENTRIES:
            raise Refused(INVALID_MESSAGE, f"$.data.filters: at most {MAX_ENTRIES} event types with other filters each")
        ways = self._ways()
        ways[asked.severities, asked.components] |= asked.agents or frozenset()
        _check_values(_values(ways), self._limits, "$.data")
        after = self._copied()
        for entry in entries:
            after.setdefault(entry, Agents()).add(None if asked.agents is None else asked.named)
        _check_places(after)
        self._agents = after
        for kind, word in asked.words:
            self._words.setdefault(kind, word)

    def unsubscribe(self, asked: Asked, own: frozenset[str]) -> None:
        types = {kind for kind, _ in asked.words} or self._words.keys()
        concerned = [(entry, agents) for entry, agents in self._agents.items() if entry[0] in types]
        ways = self._ways()
        for entry, agents in concerned:
            if agents.named is None:
                ways[entry[1:]] |= asked.agents or frozenset()
        _check_values(_values(ways), self._limits, "$.data.agents")
        after = self._copied()
        for entry, _ in concerned:
            after[entry].remove(asked.agents)
            if after[entry].is_empty:
                del after[entry]
        _check_places(after)
        self._agents = after
        left = {kind for kind, _, _ in self._agents}
        self._words = {kind: word for kind, word in self._words.items() if kind in left}

    def interest(self, own: frozenset[str]) -> Interest:
        return _filters(self._agents, own)

    def alone(self, asked: Asked, own: frozenset[str]) -> Interest:
        one = ByType(self._limits)
        one.subscribe(asked)
        return one.interest(own)

    def _copied(self) -> dict[Entry, Agents]:
        return {entry: agents.copy() for entry, agents in self._agents.items()}

    def _ways(self) -> dict[Way, frozenset[str]]:
        """The agents that are named under each way."""
        ways: dict[Way, frozenset[str]] = defaultdict(frozenset)
        for entry, agents in self._agents.items():
            ways[entry[1:]] |= agents.values
        return ways

    def confirmed(self) -> Confirmed:
        named = [agents.named for agents in self._agents.values()]
        everybody = any(agents is None for agents in named)
        return Confirmed(
            tuple(self._words.values()),
            () if everybody else tuple(dict.fromkeys(agent for agents in named for agent in agents or ())),
        )


def _filters(entries: dict[Entry, Agents], own: frozenset[str]) -> Interest:
    """The fewest filters: one for all types that ask for the same agents in the same way."""
    types: dict[tuple[frozenset[str] | None, Narrow | None], set[str]] = {}
    for (kind, severities, components), agents in entries.items():
        if kind not in CATALOG:
            continue  # about the connection itself: it comes anyway
        named = None if agents.named is None else frozenset(agents.named)
        if named is not None and not CATALOG[kind].needs_agent:
            named |= {""}
        narrow = Narrow(without_agents=agents.without, severities=severities, components=components)
        types.setdefault((named, None if narrow == Narrow() else narrow), set()).add(kind)
    return frozenset(
        Filter(workspaces=own, agents=named, types=frozenset(kinds), narrow=narrow)
        for (named, narrow), kinds in types.items()
    )


def _values(ways: dict[Way, frozenset[str]]) -> int:
    """How many ids and words all ways name together."""
    return sum(len(part or ()) for way, agents in ways.items() for part in (*way, agents))


def _check_values(values: int, limits: Limits, path: str) -> None:
    if values > limits.max_filter_values:
        raise Refused(INVALID_MESSAGE, f"{path}: all subscriptions together may name {limits.max_filter_values} ids")


def _check_places(entries: dict[Entry, Agents]) -> None:
    """Types that ask for the same agents in the same way share a filter; others take places of their own."""
    filters = {(entry[1:], agents.named is None, agents.values) for entry, agents in entries.items()}
    if sum(len(agents) for _, _, agents in filters) > MAX_PLACES:
        raise Refused(INVALID_MESSAGE, "$.data.agents: too many different agents for different event types")
