"""The figures of agents: what happened in the last minute, by the time at which it arrived."""

import json
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import Event
from broker.catalog import CATALOG
from broker.events import MAX_EVENT_BYTES, Carried, pack, unpack
from gateway.vitals import meter as module
from gateway.vitals.meter import Meter

from .test_catalog import EXAMPLES
from .test_events import example_of, message, said_events

WORKSPACE = "ws-456"
START = 1000.0


def carried(event: Event) -> Carried:
    return unpack(message(pack(event)), event.workspace_id)


def said(kind: str, agent: str | None = "agent_123", **data: Any) -> Carried:
    return carried(Event(type=kind, workspace_id=WORKSPACE, agent_id=agent, data=data))


def started(name: str, agent: str | None = "agent_123") -> Carried:
    return said("inference_started", agent, inference_id=name)


def completed(name: str, agent: str | None = "agent_123", **data: Any) -> Carried:
    return said("inference_completed", agent, inference_id=name, **data)


def failed(name: str, agent: str | None = "agent_123", **data: Any) -> Carried:
    return said("inference_failed", agent, inference_id=name, **data)


def meter_after(*taken: tuple[float, Carried], start: float = START) -> Meter:
    """A meter that took each event so many seconds after its start."""
    meter = Meter(start)
    for at, event in taken:
        meter.take(event, start + at)
    return meter


def test_a_reading_has_the_shape_of_the_seeds_example() -> None:
    busy = [(float(at), started(f"i{at}")) for at in range(39)]
    done = [(at + 0.5, completed(f"i{at}", processing_time=0.234)) for at in range(38)]
    fails = [(38.9, failed("i38", processing_time=0.234))]
    idle = [(0.0, said("agent_status", "agent_456", new_status="idle"))]
    taken = sorted([*idle, *busy, *done, *fails], key=lambda entry: entry[0])
    reading = meter_after(*taken).read(START + 39)
    assert reading.agents == {
        "agent_123": {
            "status": "idle",
            "inference_rate": 1.0,
            "avg_response_time": 0.234,
            "success_rate": 0.974,
            "current_load": round((38 * 0.5 + 0.9) / 39, 3),
        },
        "agent_456": {
            "status": "idle",
            "inference_rate": 0.0,
            "avg_response_time": 0.0,
            "success_rate": 1.0,
            "current_load": 0.0,
        },
    }
    example: Any = EXAMPLES["metrics_update"]["agents"]
    assert {name: list(figures) for name, figures in reading.agents.items()} == {
        name: list(figures) for name, figures in example.items()
    }


# -- status

STATUSES: list[tuple[str, list[Carried], str | None]] = [
    ("said", [said("agent_status", new_status="training")], "training"),
    ("said last", [said("agent_status", new_status="active"), said("agent_status", new_status="error")], "error"),
    ("created", [said("agent_created", status="pending")], "pending"),
    ("created without a status", [said("agent_created")], "idle"),
    ("updated", [said("agent_created", status="pending"), said("agent_updated", status="ready")], "ready"),
    ("updated without one", [said("agent_created", status="pending"), said("agent_updated", name="x")], "pending"),
    ("updated after it said one", [said("agent_status", new_status="x"), said("agent_updated", status="y")], "x"),
    ("created anew", [said("agent_status", new_status="x"), said("agent_created", status="pending")], "pending"),
    ("online", [said("agent.online")], "active"),
    ("online, created", [said("agent.online"), said("agent_created", status="pending")], "active"),
    ("online, but said", [said("agent_status", new_status="idle"), said("agent.online")], "idle"),
    ("offline", [said("agent_status", new_status="active"), said("agent.offline")], "offline"),
    ("offline, then said", [said("agent.offline"), said("agent_status", new_status="stopped")], "stopped"),
    ("offline, then online", [said("agent.offline"), said("agent.online")], "active"),
    ("offline, then at work", [said("agent.offline"), started("i")], "active"),
    ("at work", [started("i")], "active"),
    ("at a task", [said("task.started", task_id="t")], "active"),
    ("at work, created", [said("agent_created", status="pending"), started("i")], "active"),
    ("at work, said idle", [said("agent_status", new_status="idle"), started("i")], "active"),
    ("at work, said otherwise", [said("agent_status", new_status="stopping"), started("i")], "stopping"),
    ("after work", [started("i"), completed("i")], "idle"),
    ("work that failed", [started("i"), failed("i")], "idle"),
    ("two at work, one over", [started("i"), started("j"), completed("i")], "active"),
    ("the same work started twice", [started("i"), started("i"), completed("i")], "idle"),
    ("a task and an inference of one id", [said("task.started", task_id="i"), started("i"), completed("i")], "active"),
    ("work that nobody saw begin", [completed("i")], "idle"),
    ("progress begins no work", [said("inference_progress", inference_id="i", progress=0.5)], None),
    ("a task that is nobody's", [said("task.started", None, task_id="t"), said("task.completed", None, task_id="t")],
     None),
    ("deleted", [started("i"), said("agent_deleted")], None),
    ("deleted, late events", [started("i"), said("agent_deleted"), completed("i"), said("agent.offline"),
     said("agent_status", new_status="stopped"), said("agent_updated")], None),
    ("deleted, created", [said("agent_status", new_status="x"), said("agent_deleted"), said("agent_created")], "idle"),
    ("deleted, at work", [said("agent_deleted"), started("i")], "active"),
    ("deleted, online", [said("agent_deleted"), said("agent.online")], "active"),
    ("never heard of", [], None),
]  # fmt: skip


