"""The hub: one match and one encoding for many. Pure: it is told who wants what, and writes what they are owed.

Connections with equal interests and the same variant are one group; a connection is in one group at most, so nothing
is delivered twice. Groups stand in an index under what each of their filters pins down most: a subject, else an agent,
else the workspace. An event costs the groups that can match it, whatever the number of groups or connections.
"""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from broker.events import Carried
from broker.filters import Filter
from broker.lines import Gap, Want

from .dialects.base import Variant
from .groups import MAX_ENDED, Deliveries, Group, Member, Sample, Take, Tap, Watch
from .messages import Interest

logger = logging.getLogger("trunkline.hub")

# Events about a workspace as a whole.
VITAL = frozenset({"metrics_update", "performance_alert"})

# A group, and those of its filters that stand in this place of the index. None: one of them asks nothing but the place.
Place = dict[Group, tuple[Filter, ...] | None]


class Index:
    """The groups that want something of one workspace, by what their filters pin down."""

    __slots__ = ("agents", "everything", "subjects")

    def __init__(self) -> None:
        self.subjects: dict[str, Place] = {}
        self.agents: dict[str, Place] = {}
        self.everything: Place = {}

    def places(self, wanted: Filter) -> Iterator[tuple[dict[str, Place] | None, str]]:
        """Where a filter stands: a table and its key, or the place of all."""
        if wanted.subjects is not None:
            return ((self.subjects, subject) for subject in wanted.subjects)
        if wanted.agents is not None:
            return ((self.agents, agent) for agent in wanted.agents)
        return iter(((None, ""),))

    def add(self, group: Group, wanted: Filter) -> None:
        asks_more = (
            wanted.types is not None
            or (wanted.subjects is not None and wanted.agents is not None)
            or wanted.narrow is not None
        )
        for table, key in self.places(wanted):
            place = self.everything if table is None else table.setdefault(key, {})
            others = place.get(group, ())
            place[group] = (*others, wanted) if asks_more and others is not None else None

    def remove(self, group: Group, wanted: Filter) -> None:
        """Take the group out of the places of `wanted`. A group leaves with all of its filters."""
        for table, key in self.places(wanted):
            place = self.everything if table is None else table.get(key, {})
            place.pop(group, None)
            if table is not None and not place:
                table.pop(key, None)

    @property
    def is_empty(self) -> bool:
        return not (self.subjects or self.agents or self.everything)

    def match(self, event: Carried, owed: dict[Group, list[Carried]]) -> None:
        """Owe `event` to each group that wants it, once."""
        kind, agent = event.type, event.agent_id or ""
        subject = event.task_id or event.inference_id or event.execution_id
        for place in (
            self.subjects.get(subject) if subject is not None else None,
            self.agents.get(agent),
            self.everything,
        ):
            if not place:
                continue
            for group, filters in place.items():
                if filters is None or _any_asks(filters, event, kind, subject, agent):
                    events = owed.get(group)
                    if events is None:
                        owed[group] = [event]
                    elif events[-1] is not event:  # another place of the index may have found it before
                        events.append(event)


def _any_asks(filters: tuple[Filter, ...], event: Carried, kind: str, subject: str | None, agent: str) -> bool:
    """True when one of a workspace's filters asks for this."""
    for wanted in filters:
        if (
            (wanted.types is None or kind in wanted.types)
            and (wanted.agents is None or agent in wanted.agents)
            and (wanted.subjects is None or subject in wanted.subjects)
            and (wanted.narrow is None or wanted.narrow.admits(event))
        ):
            return True
    return False


G = TypeVar("G", bound=Group)


