"""Groups: whom the hub delivers to together, and how.

A `Group` has connections that want the same: each event is encoded once per variant, the frames of a batch are joined
once, and each member gets one write. What is for one member alone is kept out of these frames: a `Sample` keeps the
newest of what its members take at intervals of their own, a `Watch` has the runs of one client, which come and go, a
`Tap` hands events on as they are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from broker.catalog import RUN_ENDS
from broker.events import Carried
from broker.filters import Filter
from broker.lines import Gap

from .dialects.base import Variant
from .messages import Interest

Write = Callable[[bytes], None]
Count = Callable[[int, int], None]
Take = Callable[[list[Carried]], None]

# Joined frames of one write; beyond it a batch goes out in several.
MAX_WRITE_BYTES = 128 * 1024

# What is kept for one member that is behind.
MAX_HELD_BYTES = 4 * 1024 * 1024

# Ended runs that a watch remembers.
MAX_ENDED = 1000


class Member(Protocol):
    """A connection, to the hub."""

    @property
    def write(self) -> Write:
        """Send ready-made frames."""

    @property
    def count(self) -> Count | None:
        """Hear how many events each write had, and how many bytes; None: no need."""

    def gap(self, gap: Gap) -> None:
        """Hear of lost events."""

    def fail(self) -> None:
        """End, since we cannot deliver."""


class Deliveries:
    """What was delivered to one dialect, counted per group and batch."""

    __slots__ = ("bytes", "events")

    def __init__(self) -> None:
        self.events = 0
        self.bytes = 0


class Group:
    """Members that want the same in the same form. One that is `held` keeps its events for a member that is behind."""

    __slots__ = (
        "counts", "delivered_at", "deliveries", "has_overflowed", "held", "held_bytes", "interest", "key", "members",
        "variant",
    )  # fmt: skip

    def __init__(self, key: object, variant: Variant, interest: Interest, deliveries: Deliveries, now: float) -> None:
        self.key = key
        self.variant = variant
        self.interest = interest
        self.deliveries = deliveries
        self.members: dict[Member, Write] = {}
        self.counts: dict[Member, Count] = {}
        self.delivered_at = now
        self.held: list[Carried | Gap] | None = None  # a gap stands where it came
        self.held_bytes = 0
        self.has_overflowed = False  # something held was let go: it must be read from the log

    @property
    def wanted(self) -> Interest:
        """The filters that stand in the index."""
        return self.interest

    def deliver(self, events: list[Carried], now: float) -> None:
        """Write `events` to every member."""
        if self.held is not None:
            self.held.extend(events)
            self.held_bytes += sum(len(bytes(event.data)) + 300 for event in events)
            if self.held_bytes > MAX_HELD_BYTES:
                gaps = [kept for kept in self.held if isinstance(kept, Gap)]
                self.held, self.held_bytes, self.has_overflowed = [*gaps], 0, True
            return
        members, deliveries = self.members, self.deliveries
        for count, data in frames_of(events, self.variant):
            self.delivered_at = now
            for write in members.values():
                write(data)
            if self.counts:
                for tell in self.counts.values():
                    tell(count, len(data))
            # Counted once for all of them.
            deliveries.events += count * len(members)
            deliveries.bytes += len(data) * len(members)


class Sample(Group):
    """Members that take the newest event of each workspace that they want, each in its own time."""

    __slots__ = ("_newest", "number", "taken")

    def __init__(self, key: object, variant: Variant, interest: Interest, deliveries: Deliveries, now: float) -> None:
        super().__init__(key, variant, interest, deliveries, now)
        self.number = 0  # of the newest event
        self.taken: dict[Member, int] = {}
        self._newest: dict[str, tuple[int, Carried]] = {}

    def deliver(self, events: list[Carried], now: float) -> None:
        for event in events:
            self.number += 1
            self._newest.pop(event.workspace_id, None)  # the order is that of their arrival
            self._newest[event.workspace_id] = self.number, event

    def take(self, member: Member, now: float) -> None:
        """Write to `member` what is newer than what it took last."""
        events = [event for number, event in self._newest.values() if number > self.taken[member]]
        self.taken[member] = self.number
        for count, data in frames_of(events, self.variant) if events else ():
            self.delivered_at = now
            self.members[member](data)
            if member in self.counts:
                self.counts[member](count, len(data))
            self.deliveries.events += count
            self.deliveries.bytes += len(data)


class Watch(Group):
    """The runs of one member at one endpoint: each is wanted from before its first event until its last.

    They come and go one by one, so that a client with thousands of them does not move to another group with each.
    `runs` are those that have not ended, each with its deadline (Unix seconds); of the others `ended` has the last.

    A run that may have begun before is watched `in_doubt` until that is known: what comes of it meanwhile is not
    delivered but `missed`, since something else may have to be delivered before. One that Redis did not answer for is
    `unanswered` until something comes of it: its client was refused, and may never hear of it.
    """

    __slots__ = ("_on_end", "ended", "endpoint", "in_doubt", "missed", "runs", "unanswered", "workspace")

    def __init__(
        self,
        variant: Variant,
        workspace: str,
        endpoint: str,
        deliveries: Deliveries,
        on_end: "Callable[[Watch, str], None]",
    ) -> None:
        self.workspace = workspace
        self.endpoint = endpoint
        # Its key is nobody else's; nor is it the member, as each would keep the other then.
        super().__init__(object(), variant, frozenset((self.only(()),)), deliveries, 0.0)
        self._on_end = on_end
        self.runs: dict[str, float] = {}
        self.ended: dict[str, None] = {}
        self.in_doubt: set[str] = set()
        self.missed: set[str] = set()
        self.unanswered: set[str] = set()

    @property
    def wanted(self) -> Interest:
        return frozenset((self.only(self.runs),))

    def only(self, runs: Iterable[str]) -> Filter:
        """What is told of these runs."""
        return Filter(
            workspaces=frozenset((self.workspace,)), agents=frozenset((self.endpoint,)), subjects=frozenset(runs)
        )

    def deliver(self, events: list[Carried], now: float) -> None:
        if self.in_doubt:
            self.missed.update(event.execution_id for event in events if event.execution_id in self.in_doubt)
            events = [event for event in events if event.execution_id not in self.in_doubt]
        if events:
            super().deliver(events, now)
            self.note(events)

    def note(self, events: Iterable[Carried]) -> None:
        """These were written to the member."""
        for event in events:
            self.unanswered.discard(event.execution_id or "")
            # One without a position is somebody's PUBLISH: a run says its end in the log.
            if event.type in RUN_ENDS and event.id is not None and event.execution_id in self.runs:
                self._on_end(self, event.execution_id)


class Tap(Group):
    """Not for a client: hands events on as they are."""

    __slots__ = ("_take",)

    def __init__(self, variant: Variant, interest: Interest, take: Take) -> None:
        super().__init__(self, variant, interest, Deliveries(), 0.0)
        self._take = take

    def deliver(self, events: list[Carried], now: float) -> None:
        self._take(events)


def frame_of(event: Carried, variant: Variant) -> bytes | None:
    """The frame of an event, made once per variant; None where the dialect has no word for it."""
    made: dict[object, bytes | None] = event.made
    if variant in made:
        return made[variant]
    words = variant.encode(event)
    frame = made[variant] = variant.frame(words) if words is not None else None
    return frame


def frames_of(events: list[Carried], variant: Variant) -> Sequence[tuple[int, bytes]]:
    """The frames of `events`, joined, with their number; in pieces of bounded size."""
    if len(events) == 1:
        frame = frame_of(events[0], variant)
        return () if frame is None else ((1, frame),)
    made = [frame for event in events if (frame := frame_of(event, variant)) is not None]
    size = sum(map(len, made))
    if size <= MAX_WRITE_BYTES:
        return [(len(made), b"".join(made))] if made else []
    pieces: list[tuple[int, bytes]] = []
    joined: list[bytes] = []
    size = 0
    for frame in made:
        if joined and size + len(frame) > MAX_WRITE_BYTES:
            pieces.append((len(joined), b"".join(joined)))
            joined, size = [], 0
        joined.append(frame)
        size += len(frame)
    pieces.append((len(joined), b"".join(joined)))
    return pieces