@pytest.mark.parametrize(("events", "status"), [row[1:] for row in STATUSES], ids=[row[0] for row in STATUSES])
def test_the_status_is_what_is_known_best(events: list[Carried], status: str | None) -> None:
    reading = meter_after(*((0.1 * at, event) for at, event in enumerate(events))).read(START + 10)
    assert reading.agents.get("agent_123", {}).get("status") == status
    assert reading.active_agents == (status == "active")


def test_the_end_of_a_task_that_names_no_agent_counts_for_the_one_that_started_it() -> None:
    meter = meter_after((0, said("task.started", task_id="t")), (2, said("task.completed", None, task_id="t")))
    figures = meter.read(START + 10).agents["agent_123"]
    assert figures == {
        "status": "idle",
        "inference_rate": 0.1,
        "avg_response_time": 2.0,
        "success_rate": 1.0,
        "current_load": 0.2,
    }


def test_a_failed_task_counts_whatever_else_its_data_holds() -> None:
    data = {"error": {"code": "X", "message": ""}, "processing_time": "long", "status": 5, "new_status": []}
    figures = meter_after((0, said("task.failed", task_id="t", **data))).read(START + 1).agents["agent_123"]
    assert (figures["success_rate"], figures["avg_response_time"]) == (0.0, 0.0)


# -- windows


def test_the_response_time_is_what_the_work_says_else_how_long_it_took() -> None:
    taken = [(0, started("a")), (0, started("b")), (1, completed("a", processing_time=3)), (5, failed("b"))]
    assert meter_after(*taken).read(START + 5).agents["agent_123"]["avg_response_time"] == 4.0
    for wrong in (-1, 1e300, 10**30):
        agents = meter_after((0, completed("a", processing_time=wrong))).read(START + 1).agents
        assert agents["agent_123"]["avg_response_time"] == 0.0


def test_what_is_older_than_the_window_does_not_count() -> None:
    meter = meter_after((0, failed("a", processing_time=9)), (30.5, completed("b", processing_time=1)))
    for at, rate, average, success in [
        (59.5, 2 / 59.5, 5.0, 0.5),
        (60, 1 / 59, 1.0, 1.0),
        (89.9, 1 / 59.9, 1.0, 1.0),
        (90, 0, 0, 1),
    ]:
        figures = meter.read(START + at).agents["agent_123"]
        assert (figures["inference_rate"], figures["avg_response_time"], figures["success_rate"]) == (
            round(rate, 3),
            average,
            success,
        )


