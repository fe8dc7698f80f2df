"""What a connection has subscribed to: what was asked and not given back, as filters and in the client's words."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.catalog import CATALOG
from broker.events import Carried
from gateway.hub import matches
from gateway.limits import Limits
from gateway.messages import Asked, Confirmed, Interest, Refused
from gateway.reasons import (
    INVALID_MESSAGE,
    TOO_MANY_EVENT_TYPES,
    TOO_MANY_SUBSCRIPTIONS,
    Reason,
)
from gateway.subscriptions import MAX_ENTRIES, MAX_PLACES, ByFilter, ByType, Subscriptions

OWN = frozenset({"ws-1"})
LIMITS = Limits(max_message_bytes=1000, max_event_types=20, max_subscriptions=3, max_filter_values=10)

# Words that are not the type's own name.
ALIASES = {"metrics": "metrics_update", "system_alerts": "system_alert"}


def names(values: Any) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def asked(*words: str, agents: Any = None, severities: Any = None, components: Any = None) -> Asked:
    """What a client names that subscribes by type."""
    types = {ALIASES.get(word, word): word for word in reversed(words)}
    return Asked(
        agents=names(agents),
        types=names(types) if types else None,
        severities=names(severities),
        components=names(components),
        words=tuple(reversed(types.items())),
        named=tuple(agents or ()),
    )


def event(kind: str, agent: str | None = None, data: bytes = b"{}", workspace: str = "ws-1") -> Carried:
    return Carried(type=kind, data=msgspec.Raw(data), workspace_id=workspace, agent_id=agent)


def refused(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.reason


def confirmed(table: ByType) -> tuple[list[str], list[str]]:
    said = table.confirmed()
    assert isinstance(said, Confirmed)
    return list(said.words), list(said.agents)


class Table:
    """A table of types, and what of it is delivered."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.table = ByType(limits)

    def subscribe(self, *words: str, **parts: Any) -> None:
        self.table.subscribe(asked(*words, **parts))

    def unsubscribe(self, *words: str, agents: Any = None) -> None:
        self.table.unsubscribe(asked(*words, agents=agents), OWN)

    def wants(self, kind: str, agent: str | None = None, data: bytes = b"{}", workspace: str = "ws-1") -> bool:
        return matches(self.table.interest(OWN), event(kind, agent, data, workspace))


# -- by type


def test_nothing_is_wanted_before_the_first_subscription() -> None:
    table = ByType(LIMITS)
    assert table.interest(OWN) == frozenset()
    assert confirmed(table) == ([], [])


def test_a_type_is_wanted_of_all_agents_of_the_tokens_workspaces() -> None:
    table = Table()
    table.subscribe("agent_status")
    assert table.wants("agent_status", "agent_123")
    assert table.wants("agent_status", "agent_456")
    assert not table.wants("agent_created", "agent_123")
    assert not table.wants("agent_status", "agent_123", workspace="ws-2")
    interest = table.table.interest(frozenset({"ws-1", "ws-2"}))
    assert matches(interest, event("agent_status", "agent_123", workspace="ws-2"))


def test_agents_narrow_only_events_that_have_an_agent() -> None:
    """The document's own example asks for two agents, for metrics and for system alerts."""
    table = Table()
    table.subscribe("agent_status", "metrics", "system_alerts", agents=["agent_123", "agent_456"])
    assert table.wants("agent_status", "agent_123")
    assert not table.wants("agent_status", "agent_789")
    assert table.wants("metrics_update")
    assert table.wants("system_alert")
    assert table.wants("system_alert", "agent_456")
    assert not table.wants("system_alert", "agent_789")


def test_severities_and_components_narrow_only_events_that_have_them() -> None:
    table = Table()
    table.subscribe("system_alerts", "system_status", "agent_status", severities=["warning", "error"], components=["a"])
    assert table.wants("system_alert", data=b'{"severity":"error","affected_components":["a","b"]}')
    assert not table.wants("system_alert", data=b'{"severity":"info","affected_components":["a"]}')
    assert not table.wants("system_alert", data=b'{"severity":"error","affected_components":["b"]}')
    assert table.wants("system_status", data=b'{"components":{"a":"healthy"}}')
    assert not table.wants("system_status", data=b'{"components":{"b":"healthy"}}')
    assert table.wants("agent_status", "agent_123")