class Hub:
    """All groups of a node."""

    def __init__(self) -> None:
        self._groups: dict[object, Group] = {}
        self._indexes: dict[str, Index] = {}
        self._group_of: dict[Member, Group] = {}
        self._sample_of: dict[Member, Sample] = {}
        self.watches: set[Watch] = set()
        self.deliveries: dict[str, Deliveries] = {}

    @property
    def groups(self) -> int:
        return len(self._groups)

    # -- membership

    def place(self, member: Member, variant: Variant, interest: Interest, now: float) -> None:
        """Move `member` to the group of `interest`; without one it is in none."""
        self._leave(self._group_of, member)
        if interest:
            group = self._group(Group, (variant, interest), variant, interest, now)
            group.delivered_at = max(group.delivered_at, now) if not group.members else group.delivered_at
            self._enter(group, member)
            self._group_of[member] = group

    def hold(self, member: Member, variant: Variant, interest: Interest, now: float) -> Group:
        """Move `member` to a group of its own that keeps what it is owed, until it is placed again."""
        self._leave(self._group_of, member)
        group = self._group(Group, member, variant, interest, now)
        group.held = []
        self._group_of[member] = group
        return group

    def holds(self, member: Member) -> bool:
        """True while `member` is in a group that keeps its events."""
        group = self._group_of.get(member)
        return group is not None and group.held is not None

    def watch(self, variant: Variant, workspace: str, endpoint: str) -> Watch:
        """Where the runs of one member at an endpoint are kept. It takes effect when that enters it."""
        deliveries = self.deliveries.setdefault(variant.dialect, Deliveries())
        return Watch(variant, workspace, endpoint, deliveries, self.end_run)

    def enter(self, watch: Watch, member: Member) -> None:
        """Move `member` to its watch."""
        self._leave(self._group_of, member)
        self._groups[watch.key] = watch
        self.watches.add(watch)
        self._index(watch)
        self._enter(watch, member)
        self._group_of[member] = watch

    def add_run(self, watch: Watch, run: str, deadline: float, *, is_in_doubt: bool = False) -> None:
        """Deliver the events of one more run; where it `is_in_doubt`, only after `settle_run`."""
        watch.runs[run] = deadline
        if is_in_doubt:
            watch.in_doubt.add(run)
        self._add(watch, watch.only((run,)))

    def settle_run(self, watch: Watch, run: str) -> bool:
        """Deliver the events of a run that was in doubt from now on. False when some were missed."""
        watch.in_doubt.discard(run)
        has_missed = run in watch.missed
        watch.missed.discard(run)
        return not has_missed

    def drop_run(self, watch: Watch, run: str) -> None:
        """Deliver nothing of a run, as if it had not been added."""
        self.settle_run(watch, run)
        watch.unanswered.discard(run)
        if watch.runs.pop(run, None) is not None:
            self._remove(watch, watch.only((run,)))

    def end_run(self, watch: Watch, run: str) -> None:
        """Nothing more comes of a run."""
        self.drop_run(watch, run)
        watch.ended[run] = None
        if len(watch.ended) > MAX_ENDED:
            del watch.ended[next(iter(watch.ended))]

    def sample(self, member: Member, variant: Variant, interest: Interest, now: float) -> None:
        """Keep the newest of `interest` for `member`, besides its group; without an interest nothing is kept."""
        key = (Sample, variant, interest)
        sample = self._sample_of.get(member)
        if sample is not None and sample.key == key:
            self._enter(sample, member)  # what waits for it stays
            return
        self._leave(self._sample_of, member)
        if interest:
            sample = self._group(Sample, key, variant, interest, now)
            sample.taken[member] = sample.number
            self._enter(sample, member)
            self._sample_of[member] = sample

    def take_sample(self, member: Member, now: float) -> None:
        """Write to `member` the newest of what is sampled for it."""
        sample = self._sample_of.get(member)
        if sample is not None:
            sample.take(member, now)

    def tap(self, variant: Variant, interest: Interest, take: Take) -> Callable[[], None]:
        """Hand every event of `interest` to `take`, until the function that this answers is called."""
        tap = Tap(variant, interest, take)
        self._groups[tap] = tap
        self._index(tap)
        return lambda: self._drop(tap)

    def remove(self, member: Member) -> None:
        self._leave(self._group_of, member)
        self._leave(self._sample_of, member)

    def delivered_at(self, member: Member) -> float:
        """When an event went out to `member` last, as far as its group knows."""
        group = self._group_of.get(member)
        return group.delivered_at if group is not None else 0.0

    def _enter(self, group: Group, member: Member) -> None:
        group.members[member] = member.write
        if (count := member.count) is not None:
            group.counts[member] = count

    def _leave(self, groups: "dict[Member, G]", member: Member) -> None:
        group = groups.pop(member, None)
        if group is None:
            return
        group.members.pop(member, None)
        group.counts.pop(member, None)
        if isinstance(group, Sample):
            group.taken.pop(member, None)
        if not group.members:
            self._drop(group)

    def _group(self, kind: "type[G]", key: object, variant: Variant, interest: Interest, now: float) -> "G":
        group = self._groups.get(key)
        if group is None:
            deliveries = self.deliveries.setdefault(variant.dialect, Deliveries())
            group = self._groups[key] = kind(key, variant, interest, deliveries, now)
            self._index(group)
        assert isinstance(group, kind)
        return group

    def _index(self, group: Group) -> None:
        for wanted in group.wanted:
            self._add(group, wanted)

    def _drop(self, group: Group) -> None:
        if self._groups.pop(group.key, None) is not None:
            if isinstance(group, Watch):
                self.watches.discard(group)
            for wanted in group.wanted:
                self._remove(group, wanted)

    def _add(self, group: Group, wanted: Filter) -> None:
        for workspace in wanted.workspaces:
            self._indexes.setdefault(workspace, Index()).add(group, wanted)

    def _remove(self, group: Group, wanted: Filter) -> None:
        for workspace in wanted.workspaces:
            index = self._indexes.get(workspace)  # another filter may have emptied it
            if index is not None:
                index.remove(group, wanted)
                if index.is_empty:
                    del self._indexes[workspace]

    # -- delivery

    def dispatch(self, events: list[Carried], now: float) -> None:
        """Deliver a batch."""
        owed: dict[Group, list[Carried]] = {}
        for event in events:
            index = self._indexes.get(event.workspace_id)
            if index is not None:
                index.match(event, owed)
        for group, matched in owed.items():
            try:
                group.deliver(matched, now)
            except Exception:
                logger.exception("a bug ended the connections of a group while events were delivered")
                for member in list(group.members):
                    member.fail()

    def lose(self, gap: Gap) -> None:
        """Tell the members that watched what a gap is in; one that is behind hears of it in its place."""
        for member, group in list(self._group_of.items()):
            if not any(_touches(gap, wanted) for wanted in group.interest):
                continue
            if group.held is None:
                member.gap(gap)
            else:
                group.held.append(gap)