def test_the_window_is_no_longer_than_what_is_known_and_never_shorter_than_a_second() -> None:
    meter = meter_after((0, completed("a")))
    assert [meter.read(START + at).agents["agent_123"]["inference_rate"] for at in (0, 0.5, 1, 4)] == [1, 1, 1, 0.25]
    past = Meter(START)
    past.take(completed("a"), START - 9)  # read from the log
    assert past.read(START + 1).agents["agent_123"]["inference_rate"] == 0.1


@pytest.mark.parametrize(
    ("taken", "at", "load"),
    [
        ([(0, started("a"))], 0.0, 0.0),
        ([(0, started("a"))], 0.25, 0.25),
        ([(0, started("a"))], 10, 1.0),
        ([(0, started("a"))], 300.7, 1.0),
        ([(0, started("a")), (2.5, completed("a"))], 10, 0.25),
        ([(0, started("a")), (1, started("b")), (2, completed("a")), (3, failed("b"))], 10, 0.3),
        ([(0, started("a")), (1, completed("a")), (4, started("a")), (5, failed("a"))], 10, 0.2),
        ([(0, started("a")), (90, completed("a"))], 100, 49 / 59),
        ([(0, started("a")), (90, completed("a"))], 300, 0.0),
        ([(0, started("a")), (5, said("agent_deleted")), (5, started("b")), (6, completed("b"))], 10, 0.1),
    ],
)
def test_the_load_is_the_share_of_the_window_with_work_running(
    taken: list[tuple[float, Carried]], at: float, load: float
) -> None:
    assert meter_after(*taken).read(START + at).agents["agent_123"]["current_load"] == round(load, 3)


def test_reading_changes_nothing() -> None:
    taken = [(0, started("a")), (2.5, completed("a")), (3, started("b")), (70.2, failed("b")), (71, started("c"))]
    often = Meter(START)
    for tenth in range(750):
        for at, event in taken:
            if tenth == round(at * 10):
                often.take(event, START + at)
        often.read(START + tenth / 10)
    assert often.read(START + 75) == meter_after(*taken).read(START + 75)


def test_work_that_never_ends_is_forgotten_after_an_hour() -> None:
    meter = meter_after((0, started("a")), (10, started("b")))
    assert meter.read(START + 3609).active_agents == 1
    assert meter.read(START + 3611).active_agents == 0
    figures = meter.read(START + 3660).agents["agent_123"]
    assert figures["status"] == "idle"
    assert figures["current_load"] == round(9 / 59, 3)


def test_an_events_own_timestamp_counts_for_nothing() -> None:
    event = Event(
        type="inference_completed",
        workspace_id=WORKSPACE,
        agent_id="agent_123",
        data={"inference_id": "i"},
        timestamp="2001-01-01T00:00:00Z",
    )
    assert meter_after((0, carried(event))).read(START + 1).agents["agent_123"]["inference_rate"] == 1.0


# -- all together


def test_all_agents_together_give_what_alerts_are_judged_by() -> None:
    taken = [(0, completed(f"c{n}", "a", processing_time=2)) for n in range(3)]
    reading = meter_after(*taken, (0, failed("f", "b", processing_time=6))).read(START + 1)
    assert (reading.response_seconds, reading.failure_percent) == (3.0, 0.0)  # too few ended
    reading = meter_after(*taken, *((0, failed(f"f{n}", "b")) for n in range(3))).read(START + 1)
    assert (reading.response_seconds, reading.failure_percent) == (2.0, 50.0)


@pytest.mark.parametrize("kind", ["metrics_update", "performance_alert", "entity_created", "execution_started"])
def test_what_is_no_agents_doing_counts_for_nothing(kind: str) -> None:
    reading = meter_after((0, carried(example_of(kind)))).read(START + 1)
    assert reading == module.Reading({}, 0, 0.0, 0.0)


# -- bounds