def test_a_type_that_was_asked_for_in_two_ways_is_wanted_in_either() -> None:
    table = Table()
    table.subscribe("system_alerts", severities=["error"])
    table.subscribe("system_alerts", components=["redis"])
    assert table.wants("system_alert", data=b'{"severity":"error","affected_components":["b"]}')
    assert table.wants("system_alert", data=b'{"severity":"info","affected_components":["redis"]}')
    assert not table.wants("system_alert", data=b'{"severity":"info","affected_components":["b"]}')


def test_subscriptions_to_one_type_add_up() -> None:
    table = Table()
    table.subscribe("agent_status", agents=["a"])
    table.subscribe("agent_status", agents=["b"])
    assert [agent for agent in "abc" if table.wants("agent_status", agent)] == ["a", "b"]
    table.subscribe("agent_status")
    assert all(table.wants("agent_status", agent) for agent in "abc")


def test_each_type_keeps_the_agents_that_it_was_asked_for_with() -> None:
    table = Table()
    table.subscribe("agent_status", agents=["a"])
    table.subscribe("inference_completed", agents=["b"])
    assert table.wants("agent_status", "a")
    assert not table.wants("agent_status", "b")
    assert table.wants("inference_completed", "b")
    assert not table.wants("inference_completed", "a")


def test_a_type_that_is_given_back_is_no_longer_wanted_and_others_stay() -> None:
    table = Table()
    table.subscribe("agent_status", "metrics")
    table.unsubscribe("metrics_update")
    assert not table.wants("metrics_update")
    assert table.wants("agent_status", "a")
    assert confirmed(table.table) == (["agent_status"], [])


def test_a_type_may_be_given_back_for_some_agents() -> None:
    table = Table()
    table.subscribe("agent_status", "agent_created", agents=["a", "b"])
    table.unsubscribe("agent_status", agents=["a", "c"])
    assert [agent for agent in "abc" if table.wants("agent_status", agent)] == ["b"]
    assert [agent for agent in "abc" if table.wants("agent_created", agent)] == ["a", "b"]
    assert confirmed(table.table) == (["agent_status", "agent_created"], ["b", "a"])


def test_a_type_leaves_with_the_last_of_its_agents() -> None:
    table = Table()
    table.subscribe("agent_status", "system_alerts", agents=["a", "b"])
    table.unsubscribe("system_alerts", agents=["a"])
    assert table.wants("system_alert")
    table.unsubscribe("system_alerts", agents=["b"])
    assert not table.wants("system_alert")
    assert confirmed(table.table) == (["agent_status"], ["a", "b"])


def test_of_all_agents_some_may_be_given_back_and_asked_for_again() -> None:
    table = Table()
    table.subscribe("agent_status", "system_alerts")
    table.unsubscribe("agent_status", "system_alerts", agents=["a", "b"])
    assert [agent for agent in "abc" if table.wants("agent_status", agent)] == ["c"]
    assert table.wants("system_alert")
    table.subscribe("agent_status", agents=["a"])
    assert [agent for agent in "abc" if table.wants("agent_status", agent)] == ["a", "c"]
    table.subscribe("agent_status")
    assert all(table.wants("agent_status", agent) for agent in "abc")


def test_without_types_agents_are_given_back_for_all_types_and_without_anything_everything() -> None:
    table = Table()
    table.subscribe("agent_status", "agent_created", agents=["a", "b"])
    table.unsubscribe(agents=["a"])
    assert [agent for agent in "ab" if table.wants("agent_status", agent) or table.wants("agent_created", agent)] == [
        "b"
    ]
    table.unsubscribe()
    assert table.table.interest(OWN) == frozenset()
    assert confirmed(table.table) == ([], [])


def test_a_type_is_given_back_with_all_its_filters() -> None:
    table = Table()
    table.subscribe("system_alerts", severities=["error"])
    table.subscribe("system_alerts", components=["redis"])
    table.unsubscribe("system_alerts")
    assert table.table.interest(OWN) == frozenset()


