"""Filters: parts that are given are ANDed, and what is not given asks nothing."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import Filter
from broker.events import Carried
from broker.filters import Narrow

VALUES: dict[str, list[str | None]] = {
    "workspace_id": ["ws-1", "ws-2"],
    "agent_id": ["agent-1", "agent-2", None],
    "task_id": ["task-1", "task-2", None],
    "type": ["task.started", "task.progress"],
}
EVENTS = [
    Carried(data=msgspec.Raw(b"{}"), **dict(zip(VALUES, values, strict=True)))  # type: ignore[arg-type]
    for values in itertools.product(*VALUES.values())
]


def found(wanted: Filter, **values: Any) -> None:
    """`wanted` matches exactly the events with these values."""
    for event in EVENTS:
        expected = all(getattr(event, name) in allowed for name, allowed in values.items())
        assert wanted.matches(event) == expected, event


def names(*values: str) -> frozenset[str]:
    return frozenset(values)


def test_a_workspace_alone_asks_for_all_of_it() -> None:
    found(Filter(workspaces=names("ws-1")), workspace_id=["ws-1"])
    found(Filter(workspaces=names("ws-1", "ws-2")))
    found(Filter(workspaces=names("ws-3")), workspace_id=[])


def test_each_part_narrows() -> None:
    ws = names("ws-1")
    found(Filter(workspaces=ws, agents=names("agent-1")), workspace_id=["ws-1"], agent_id=["agent-1"])
    found(Filter(workspaces=ws, subjects=names("task-1")), workspace_id=["ws-1"], task_id=["task-1"])
    found(Filter(workspaces=ws, types=names("task.started")), workspace_id=["ws-1"], type=["task.started"])


def test_several_values_of_a_part_are_alternatives() -> None:
    found(
        Filter(workspaces=names("ws-1"), agents=names("agent-1", "agent-2"), types=names("task.progress", "x")),
        workspace_id=["ws-1"],
        agent_id=["agent-1", "agent-2"],
        type=["task.progress"],
    )


def test_the_empty_name_stands_for_events_without_an_agent() -> None:
    found(Filter(workspaces=names("ws-1"), agents=names("")), workspace_id=["ws-1"], agent_id=[None])
    found(
        Filter(workspaces=names("ws-1"), agents=names("", "agent-1")), workspace_id=["ws-1"], agent_id=[None, "agent-1"]
    )


def test_an_event_without_a_subject_is_of_no_subject() -> None:
    found(Filter(workspaces=names("ws-1"), subjects=names("", "None")), workspace_id=[])


def test_nothing_is_asked_for_by_an_empty_part() -> None:
    for part in ("workspaces", "agents", "subjects", "types"):
        found(Filter(**({"workspaces": names("ws-1")} | {part: names()})), workspace_id=[])


def test_a_subject_is_a_task_an_inference_or_an_execution() -> None:
    for name in ("task_id", "inference_id", "execution_id"):
        event = Carried(type="x", data=msgspec.Raw(b"{}"), workspace_id="ws-1", **{name: "s"})
        assert Filter(workspaces=names("ws-1"), subjects=names("s")).matches(event)


@given(
    st.builds(
        Filter,
        workspaces=st.frozensets(st.sampled_from(["ws-1", "ws-2", "ws-3"])),
        agents=st.none() | st.frozensets(st.sampled_from(["agent-1", "agent-2", ""])),
        subjects=st.none() | st.frozensets(st.sampled_from(["task-1", "task-2"])),
        types=st.none() | st.frozensets(st.sampled_from(["task.started", "task.progress"])),
    )
)
@settings(deadline=None)
def test_a_filter_matches_what_a_naive_reading_of_it_says(wanted: Filter) -> None:
    every = [value or "" for value in VALUES["agent_id"]]
    for event in EVENTS:
        parts = (
            (event.workspace_id, wanted.workspaces),
            (event.agent_id or "", every if wanted.agents is None else wanted.agents),
            (event.task_id, VALUES["task_id"] if wanted.subjects is None else wanted.subjects),
            (event.type, VALUES["type"] if wanted.types is None else wanted.types),
        )
        assert wanted.matches(event) == all(value in allowed for value, allowed in parts)


def test_equal_filters_are_one_value_and_do_not_change() -> None:
    one, other = (Filter(workspaces=names("a", "b"), agents=names("c")) for _ in range(2))
    assert one == other
    assert len({one, other}) == 1
    assert one != Filter(workspaces=names("a", "b"))
    with pytest.raises(AttributeError):
        one.agents = None  # type: ignore[misc]


def test_nobody_asks_for_every_workspace_there_is() -> None:
    with pytest.raises(TypeError):
        Filter()  # type: ignore[call-arg]


# -- what concerns only events that have such a field


def alert(data: bytes = b"{}", agent: str | None = None) -> Carried:
    return Carried(type="system_alert", data=msgspec.Raw(data), workspace_id="ws-1", agent_id=agent)


def narrowed(event: Carried, **parts: Any) -> bool:
    """Is `event` left of all there is?"""
    admitted = Narrow(**parts).admits(event)
    assert Filter(workspaces=names("ws-1"), narrow=Narrow(**parts)).matches(event) == admitted
    return admitted


def test_what_asks_nothing_admits_everything() -> None:
    for event in (alert(), alert(agent="agent-1"), alert(b'{"severity":"error","components":{"redis":"healthy"}}')):
        assert narrowed(event)


def test_agents_that_were_left_out_are_not_admitted_and_who_has_no_agent_is_not_concerned() -> None:
    without = names("agent-1", "agent-2")
    assert not narrowed(alert(agent="agent-1"), without_agents=without)
    assert narrowed(alert(agent="agent-3"), without_agents=without)
    assert narrowed(alert(), without_agents=without)


def test_a_severity_is_one_of_those_asked_for() -> None:
    assert narrowed(alert(b'{"severity":"error"}'), severities=names("warning", "error"))
    assert not narrowed(alert(b'{"severity":"critical"}'), severities=names("warning", "error"))
    assert not narrowed(alert(b'{"severity":"Error"}'), severities=names("error"))


def test_one_component_that_is_asked_for_is_enough() -> None:
    affected = alert(b'{"affected_components":["database","knowledge_graph"]}')
    assert narrowed(affected, components=names("database", "redis"))
    assert not narrowed(affected, components=names("redis"))


def test_the_state_of_a_system_is_about_the_components_that_it_lists() -> None:
    state = alert(b'{"components":{"database":"healthy","redis":"degraded"}}')
    assert narrowed(state, components=names("redis"))
    assert not narrowed(state, components=names("degraded"))


def test_an_event_without_such_a_field_is_not_concerned() -> None:
    asked = {"severities": names("error"), "components": names("redis")}
    assert narrowed(alert(), **asked)
    assert narrowed(alert(b'{"severity":"error"}'), **asked)
    assert narrowed(alert(b'{"components":{"redis":"healthy"}}'), **asked)
    assert not narrowed(alert(b'{"severity":"error","components":{"database":"healthy"}}'), **asked)
    assert not narrowed(alert(b'{"severity":"info","components":{"redis":"healthy"}}'), **asked)


def test_to_be_narrow_is_one_part_among_the_others() -> None:
    wanted = Filter(workspaces=names("ws-1"), agents=names("agent-1", ""), narrow=Narrow(severities=names("error")))
    assert wanted.matches(alert(b'{"severity":"error"}'))
    assert not wanted.matches(alert(b'{"severity":"info"}'))
    assert not wanted.matches(alert(b'{"severity":"error"}', "agent-2"))
    assert {wanted, msgspec.structs.replace(wanted, narrow=Narrow(severities=names("error")))} == {wanted}
    assert wanted != msgspec.structs.replace(wanted, narrow=None)


@pytest.mark.parametrize("data", [b"{}", b'{"severity":5}', b'{"components":"redis","severity":null}'])
def test_a_field_that_says_nothing_is_as_good_as_none(data: bytes) -> None:
    assert narrowed(alert(data), severities=names("error"), components=names("redis"))