def test_the_agents_that_were_heard_last_are_known() -> None:
    meter = Meter(START)
    for number in range(module.MAX_AGENTS):
        meter.take(started(f"i{number}", f"a{number:04}"), START)
    meter.take(said("agent_status", "a0000", new_status="busy"), START + 1)
    meter.take(completed("i", "b"), START + 1)
    reading = meter.read(START + 2)
    assert len(reading.agents) == module.MAX_AGENTS
    assert "a0000" in reading.agents
    assert "a0001" not in reading.agents
    assert list(reading.agents) == sorted(reading.agents)
    meter.take(completed("i1", "a0001"), START + 2)  # its work was forgotten with it
    assert meter.read(START + 3).agents["a0001"]["current_load"] == 0.0


def test_work_under_way_and_memory_of_the_deleted_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORK", 3)
    meter = meter_after(*((at, started(f"i{at}", f"a{at}")) for at in range(5)))
    assert meter.read(START + 5).active_agents == 3
    for number in range(2 * module.MAX_AGENTS):
        meter.take(said("agent_deleted", f"d{number}"), START + 6)
    assert len(meter._deleted) == module.MAX_AGENTS


@pytest.mark.parametrize("letter", ["a", '"', "世", "🎉"])
def test_a_reading_fits_into_one_event(letter: str) -> None:
    meter = Meter(START)
    for number in range(module.MAX_AGENTS):
        name = letter * 250 + str(number)
        meter.take(said("agent_status", name, new_status="\x01" * 999), START)
        meter.take(completed("i", name, processing_time=999999.123), START)
    agents = meter.read(START + 1).agents
    assert 90 < len(agents) < module.MAX_AGENTS
    assert f"{letter * 250}999" in agents  # heard last
    assert len(msgspec.json.encode(agents)) < MAX_EVENT_BYTES - 1024
    assert pack(Event(type="metrics_update", workspace_id=WORKSPACE, data={"agents": agents}))


def test_a_thousand_agents_of_ordinary_names_fit() -> None:
    meter = Meter(START)
    for number in range(module.MAX_AGENTS):
        meter.take(said("agent_status", f"agent-{number:030}", new_status="active"), START)
    assert len(meter.read(START).agents) == module.MAX_AGENTS


# -- whatever comes

# Few names, so that events meet each other's agents and work.
NAMES = st.sampled_from(["a", "b", "c"])


@st.composite
def few_events(draw: st.DrawFn) -> Carried:
    name = draw(st.sampled_from(sorted(CATALOG)))
    kind = CATALOG[name]
    data = {key: value for key, value in EXAMPLES[name].items() if key not in ("agent_id", "workspace_id")}
    if kind.subject is not None:
        data[kind.subject] = draw(NAMES)
    agent = draw(NAMES if kind.needs_agent else NAMES | st.none())
    return carried(Event(type=name, workspace_id=WORKSPACE, agent_id=agent, data=data))


@given(st.lists(st.tuples(st.floats(0, 500), few_events() | said_events().map(carried)), max_size=40))
@settings(deadline=None)
def test_whatever_valid_comes_gives_figures_that_can_be(taken: list[tuple[float, Carried]]) -> None:
    meter = Meter(START)
    times = accumulate((pause for pause, _ in taken), initial=0.0)
    for at, (_, event) in zip(times, taken, strict=False):
        meter.take(event, START + at)
        reading = meter.read(START + at)
        assert reading.active_agents <= len(meter._agents)
        assert 0 <= reading.failure_percent <= 100
        for figures in reading.agents.values():
            assert figures["status"]
            assert figures["inference_rate"] >= 0
            assert figures["avg_response_time"] >= 0
            assert 0 <= figures["success_rate"] <= 1
            assert 0 <= figures["current_load"] <= 1
        metrics = Event(type="metrics_update", workspace_id=WORKSPACE, data={"agents": reading.agents})
        assert json.loads(bytes(carried(metrics).data))["agents"] == reading.agents


@given(st.lists(st.tuples(st.floats(-500, 500), few_events()), max_size=40))
@settings(deadline=None)
def test_a_clock_that_goes_back_harms_nothing(taken: list[tuple[float, Carried]]) -> None:
    meter = Meter(START)
    for at, event in taken:
        meter.take(event, START + at)
        meter.read(START + at)
    assert all(0 <= figures["current_load"] <= 1 for figures in meter.read(START + 500).agents.values())