def test_what_was_never_asked_for_may_be_given_back() -> None:
    table = Table()
    table.unsubscribe("metrics")
    table.subscribe("agent_status", agents=["a"])
    table.unsubscribe("metrics", agents=["a"])
    table.unsubscribe("agent_status", agents=["b"])
    assert confirmed(table.table) == (["agent_status"], ["a"])


def test_it_is_confirmed_in_the_clients_own_words_and_order() -> None:
    table = Table()
    table.subscribe("system_alerts", "metrics", agents=["b", "a"])
    table.subscribe("agent_status", "metrics_update", agents=["c", "a"])
    assert confirmed(table.table) == (["system_alerts", "metrics", "agent_status"], ["b", "a", "c"])
    table.unsubscribe("system_alert")
    table.subscribe("system_alert", agents=["a"])
    assert confirmed(table.table)[0] == ["metrics", "agent_status", "system_alert"]


def test_where_one_type_is_wanted_of_all_agents_no_agents_are_confirmed() -> None:
    table = Table()
    table.subscribe("agent_status", agents=["a"])
    table.subscribe("metrics")
    assert confirmed(table.table) == (["agent_status", "metrics"], [])


def test_types_about_the_connection_come_anyway_and_may_be_asked_for() -> None:
    table = Table()
    table.subscribe("rate_limit_warning", "command_error")
    assert table.table.interest(OWN) == frozenset()
    assert confirmed(table.table)[0] == ["rate_limit_warning", "command_error"]
    table.unsubscribe("rate_limit_warning")
    assert confirmed(table.table)[0] == ["command_error"]


def test_types_that_are_asked_for_in_one_way_are_one_filter() -> None:
    table = Table()
    table.subscribe("agent_status", "agent_created")
    table.subscribe("agent_deleted")
    assert len(table.table.interest(OWN)) == 1
    assert table.table.interest(OWN) == table.table.alone(asked("agent_created", "agent_deleted", "agent_status"), OWN)


def test_what_one_subscribe_asks_can_be_told_apart_from_the_rest() -> None:
    table = ByType(LIMITS)
    table.subscribe(asked("agent_status"))
    alone = table.alone(asked("metrics", agents=["a"]), OWN)
    assert matches(alone, event("metrics_update"))
    assert not matches(alone, event("agent_status", "a"))
    assert confirmed(table) == (["agent_status"], []), "it changes nothing"


# -- by type: limits

TYPES = [name for name, kind in CATALOG.items() if kind.dialect == "freeagentics"]
CONNECTION = ["connection_established", "subscription_confirmed"]


def test_the_twenty_first_type_is_refused_and_changes_nothing() -> None:
    table = Table()
    table.subscribe(*TYPES, CONNECTION[0])
    before = confirmed(table.table), table.table.interest(OWN)
    assert len(TYPES) == 19
    assert refused(table.table.subscribe, asked(CONNECTION[1])) is TOO_MANY_EVENT_TYPES
    assert refused(table.table.subscribe, asked(CONNECTION[1], TYPES[0], severities=["error"])) is TOO_MANY_EVENT_TYPES
    assert (confirmed(table.table), table.table.interest(OWN)) == before


def test_twenty_one_types_at_once_are_refused() -> None:
    table = ByType(LIMITS)
    assert refused(table.subscribe, asked(*TYPES, *CONNECTION)) is TOO_MANY_EVENT_TYPES
    assert table.interest(OWN) == frozenset()


def test_a_type_counts_once_however_often_and_by_which_word_it_is_asked_for() -> None:
    table = Table(msgspec.structs.replace(LIMITS, max_event_types=2))
    table.subscribe("metrics", "system_alerts")
    table.subscribe("metrics_update", "system_alert")
    table.subscribe("metrics", agents=["a"], severities=["error"])
    assert refused(table.table.subscribe, asked("agent_status")) is TOO_MANY_EVENT_TYPES


def test_a_type_that_was_given_back_makes_room() -> None:
    table = Table(msgspec.structs.replace(LIMITS, max_event_types=1))
    table.subscribe("metrics")
    table.unsubscribe("metrics")
    table.subscribe("agent_status")
    assert confirmed(table.table)[0] == ["agent_status"]


def test_a_limit_that_was_lifted_is_none() -> None:
    table = Table(msgspec.structs.replace(LIMITS, max_event_types=None))
    table.subscribe(*TYPES, *CONNECTION)
    assert len(confirmed(table.table)[0]) == 21


