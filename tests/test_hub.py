"""The hub gives every member exactly what its interest asks for: in order, once, and made once for all who want it."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from broker.events import Carried
from broker.filters import Filter, Narrow
from broker.lines import Gap
from broker.positions import Position
from gateway import frames, groups
from gateway.dialects import Variant
from gateway.dialects.maxicore import VARIANTS
from gateway.groups import frame_of, frames_of
from gateway.hub import Hub, agents_of, matches, wants
from gateway.messages import Interest

NOW = 1000.0

WORKSPACES, AGENTS, TASKS = ["ws-1", "ws-2"], ["agent-1", "agent-2"], ["task-1", "task-2"]
TYPES = ["task.started", "task.progress", "agent.online"]


class Member:
    """Keeps what it is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.gaps: list[Gap] = []

    @property
    def write(self) -> groups.Write:
        return self.writes.append

    @property
    def count(self) -> groups.Count | None:
        return None

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)


class Counting(Member):
    """Hears besides how much each write is."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[int, int]] = []

    @property
    def count(self) -> groups.Count | None:
        return lambda events, size: self.heard.append((events, size))


class Numbered:
    """A variant whose words for an event are its position; counts how often each was asked for."""

    def __init__(self, name: str = "both", speechless: frozenset[str] = frozenset()) -> None:
        self.encoded: Counter[str | None] = Counter()
        self.speechless = speechless
        self.variant = Variant("maxicore", name, self.encode)

    def encode(self, event: Carried) -> bytes | None:
        self.encoded[event.id] += 1
        return None if event.type in self.speechless else f"{self.variant.name} {event.id}".encode()

    def frames(self, *events: Carried) -> bytes:
        """What a member that wants all of `events` is written."""
        return b"".join(
            frames.text(f"{self.variant.name} {event.id}".encode())
            for event in events
            if event.type not in self.speechless
        )


_numbers = iter(range(1, 10**9))


def event(
    workspace: str = "ws-1",
    agent: str | None = "agent-1",
    task: str | None = "task-1",
    kind: str = "task.progress",
    data: bytes = b"{}",
) -> Carried:
    """An event with a position of its own."""
    return Carried(
        type=kind,
        data=msgspec.Raw(data),
        id=f"{next(_numbers)}-0",
        workspace_id=workspace,
        agent_id=agent,
        task_id=task,
        timestamp="2026-03-27T10:30:45Z",
    )


def wanted(
    *workspaces: str, agents: Any = None, subjects: Any = None, types: Any = None, narrow: Narrow | None = None
) -> Filter:
    parts = {"agents": agents, "subjects": subjects, "types": types}
    given = {name: None if values is None else frozenset(values) for name, values in parts.items()}
    return Filter(workspaces=frozenset(workspaces or ["ws-1"]), narrow=narrow, **given)


def interest(*filters: Filter) -> Interest:
    return frozenset(filters)


ALL = interest(wanted())


# -- groups


def test_members_with_equal_interests_are_one_group_whatever_their_number() -> None:
    hub, numbered = Hub(), Numbered()
    members = [Member() for _ in range(100)]
    for member in members:
        hub.place(member, numbered.variant, interest(wanted(types=["task.progress"]), wanted(agents=["a"])), NOW)
    assert hub.groups == 1
    hub.place(members[0], numbered.variant, ALL, NOW)
    assert hub.groups == 2


def test_variants_of_a_dialect_are_groups_of_their_own() -> None:
    hub, flat, nested = Hub(), Numbered("flat"), Numbered("nested")
    one, other = Member(), Member()
    hub.place(one, flat.variant, ALL, NOW)
    hub.place(other, nested.variant, ALL, NOW)
    assert hub.groups == 2
    happened = event()
    hub.dispatch([happened], NOW)
    assert (one.writes, other.writes) == ([flat.frames(happened)], [nested.frames(happened)])


def test_a_member_that_is_placed_anew_leaves_its_old_group() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, interest(wanted(agents=["agent-1"])), NOW)
    hub.place(member, numbered.variant, interest(wanted(agents=["agent-2"])), NOW)
    first, second = event(agent="agent-1"), event(agent="agent-2")
    hub.dispatch([first, second], NOW)
    assert member.writes == [numbered.frames(second)]
    assert hub.groups == 1


def test_a_member_without_an_interest_is_in_no_group() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, ALL, NOW)
    hub.place(member, numbered.variant, interest(), NOW)
    hub.dispatch([event()], NOW)
    assert (hub.groups, member.writes) == (0, [])


def test_a_member_that_left_is_written_nothing_and_may_leave_twice() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.remove(member)
    hub.place(member, numbered.variant, ALL, NOW)
    hub.remove(member)
    hub.remove(member)
    hub.dispatch([event()], NOW)
    assert (hub.groups, member.writes) == (0, [])


@pytest.mark.parametrize(
    "filters",
    [
        [wanted(types=["task.started"]), wanted(types=["task.progress"])],
        [wanted(agents=["agent-1"]), wanted(agents=["agent-1"], types=["task.progress"])],
        [wanted(subjects=["task-1"]), wanted(subjects=["task-1"], agents=["agent-1"])],
        [wanted("ws-1", "ws-2"), wanted("ws-1", types=["task.progress"])],
    ],
    ids=["two of everything", "two of one agent", "two of one task", "two workspaces"],
)
def test_the_last_member_may_leave_with_filters_that_stand_in_one_place(filters: list[Filter]) -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    for _ in range(2):
        hub.place(member, numbered.variant, interest(*filters), NOW)
        hub.remove(member)
        assert is_empty(hub)


def is_empty(hub: Hub) -> bool:
    """Nothing is kept of those who left. The index is looked at from inside: what stays in it shows nowhere else."""
    return hub.groups == 0 and not hub._indexes


# -- one encoding, one write


def test_an_event_is_encoded_once_per_variant_for_all_groups_and_members() -> None:
    hub, both, flat = Hub(), Numbered("both"), Numbered("flat")
    for numbered in (both, flat):
        for some in (ALL, interest(wanted(agents=["agent-1"])), interest(wanted(subjects=["task-1"]))):
            for _ in range(5):
                hub.place(Member(), numbered.variant, some, NOW)
    events = [event() for _ in range(3)]
    hub.dispatch(events, NOW)
    assert both.encoded == flat.encoded == Counter({happened.id: 1 for happened in events})


def test_a_batch_is_one_write_of_joined_frames_per_member() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, ALL, NOW)
    events = [event(kind=kind) for kind in TYPES * 3]
    hub.dispatch(events, NOW)
    assert member.writes == [numbered.frames(*events)]


def test_what_nobody_wants_is_not_encoded() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, interest(wanted(agents=["agent-2"])), NOW)
    hub.dispatch([event("ws-1"), event("ws-2", agent="agent-2")], NOW)
    assert (numbered.encoded, member.writes) == ({}, [])


def test_what_a_dialect_has_no_word_for_is_not_written_and_not_asked_for_again() -> None:
    hub, numbered, member = Hub(), Numbered(speechless=frozenset({"agent.online"})), Member()
    hub.place(member, numbered.variant, ALL, NOW)
    hub.place(Member(), numbered.variant, interest(wanted(agents=["agent-1"])), NOW)
    alone, first, second = event(kind="agent.online"), event(kind="agent.online"), event()
    hub.dispatch([alone], NOW)
    assert member.writes == []
    hub.dispatch([event(kind="agent.online"), first], NOW)
    assert member.writes == []
    hub.dispatch([first, second], NOW)
    assert member.writes == [numbered.frames(second)]
    assert numbered.encoded[first.id] == 1


def test_a_large_batch_goes_out_in_pieces_of_bounded_size() -> None:
    hub, member = Hub(), Member()
    hub.place(member, VARIANTS["flat"], ALL, NOW)
    events = [event(data=b'{"output":"%s"}' % (b"x" * (500 + 7 * number))) for number in range(400)]
    hub.dispatch(events, NOW)
    assert len(member.writes) > 1
    assert all(len(data) <= groups.MAX_WRITE_BYTES for data in member.writes)
    assert b"".join(member.writes) == b"".join(filter(None, (frame_of(it, VARIANTS["flat"]) for it in events)))


def test_an_event_larger_than_a_piece_goes_out_whole() -> None:
    small, large = event(), event(data=b'{"output":"%s"}' % (b"x" * 2 * groups.MAX_WRITE_BYTES))
    assert [count for count, _ in frames_of([small, large, small], VARIANTS["flat"])] == [1, 1, 1]


def test_what_was_delivered_is_counted_once_per_member() -> None:
    hub, numbered = Hub(), Numbered(speechless=frozenset({"agent.online"}))
    members = [Member() for _ in range(3)]
    for member in members:
        hub.place(member, numbered.variant, ALL, NOW)
    hub.place(Member(), numbered.variant, interest(wanted("ws-2")), NOW)
    hub.dispatch([event(), event(kind="agent.online"), event()], NOW)
    assert hub.deliveries["maxicore"].events == 3 * 2
    assert hub.deliveries["maxicore"].bytes == sum(len(data) for member in members for data in member.writes)


def test_when_something_went_out_last_is_known_of_each_member() -> None:
    hub, numbered, member, newcomer = Hub(), Numbered(), Member(), Member()
    assert hub.delivered_at(member) == 0
    hub.place(member, numbered.variant, ALL, NOW)
    hub.dispatch([event()], NOW + 5)
    assert hub.delivered_at(member) == NOW + 5
    hub.place(newcomer, numbered.variant, ALL, NOW + 9)
    hub.dispatch([event("ws-2")], NOW + 10)
    assert hub.delivered_at(member) == NOW + 5


def test_a_member_that_wants_to_know_hears_how_many_events_and_bytes_each_write_has() -> None:
    hub, numbered, counting, other = Hub(), Numbered(speechless=frozenset({"agent.online"})), Counting(), Member()
    for member in (counting, other):
        hub.place(member, numbered.variant, ALL, NOW)
    hub.dispatch([event(), event(kind="agent.online"), event()], NOW)
    hub.dispatch([event("ws-2"), event(kind="agent.online")], NOW)
    hub.dispatch([event()], NOW)
    assert counting.heard == [(2, len(counting.writes[0])), (1, len(counting.writes[1]))]
    assert other.writes == counting.writes


def test_a_large_batch_is_counted_write_by_write() -> None:
    hub, counting = Hub(), Counting()
    hub.place(counting, VARIANTS["flat"], ALL, NOW)
    hub.dispatch([event(data=b'{"output":"%s"}' % (b"x" * 1000)) for _ in range(400)], NOW)
    assert [size for _, size in counting.heard] == [len(data) for data in counting.writes]
    assert sum(events for events, _ in counting.heard) == 400


def test_who_left_hears_of_no_more_writes() -> None:
    hub, numbered, counting = Hub(), Numbered(), Counting()
    hub.place(Member(), numbered.variant, ALL, NOW)
    hub.place(counting, numbered.variant, ALL, NOW)
    hub.hold(counting, numbered.variant, ALL, NOW)
    hub.dispatch([event()], NOW)
    hub.remove(counting)
    hub.dispatch([event()], NOW)
    assert counting.heard == []


# -- filters that narrow

ERROR, INFO = b'{"severity":"error"}', b'{"severity":"info"}'
NARROW = Narrow(severities=frozenset({"error"}))


@pytest.mark.parametrize("agents", [None, ["agent-1"]])
def test_a_filter_that_asks_nothing_but_to_be_narrow_is_narrow(agents: Any) -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, interest(wanted(agents=agents, narrow=NARROW)), NOW)
    fits, unconcerned = event(data=ERROR), event()
    hub.dispatch([event(data=INFO), fits, unconcerned], NOW)
    assert member.writes == [numbered.frames(fits, unconcerned)]


def test_a_filter_that_is_not_narrow_wants_what_a_narrow_one_does_not() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, interest(wanted(narrow=NARROW), wanted(agents=["agent-2"])), NOW)
    wide, fits = event(agent="agent-2", data=INFO), event(data=ERROR)
    hub.dispatch([event(data=INFO), wide, fits], NOW)
    assert member.writes == [numbered.frames(wide, fits)]


def test_agents_that_are_left_out_are_left_out_of_all_others() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    without = Narrow(without_agents=frozenset({"agent-1"}))
    hub.place(member, numbered.variant, interest(wanted(narrow=without)), NOW)
    other, nobodys = event(agent="agent-2"), event(agent=None)
    hub.dispatch([event(agent="agent-1"), other, nobodys], NOW)
    assert member.writes == [numbered.frames(other, nobodys)]


def test_data_is_not_read_where_nobody_asks_for_what_stands_in_it() -> None:
    hub, numbered = Hub(), Numbered()
    hub.place(Member(), numbered.variant, ALL, NOW)
    hub.place(Member(), numbered.variant, interest(wanted(types=["agent.online"], narrow=NARROW)), NOW)
    happened = event(data=ERROR)
    hub.dispatch([happened], NOW)
    assert list(happened.made) == [numbered.variant]


# -- samples


def test_of_what_is_sampled_a_member_takes_the_newest_when_it_is_time() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.sample(member, numbered.variant, ALL, NOW)
    batches = [[event(), event()], [event()]]
    for batch in batches:
        hub.dispatch(batch, NOW)
    assert member.writes == []
    hub.take_sample(member, NOW)
    assert member.writes == [numbered.frames(batches[-1][-1])]
    assert numbered.encoded.total() == 1, "what nobody takes is not encoded"


def test_nothing_is_taken_twice() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.take_sample(member, NOW)
    hub.sample(member, numbered.variant, ALL, NOW)
    hub.take_sample(member, NOW)
    hub.dispatch([first := event()], NOW)
    hub.take_sample(member, NOW)
    hub.take_sample(member, NOW)
    hub.dispatch([second := event()], NOW)
    hub.take_sample(member, NOW)
    assert member.writes == [numbered.frames(first), numbered.frames(second)]


def test_each_workspace_has_a_newest_of_its_own_whoever_it_is_from() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.sample(member, numbered.variant, interest(wanted("ws-1", "ws-2")), NOW)
    old, elsewhere, nobodys, newest = event(), event("ws-2"), event(agent=None), event(agent="agent-2")
    hub.dispatch([old, elsewhere, nobodys, newest], NOW)
    hub.take_sample(member, NOW)
    assert member.writes == [numbered.frames(elsewhere, newest)]


def test_members_of_one_sample_take_each_in_its_own_time_what_was_encoded_once() -> None:
    hub, numbered, quick, slow = Hub(), Numbered(), Member(), Member()
    for member in (quick, slow):
        hub.sample(member, numbered.variant, ALL, NOW)
    assert hub.groups == 1
    events = [event() for _ in range(3)]
    for happened in events:
        hub.dispatch([happened], NOW)
        hub.take_sample(quick, NOW)
    hub.take_sample(slow, NOW)
    assert quick.writes == [numbered.frames(happened) for happened in events]
    assert slow.writes == [numbered.frames(events[-1])]
    assert numbered.encoded == Counter({happened.id: 1 for happened in events})


def test_who_comes_later_takes_nothing_from_before() -> None:
    hub, numbered, member, newcomer = Hub(), Numbered(), Member(), Member()
    hub.sample(member, numbered.variant, ALL, NOW)
    hub.dispatch([event()], NOW)
    hub.sample(newcomer, numbered.variant, ALL, NOW)
    hub.take_sample(newcomer, NOW)
    assert newcomer.writes == []
    hub.dispatch([happened := event()], NOW)
    hub.take_sample(newcomer, NOW)
    assert newcomer.writes == [numbered.frames(happened)]


def test_a_sample_stands_beside_what_is_delivered_as_it_comes() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.place(member, numbered.variant, interest(wanted(types=["task.progress"])), NOW)
    hub.sample(member, numbered.variant, interest(wanted(types=["agent.online"])), NOW)
    sampled, live = [event(kind="agent.online") for _ in range(3)], event()
    hub.dispatch([*sampled, live], NOW)
    hub.take_sample(member, NOW)
    assert member.writes == [numbered.frames(live), numbered.frames(sampled[-1])]
    hub.place(member, numbered.variant, interest(), NOW)
    hub.dispatch([event(), last := event(kind="agent.online")], NOW)
    hub.take_sample(member, NOW)
    assert member.writes[2:] == [numbered.frames(last)]


def test_who_changes_what_is_sampled_or_leaves_takes_nothing_more_of_the_old() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.sample(member, numbered.variant, ALL, NOW)
    hub.dispatch([event()], NOW)
    hub.sample(member, numbered.variant, interest(wanted("ws-2")), NOW)
    hub.take_sample(member, NOW)
    hub.dispatch([event(), event("ws-2")], NOW)
    hub.remove(member)
    hub.take_sample(member, NOW)
    assert member.writes == []
    assert is_empty(hub)
    hub.sample(member, numbered.variant, ALL, NOW)
    hub.sample(member, numbered.variant, interest(), NOW)
    assert is_empty(hub)


def test_who_asks_again_for_the_sample_that_it_has_still_takes_what_waits() -> None:
    """A client that subscribes to something else besides is placed anew, and must not lose the newest by it."""
    hub, numbered, member = Hub(), Numbered(), Member()
    hub.sample(member, numbered.variant, ALL, NOW)
    hub.dispatch([happened := event()], NOW)
    hub.sample(member, numbered.variant, ALL, NOW)
    hub.take_sample(member, NOW)
    hub.take_sample(member, NOW)
    assert member.writes == [numbered.frames(happened)]


def test_what_is_taken_is_counted() -> None:
    hub, numbered, counting = Hub(), Numbered(), Counting()
    hub.sample(counting, numbered.variant, interest(wanted("ws-1", "ws-2")), NOW)
    hub.dispatch([event(), event("ws-2"), event()], NOW)
    assert hub.deliveries["maxicore"].events == 0
    hub.take_sample(counting, NOW)
    [data] = counting.writes
    assert counting.heard == [(2, len(data))]
    assert (hub.deliveries["maxicore"].events, hub.deliveries["maxicore"].bytes) == (2, len(data))


# -- taps


def test_a_tap_is_handed_what_it_asks_for_as_it_is_until_it_is_ended() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    taken: list[list[Carried]] = []
    end = hub.tap(numbered.variant, ALL, taken.append)
    hub.place(member, numbered.variant, ALL, NOW)
    first, second = [event(), event()], [event()]
    hub.dispatch([*first, event("ws-2")], NOW)
    hub.dispatch(second, NOW)
    assert taken == [first, second]
    assert member.writes == [numbered.frames(*first), numbered.frames(*second)]
    end()
    end()
    hub.dispatch([event()], NOW)
    assert len(taken) == 2
    hub.remove(member)
    assert is_empty(hub)


def test_a_tap_has_nothing_encoded_and_delivers_nothing() -> None:
    hub, numbered = Hub(), Numbered()
    hub.tap(numbered.variant, ALL, lambda events: None)
    hub.dispatch([event()], NOW)
    assert numbered.encoded == {}
    assert not any(deliveries.events for deliveries in hub.deliveries.values())


def test_two_taps_of_one_interest_are_two() -> None:
    hub, numbered = Hub(), Numbered()
    taken: list[str] = []
    end = hub.tap(numbered.variant, ALL, lambda events: taken.append("one"))
    hub.tap(numbered.variant, ALL, lambda events: taken.append("other"))
    hub.dispatch([event()], NOW)
    end()
    hub.dispatch([event()], NOW)
    assert sorted(taken) == ["one", "other", "other"]


def test_a_tap_that_fails_keeps_nobody_from_what_is_owed(caplog: pytest.LogCaptureFixture) -> None:
    hub, numbered, member = Hub(), Numbered(), Member()

    def fail(events: list[Carried]) -> None:
        raise RuntimeError

    hub.tap(numbered.variant, ALL, fail)
    hub.place(member, numbered.variant, ALL, NOW)
    hub.dispatch([happened := event()], NOW)
    assert member.writes == [numbered.frames(happened)]
    assert len(caplog.records) == 1


# -- holding


def test_a_member_on_hold_is_written_nothing_and_what_it_is_owed_is_kept_in_order() -> None:
    hub, numbered, member, other = Hub(), Numbered(), Member(), Member()
    hub.place(other, numbered.variant, ALL, NOW)
    group = hub.hold(member, numbered.variant, ALL, NOW)
    events = [event() for _ in range(3)]
    hub.dispatch(events[:2], NOW)
    hub.dispatch([event("ws-2"), events[2]], NOW)
    assert member.writes == []
    assert group.held == events
    assert other.writes == [numbered.frames(*events[:2]), numbered.frames(events[2])]


def test_a_member_that_is_placed_again_is_live_and_what_was_held_is_the_holders_to_hand_on() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    group = hub.hold(member, numbered.variant, ALL, NOW)
    before, after = event(), event()
    hub.dispatch([before], NOW)
    hub.place(member, numbered.variant, ALL, NOW)
    hub.dispatch([after], NOW)
    assert group.held == [before]
    assert member.writes == [numbered.frames(after)]
    hub.remove(member)
    assert is_empty(hub)


def test_two_members_on_hold_are_held_apart() -> None:
    hub, numbered, one, other = Hub(), Numbered(), Member(), Member()
    first = hub.hold(one, numbered.variant, ALL, NOW)
    hub.dispatch([early := event()], NOW)
    second = hub.hold(other, numbered.variant, ALL, NOW)
    hub.dispatch([late := event()], NOW)
    assert (first.held, second.held) == ([early, late], [late])


def test_a_hold_is_bounded_and_says_when_it_let_something_go() -> None:
    hub, numbered, member = Hub(), Numbered(), Member()
    group = hub.hold(member, numbered.variant, ALL, NOW)
    large = b'{"output":"%s"}' % (b"x" * 200_000)
    batches = 0
    while not group.has_overflowed:
        hub.dispatch([event(data=large)], NOW)
        batches += 1
        assert batches * len(large) <= groups.MAX_HELD_BYTES + len(large)
        assert group.held is not None
        assert sum(len(bytes(kept.data)) for kept in group.held) <= groups.MAX_HELD_BYTES
    assert batches > 1
    hub.dispatch([last := event()], NOW)
    assert group.held == [last]


# -- gaps


@pytest.mark.parametrize(
    ("agents", "touched"),
    [
        (None, {"everything", "agent-1", "task-1", "both workspaces"}),
        (frozenset({"agent-1"}), {"everything", "agent-1", "task-1", "both workspaces"}),
        (frozenset({"agent-2"}), {"everything", "task-1", "both workspaces"}),
    ],
    ids=["of the workspace", "of a watched agent", "of another agent"],
)
def test_a_gap_touches_those_who_watched_what_it_is_in(agents: frozenset[str] | None, touched: set[str]) -> None:
    hub, numbered = Hub(), Numbered()
    members = {
        "everything": interest(wanted()),
        "agent-1": interest(wanted(agents=["agent-1"])),
        "task-1": interest(wanted(subjects=["task-1"])),
        "both workspaces": interest(wanted("ws-1", "ws-2", types=["task.progress"])),
        "another workspace": interest(wanted("ws-2")),
        "agent-1 of another workspace": interest(wanted("ws-2", agents=["agent-1"])),
    }
    placed = {name: Member() for name in members}
    for name, member in placed.items():
        hub.place(member, numbered.variant, members[name], NOW)
    lost = Gap("ws-1", agents, Position("5-0"))
    hub.lose(lost)
    assert {name: member.gaps for name, member in placed.items() if member.gaps} == {name: [lost] for name in touched}


# -- against a naive model

sometimes = st.integers(0, 2).map(bool)


def some_of(values: list[str]) -> st.SearchStrategy[frozenset[str] | None]:
    return st.none() | st.frozensets(st.sampled_from(values), min_size=1)


narrows = st.builds(
    Narrow,
    without_agents=st.frozensets(st.sampled_from(AGENTS)),
    severities=some_of(["info", "error"]),
    components=some_of(["redis", "database"]),
)
filters = st.builds(
    Filter,
    workspaces=st.frozensets(st.sampled_from(WORKSPACES), min_size=1),
    agents=some_of([*AGENTS, ""]),
    subjects=some_of(TASKS),
    types=some_of(TYPES),
    narrow=st.none() | narrows,
)
labels = [b"{}", ERROR, INFO, b'{"affected_components":["redis"]}', b'{"severity":"error","components":{"redis":""}}']
interests = st.frozensets(filters, max_size=4)
events = st.builds(
    event,
    st.sampled_from([*WORKSPACES, "ws-3"]),
    st.sampled_from([*AGENTS, None]),
    st.sampled_from([*TASKS, None]),
    st.sampled_from(TYPES),
    st.sampled_from(labels),
)


@given(st.lists(interests, max_size=8), st.lists(st.lists(events, min_size=1, max_size=6), max_size=5))
@settings(deadline=None, max_examples=200)
def test_every_member_gets_what_its_filters_match_in_order_and_once(
    asked: list[Interest], batches: list[list[Carried]]
) -> None:
    hub, numbered = Hub(), Numbered()
    members = [Member() for _ in asked]
    for member, some in zip(members, asked, strict=True):
        hub.place(member, numbered.variant, some, NOW)
    for batch in batches:
        hub.dispatch(batch, NOW)
    for member, some in zip(members, asked, strict=True):
        expected = [[it for it in batch if any(wanted.matches(it) for wanted in some)] for batch in batches]
        assert member.writes == [numbered.frames(*owed) for owed in expected if owed]


@given(interests, events)
@settings(deadline=None)
def test_what_the_feed_must_bring_for_an_interest_covers_whatever_it_matches(some: Interest, happened: Carried) -> None:
    needed, workspace, agent = wants(some), happened.workspace_id, happened.agent_id or ""
    is_brought = (workspace, None) in needed or (workspace, agent) in needed
    agents = agents_of(some, workspace)
    if matches(some, happened):
        assert is_brought
        assert agents is None or agent in agents
    assert is_brought == (agents is None or agent in agents)


class HubAgainstModel(RuleBasedStateMachine):
    """Members that come, change, wait, take samples and go in any order, against a list that is searched."""

    members = Bundle("members")

    @initialize()
    def start(self) -> None:
        self.hub = Hub()
        self.numbered = {name: Numbered(name) for name in ("both", "flat")}
        self.placed: dict[Member, tuple[str, Interest]] = {}
        self.held: dict[Member, tuple[groups.Group, list[Carried]]] = {}
        self.owed: dict[Member, bytes] = {}
        self.sampled: dict[Member, tuple[str, Interest, list[Carried]]] = {}
        self.taps: list[tuple[Any, Interest, list[Carried], list[Carried]]] = []

    @rule(target=members, kind=st.sampled_from([Member, Counting]))
    def come(self, kind: type[Member]) -> Member:
        return kind()

    @rule(member=members, name=st.sampled_from(["both", "flat"]), some=interests)
    def place(self, member: Member, name: str, some: Interest) -> None:
        self.hub.place(member, self.numbered[name].variant, some, NOW)
        self.held.pop(member, None)
        self.placed[member] = (name, some)

    @rule(member=members, name=st.sampled_from(["both", "flat"]), some=interests)
    def hold(self, member: Member, name: str, some: Interest) -> None:
        group = self.hub.hold(member, self.numbered[name].variant, some, NOW)
        self.placed[member] = (name, some)
        self.held[member] = (group, [])

    @rule(member=members, name=st.sampled_from(["both", "flat"]), some=interests)
    def sample(self, member: Member, name: str, some: Interest) -> None:
        if self.sampled.pop(member, ())[:2] == (name, some):
            some = interest()
        self.hub.sample(member, self.numbered[name].variant, some, NOW)
        if some:
            self.sampled[member] = (name, some, [])

    @rule(member=members)
    def take_sample(self, member: Member) -> None:
        self.hub.take_sample(member, NOW)
        if member in self.sampled:
            name, _, waiting = self.sampled[member]
            newest = {it.workspace_id: it for it in waiting}
            taken = self.numbered[name].frames(*(it for it in waiting if it in newest.values()))
            self.owed[member] = self.owed.get(member, b"") + taken
            waiting.clear()

    @rule(some=interests)
    def tap(self, some: Interest) -> None:
        taken: list[Carried] = []
        self.taps.append((self.hub.tap(self.numbered["both"].variant, some, taken.extend), some, taken, []))

    @rule()
    def end_a_tap(self) -> None:
        if self.taps:
            self.taps.pop(0)[0]()

    @rule(member=members)
    def remove(self, member: Member) -> None:
        self.hub.remove(member)
        self.placed.pop(member, None)
        self.held.pop(member, None)
        self.sampled.pop(member, None)

    @rule(batch=st.lists(events, max_size=5))
    def dispatch(self, batch: list[Carried]) -> None:
        self.hub.dispatch(batch, NOW)
        for member, (name, some) in self.placed.items():
            matched = [it for it in batch if any(wanted.matches(it) for wanted in some)]
            if member in self.held:
                self.held[member][1].extend(matched)
            else:
                self.owed[member] = self.owed.get(member, b"") + self.numbered[name].frames(*matched)
        for _, some, waiting in self.sampled.values():
            waiting.extend(it for it in batch if any(wanted.matches(it) for wanted in some))
        for _, some, _, expected in self.taps:
            expected.extend(it for it in batch if any(wanted.matches(it) for wanted in some))

    @rule()
    def all_leave(self) -> None:
        for member in [*self.placed, *self.sampled]:
            self.remove(member)
        while self.taps:
            self.end_a_tap()
        assert is_empty(self.hub)

    @invariant()
    def everybody_has_what_is_owed(self) -> None:
        for member, owed in self.owed.items():
            assert b"".join(member.writes) == owed
            if isinstance(member, Counting):
                assert [size for _, size in member.heard] == [len(data) for data in member.writes]
        for _, _, taken, expected in self.taps:
            assert taken == expected
        for group, kept in self.held.values():
            assert group.held == kept
        live = {(name, some) for member, (name, some) in self.placed.items() if some and member not in self.held}
        samples = {(name, some) for name, some, _ in self.sampled.values()}
        assert self.hub.groups == len(live) + len(self.held) + len(samples) + len(self.taps)


TestHubAgainstModel = HubAgainstModel.TestCase
TestHubAgainstModel.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)


# -- watches: the runs of one client


def told(run: str, kind: str = "task_start", agent: str = "shop", workspace: str = "ws-1") -> Carried:
    """An event of a run."""
    return msgspec.structs.replace(event(workspace, agent, None, kind), execution_id=run)


def watching(hub: Hub, numbered: Numbered, *runs: str, endpoint: str = "shop") -> tuple[Member, groups.Watch]:
    """Somebody who has `runs` at an endpoint."""
    member = Member()
    watch = hub.watch(numbered.variant, "ws-1", endpoint)
    hub.enter(watch, member)
    for run in runs:
        hub.add_run(watch, run, 1.0)
    return member, watch


def test_a_watch_has_its_own_runs_and_nobody_elses() -> None:
    hub, numbered = Hub(), Numbered()
    (one, _), (other, _), (nobody, _) = (watching(hub, numbered, *runs) for runs in (("a", "b"), ("b", "c"), ()))
    events = [told("a"), told("b"), told("c"), told("d")]
    hub.dispatch(events, NOW)
    assert one.writes == [numbered.frames(*events[:2])]
    assert other.writes == [numbered.frames(*events[1:3])]
    assert nobody.writes == []


def test_a_watch_ignores_the_same_run_of_another_endpoint_or_workspace() -> None:
    hub, numbered = Hub(), Numbered()
    member, _ = watching(hub, numbered, "a")
    hub.dispatch([told("a", agent="elsewhere"), told("a", workspace="ws-2")], NOW)
    assert member.writes == []


@pytest.mark.parametrize("end", ["execution_completed", "execution_failed", "execution_cancelled"])
def test_a_run_leaves_its_watch_with_its_last_event(end: str) -> None:
    hub, numbered = Hub(), Numbered()
    member, watch = watching(hub, numbered, "a", "b")
    last, late, other = told("a", end), told("a"), told("b")
    hub.dispatch([last], NOW)
    hub.dispatch([late, other], NOW)
    assert member.writes == [numbered.frames(last), numbered.frames(other)]
    assert (list(watch.runs), list(watch.ended)) == (["b"], ["a"])


def test_both_of_a_batch_are_delivered_when_the_first_of_them_is_the_last() -> None:
    hub, numbered = Hub(), Numbered()
    member, watch = watching(hub, numbered, "a", "b")
    events = [told("a"), told("a", "execution_completed"), told("b", "execution_failed")]
    hub.dispatch(events, NOW)
    assert member.writes == [numbered.frames(*events)]
    assert not watch.runs


def test_a_watch_keeps_its_runs_while_its_member_is_held() -> None:
    hub, numbered = Hub(), Numbered()
    member, watch = watching(hub, numbered, "a")
    group = hub.hold(member, numbered.variant, watch.wanted, NOW)
    held, live = told("a"), told("a")
    hub.dispatch([held], NOW)
    assert (group.held, member.writes) == ([held], [])
    assert not hub.watches
    hub.enter(watch, member)
    hub.dispatch([live], NOW)
    assert member.writes == [numbered.frames(live)]
    assert hub.watches == {watch}


def test_nothing_is_left_of_a_watch_whose_member_has_gone() -> None:
    hub, numbered = Hub(), Numbered()
    member, _ = watching(hub, numbered, "a", "b")
    assert hub.groups == 1
    hub.remove(member)
    assert (hub.groups, hub.watches, hub._indexes) == (0, set(), {})


def test_a_gap_touches_a_watch_of_that_endpoint() -> None:
    hub, numbered = Hub(), Numbered()
    member, _ = watching(hub, numbered, "a")
    lost = Gap("ws-1", frozenset({"shop"}), Position("1-0"), None, is_reset=False)
    hub.lose(lost)
    hub.lose(lost._replace(agents=frozenset({"elsewhere"})))
    assert member.gaps == [lost]


def test_a_watch_remembers_the_last_runs_that_ended_and_not_all() -> None:
    hub, numbered = Hub(), Numbered()
    _, watch = watching(hub, numbered)
    for number in range(groups.MAX_ENDED + 10):
        hub.add_run(watch, f"run-{number}", 1.0)
        hub.end_run(watch, f"run-{number}")
    assert (next(iter(watch.ended)), len(watch.ended)) == ("run-10", groups.MAX_ENDED)
    assert not hub._indexes