def _touches(gap: Gap, wanted: Filter) -> bool:
    return gap.workspace in wanted.workspaces and (
        gap.agents is None or wanted.agents is None or bool(gap.agents & wanted.agents)
    )


def matches(interest: Interest, event: Carried) -> bool:
    """True when any filter of `interest` matches."""
    return any(wanted.matches(event) for wanted in interest)


def wants(interest: Interest) -> frozenset[Want]:
    """What the feed must bring for `interest`."""
    return frozenset(
        (workspace, agent)
        for wanted in interest
        for workspace in wanted.workspaces
        for agent in ((None,) if wanted.agents is None else wanted.agents)
    )


def within(interest: Interest, workspaces: frozenset[str]) -> Interest:
    """What of `interest` lies in `workspaces`."""
    if all(wanted.workspaces <= workspaces for wanted in interest):
        return interest
    narrowed = (msgspec.structs.replace(each, workspaces=each.workspaces & workspaces) for each in interest)
    return frozenset(each for each in narrowed if each.workspaces)


def vital(interest: Interest) -> frozenset[str]:
    """The workspaces whose own figures `interest` asks for by name: somebody has to compute them."""
    return frozenset(name for wanted in interest if (wanted.types or frozenset()) & VITAL for name in wanted.workspaces)


def agents_of(interest: Interest, workspace: str) -> frozenset[str] | None:
    """The agents that `interest` asks for in a workspace; None: all of it, empty: nothing of it."""
    agents: frozenset[str] = frozenset()
    for wanted in interest:
        if workspace in wanted.workspaces:
            if wanted.agents is None:
                return None
            agents |= wanted.agents
    return agents