def test_the_agents_of_all_subscriptions_together_are_bounded() -> None:
    table = Table()
    table.subscribe("agent_status", "metrics", agents=["a", "b", "c", "d", "e", "f"])
    table.subscribe("system_alerts", agents=["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
    before = table.table.interest(OWN)
    assert refused(table.table.subscribe, asked("agent_status", agents=["k"])) is INVALID_MESSAGE
    assert table.table.interest(OWN) == before


def test_agents_that_are_left_out_are_bounded_too() -> None:
    table = Table()
    table.subscribe("agent_status", "metrics")
    table.unsubscribe("agent_status", agents=[f"agent-{number}" for number in range(10)])
    before = table.table.interest(OWN)
    assert refused(table.table.unsubscribe, asked(agents=["another"]), OWN) is INVALID_MESSAGE
    assert table.table.interest(OWN) == before


def test_severities_and_components_are_bounded_with_them() -> None:
    table = Table()
    table.subscribe("system_alerts", "metrics", agents="abc", severities=["error", "warning"], components="xy")
    table.subscribe("system_alerts", severities=["error"], components="xy")
    before = table.table.interest(OWN)
    assert refused(table.table.subscribe, asked("system_alerts", severities=["info"])) is INVALID_MESSAGE
    assert table.table.interest(OWN) == before
    table.subscribe("agent_status", severities=["error"], components="xy")


def test_ways_to_ask_for_types_are_bounded() -> None:
    table = Table(msgspec.structs.replace(LIMITS, max_filter_values=2000))
    for number in range(MAX_ENTRIES // 2):
        table.subscribe("system_alerts", "performance_alert", severities=[f"severity-{number}"])
    before = table.table.interest(OWN)
    assert refused(table.table.subscribe, asked("system_alerts")) is INVALID_MESSAGE
    assert table.table.interest(OWN) == before
    table.subscribe("system_alerts", severities=["severity-0"])


def test_different_agents_for_different_types_are_bounded_together() -> None:
    """What the hub looks through at each message of a client: types that ask for the same agents are one filter."""
    table = Table(msgspec.structs.replace(LIMITS, max_filter_values=1000))
    agents = [f"agent-{number}" for number in range(501)]
    parts = [[agent for agent in agents if agent != left_out] for left_out in agents]
    room = MAX_PLACES // len(parts[0])
    for kind, part in zip(TYPES[:room], parts, strict=False):
        table.subscribe(kind, agents=part)
    another, yet_another = TYPES[room : room + 2]
    before = table.table.interest(OWN), confirmed(table.table)
    assert refused(table.table.subscribe, asked(another, agents=parts[room])) is INVALID_MESSAGE
    assert (table.table.interest(OWN), confirmed(table.table)) == before
    table.subscribe(another, yet_another, agents=parts[0])
    # Who gives one agent back for one of the types would part it from the others.
    before = table.table.interest(OWN), confirmed(table.table)
    assert refused(table.table.unsubscribe, asked(another, agents=agents[-1:]), OWN) is INVALID_MESSAGE
    assert (table.table.interest(OWN), confirmed(table.table)) == before
    table.unsubscribe(TYPES[1])
    table.unsubscribe(another, agents=agents[-1:])


# -- by type: against a naive model

AGENTS = ["agent-1", "agent-2"]
EVERYBODY = [*AGENTS, "agent-3"]  # whom nobody names
SOME = ["agent_status", "system_alert", "metrics_update", "system_alerts", "metrics"]
ALERTS = [b"{}", b'{"severity":"error"}', b'{"severity":"info","affected_components":["redis"]}']
EVENTS = [
    event(kind, agent, data)
    for kind in ("agent_status", "system_alert", "metrics_update", "agent_created")
    for agent in (*EVERYBODY, None)
    for data in ALERTS
    if agent is not None or not CATALOG[kind].needs_agent
]

words = st.lists(st.sampled_from(SOME), min_size=1, max_size=3, unique_by=lambda word: ALIASES.get(word, word))
agents = st.none() | st.lists(st.sampled_from(AGENTS), min_size=1, unique=True)
severities = st.none() | st.just(["error"])
components = st.none() | st.just(["redis"])
steps = st.one_of(
    st.tuples(
        st.just("subscribe"), st.builds(dict, agents=agents, severities=severities, components=components), words
    ),
    st.tuples(st.just("unsubscribe"), st.builds(dict, agents=agents), words | st.just([])),
)

Row = tuple[str, str, str, str]  # type, agent, severity and component that are asked for; "" is any


def is_wanted(rows: set[Row], happened: Carried) -> bool:
    """One row is enough. What an event does not have narrows nothing."""
    severity, about = happened.labels
    return any(
        kind == happened.type
        and happened.agent_id in (agent, None)
        and wanted in ("", severity or wanted)
        and (component == "" or about is None or component in about)
        for kind, agent, wanted, component in rows
    )


@given(st.lists(steps, max_size=10))
@settings(deadline=None, max_examples=300)
def test_what_is_wanted_is_what_was_asked_for_and_not_given_back(said: list[tuple[str, dict[str, Any], Any]]) -> None:
    table = Table(msgspec.structs.replace(LIMITS, max_filter_values=100))
    rows: set[Row] = set()
    order: dict[str, str] = {}
    for verb, parts, spoken in said:
        kinds = {ALIASES.get(word, word): word for word in spoken}
        whose = parts["agents"] or EVERYBODY
        if verb == "subscribe":
            table.subscribe(*spoken, **parts)
            severity, component = ((parts[name] or [""])[0] for name in ("severities", "components"))
            rows |= {(kind, agent, severity, component) for kind in kinds for agent in whose}
            order = order | {kind: order.get(kind, word) for kind, word in kinds.items()}
        else:
            table.unsubscribe(*spoken, **parts)
            rows = {row for row in rows if (kinds and row[0] not in kinds) or row[1] not in whose}
            order = {kind: word for kind, word in order.items() if kind in {row[0] for row in rows}}
        for happened in EVENTS:
            assert table.wants(happened.type, happened.agent_id, bytes(happened.data)) == is_wanted(rows, happened)
        named = {row[1] for row in rows}
        said_words, said_agents = confirmed(table.table)
        assert said_words == list(order.values())
        assert set(said_agents) == (set() if "agent-3" in named else named)
        assert len(set(said_agents)) == len(said_agents)


# -- by filter: what it does is tested with the conversation, its bounds are here


def everything(**parts: Any) -> Asked:
    return Asked(**{name: frozenset(values) for name, values in parts.items()})


def test_success_is_silent() -> None:
    subscriptions: Subscriptions = ByFilter(LIMITS)
    subscriptions.subscribe(Asked())
    assert subscriptions.confirmed() is None


def test_subscriptions_are_bounded_and_equal_ones_count_once() -> None:
    subscriptions = ByFilter(LIMITS)
    for agent in "abcabc":
        subscriptions.subscribe(everything(agents=agent))
    before = subscriptions.interest(OWN)
    assert refused(subscriptions.subscribe, everything(agents="d")) is TOO_MANY_SUBSCRIPTIONS
    assert subscriptions.interest(OWN) == before
    subscriptions.unsubscribe(everything(agents="a"), OWN)
    subscriptions.subscribe(everything(agents="d"))


def test_the_ids_of_all_subscriptions_together_are_bounded() -> None:
    subscriptions = ByFilter(LIMITS)
    subscriptions.subscribe(everything(agents="abc", subjects="stu", workspaces=["ws-1"]))
    before = subscriptions.interest(OWN)
    assert refused(subscriptions.subscribe, everything(agents="defg")) is INVALID_MESSAGE
    assert subscriptions.interest(OWN) == before
    subscriptions.subscribe(everything(agents="def"))


def test_of_several_workspaces_only_the_tokens_own_are_wanted() -> None:
    subscriptions = ByFilter(LIMITS)
    subscriptions.subscribe(everything(workspaces=["ws-1", "ws-2"]))
    subscriptions.subscribe(everything(workspaces=["ws-3"]))
    interest: Interest = subscriptions.interest(OWN)
    assert [wanted.workspaces for wanted in interest] == [OWN]
    assert subscriptions.alone(everything(workspaces=["ws-3"]), OWN) == frozenset()
