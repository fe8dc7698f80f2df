"""Events: what a producer says arrives as it was said, what is no event is refused, what is accepted can be sent on."""

import contextlib
import itertools
import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker import Event, Invalid
from broker.catalog import CATALOG
from broker.events import MAX_EVENT_BYTES, Carried, Labels, Packed, now, pack, unpack
from gateway.dialects import freeagentics, maxicore
from gateway.messages import Refused

from .test_catalog import EXAMPLES

WORKSPACE = "ws-456"
IDS = ("workspace_id", "agent_id", "task_id", "inference_id", "execution_id")
MAXICORE = sorted(maxicore.TYPES)
FREEAGENTICS = sorted(freeagentics.TYPES)


def example_of(name: str, **changes: Any) -> Event:
    """An event as its document shows it, ids in `data`, with an agent where the type needs one."""
    data = dict(EXAMPLES[name])
    agent = None if "agent_id" in data or not CATALOG[name].needs_agent else "agent-123"
    return Event(**({"type": name, "workspace_id": WORKSPACE, "agent_id": agent, "data": data} | changes))


def message(packed: Packed, positions: str = "") -> bytes:
    """What publish.lua makes of a packed event, for a channel."""
    return b"{" + positions.encode() + packed.stamp + packed.rest


POSITIONS = '"id":"7-1","prev":"7-0","agent_prev":"5-0",'


def invalid(call: Any, *arguments: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        call(*arguments)
    return caught.value


# -- there and back


@pytest.mark.parametrize("name", CATALOG)
def test_every_example_arrives_as_it_was_said(name: str) -> None:
    said = example_of(name, timestamp="2026-03-27T10:30:45Z")
    carried = unpack(message(pack(said), POSITIONS), WORKSPACE)
    assert (carried.id, carried.prev, carried.agent_prev) == ("7-1", "7-0", "5-0")
    agent = said.agent_id or said.data.get("agent_id")
    data = {key: value for key, value in said.data.items() if key != "agent_id"}
    expected = Event(
        type=name,
        workspace_id=WORKSPACE,
        agent_id=agent,
        data=data,
        timestamp="2026-03-27T10:30:45Z",
        id="7-1",
    )
    assert carried.event() == expected


@pytest.mark.parametrize("name", CATALOG)
def test_ids_are_lifted_and_stand_in_one_place_alone(name: str) -> None:
    kind = CATALOG[name]
    said = example_of(name, data=EXAMPLES[name] | {"workspace_id": WORKSPACE, "agent_id": "agent-9"}, agent_id=None)
    written = message(pack(said))
    carried = unpack(written, WORKSPACE)
    left = json.loads(bytes(carried.data))
    assert (carried.workspace_id, carried.agent_id) == (WORKSPACE, "agent-9")
    assert not {"workspace_id", "agent_id", kind.subject} & set(left)
    assert written.count(b'"agent_id"') == written.count(b'"workspace_id"') == 1
    if kind.subject in said.data:
        assert carried.subject == getattr(carried, str(kind.subject)) == said.data[kind.subject]
        assert written.count(b'"%s"' % str(kind.subject).encode()) == 1
    assert "agent_id" in said.data, "what a producer gave stays as it is"


def test_an_id_may_stand_beside_data_and_in_it_when_both_say_the_same() -> None:
    said = example_of("agent.online", agent_id="agent-123")
    assert unpack(message(pack(said)), WORKSPACE).agent_id == "agent-123"


def test_an_id_of_another_kind_is_a_field_like_any_other() -> None:
    """A task's event may tell of an execution: only its own subject is lifted."""
    said = example_of("task.progress", data={"task_id": "t", "execution_id": "e", "inference_id": 5})
    carried = unpack(message(pack(said)), WORKSPACE)
    assert carried.subject == "t"
    assert carried.event().data == said.data


json_texts = st.text(max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | json_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_texts, inner, max_size=4),
    max_leaves=10,
)
ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=255).filter(str.isprintable)
timestamps = st.none() | st.datetimes().map(lambda moment: moment.isoformat() + "Z")
taken = {name for kind in CATALOG.values() for name in (*kind.reserved, *IDS, *kind.data.__struct_fields__)}
extras = st.dictionaries(json_texts.filter(lambda name: name not in taken), json_values, max_size=4)


@st.composite
def said_events(draw: st.DrawFn) -> Event:
    """A valid event of any type, with fields nobody has heard of."""
    name = draw(st.sampled_from(sorted(CATALOG)))
    kind = CATALOG[name]
    data = {key: value for key, value in EXAMPLES[name].items() if key not in IDS} | draw(extras)
    if kind.subject is not None and (kind.needs_subject or draw(st.booleans())):
        data = {kind.subject: draw(ids)} | data
    return Event(
        type=name,
        workspace_id=draw(ids.filter(lambda value: not set("{}") & set(value))),
        agent_id=draw(ids) if kind.needs_agent else draw(st.none() | ids),
        data=data,
        timestamp=draw(timestamps),
        ephemeral=draw(st.booleans()),
    )


@given(said_events())
@settings(deadline=None, max_examples=300)
def test_whatever_is_packed_is_unpacked_the_same(said: Event) -> None:
    packed = pack(said)
    is_durable = packed.kind != "-"
    carried = unpack(message(packed, POSITIONS if is_durable else ""), said.workspace_id)
    received = carried.event()
    assert (received.type, received.workspace_id, received.agent_id) == (said.type, said.workspace_id, said.agent_id)
    assert received.data == said.data
    assert received.timestamp == (said.timestamp or carried.timestamp)
    assert (received.id is not None) == is_durable == (CATALOG[said.type].durable and not said.ephemeral)
    assert (packed.workspace, packed.agent) == (said.workspace_id, said.agent_id or "")
    json.loads(message(packed, POSITIONS))


@given(said_events())
@settings(deadline=None)
def test_equal_events_are_packed_equally_but_for_the_time(said: Event) -> None:
    one, other = pack(said), pack(said)
    assert one.rest == other.rest
    assert (one.stamp == b"") == (said.timestamp is not None)
    assert b'"timestamp"' in message(one)


def test_an_event_without_a_timestamp_gets_this_moment_in_milliseconds() -> None:
    before = now()
    stamp = json.loads(message(pack(example_of("agent.online"))))["timestamp"]
    assert before <= stamp <= now()
    assert len(stamp) == len("2026-03-27T10:30:45.123Z")
    assert stamp.endswith("Z")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (example_of("task.completed"), "42"),
        (example_of("task.failed"), "5"),
        (example_of("task.started"), "0"),
        (example_of("task.completed", data={"task_id": "t"}), "0"),
        (example_of("task.completed", ephemeral=True), "-"),
        (example_of("metrics_update"), "-"),
    ],
)
def test_what_the_script_needs_to_know_is_packed(said: Event, kind: str) -> None:
    assert pack(said).kind == kind


@pytest.mark.parametrize("credits_used", [2**53 + 1, 10**17, 2**63, -(2**53) - 1, -(2**70)])
def test_credits_that_the_script_cannot_add_up_are_refused(credits_used: int) -> None:
    """It counts in floats, and what Redis' counter refuses would end it half done: in the log, and told to nobody."""
    said = example_of("task.completed", data={"task_id": "t", "credits_used": credits_used})
    assert invalid(pack, said).path == "$.data.credits_used"


TIMESTAMPS = [
    "2026-03-27T10:30:45Z",
    "2026-03-27T10:30:45.1Z",
    "2026-03-27T10:30:45.123456789Z",
    "2026-03-27T10:30:45+02:00",
    "2026-03-27T10:30:45.5-11:30",
    "2026-03-27t10:30:45z",
    "2016-12-31T23:59:60Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
]


@pytest.mark.parametrize("timestamp", TIMESTAMPS)
def test_a_producers_timestamp_travels_as_it_was_given(timestamp: str) -> None:
    packed = pack(example_of("agent.online", timestamp=timestamp))
    assert unpack(message(packed), WORKSPACE).timestamp == timestamp


WRONG_TIMESTAMPS = [
    "",
    "now",
    "2026-03-27",
    "2026-03-27 10:30:45Z",
    "2026-03-27T10:30:45",
    "2026-03-27T10:30Z",
    "2026-03-27T10Z",
    "2026-03-27T103045Z",
    "20260327T103045Z",
    "2026-W13-5T10:30:45Z",
    "2026-03-27T10:30:45,5Z",
    "2026-03-27T10:30:45.Z",
    "2026-03-27T10:30:45ZZ",
    "2026-03-27T10:30:45Z\n",
    " 2026-03-27T10:30:45Z",
    "2026-03-27T10:30:45+00:00Z",
    "2026-13-27T10:30:45Z",
    "2026-02-30T10:30:45Z",
    "2026-03-27T25:30:45Z",
    "٢٠٢٦-٠٣-٢٧T١٠:٣٠:٤٥Z",
]


@pytest.mark.parametrize("timestamp", WRONG_TIMESTAMPS)
def test_what_is_no_rfc_3339_is_no_timestamp(timestamp: str) -> None:
    assert invalid(pack, example_of("agent.online", timestamp=timestamp)).path == "$.timestamp"
    published = {"type": "agent.online", "agent_id": "a", "timestamp": timestamp, "data": {}}
    assert invalid(unpack, json.dumps(published).encode(), WORKSPACE).path == "$.timestamp"


# -- what a filter may ask of data

LABELS: dict[str, Labels] = {
    "performance_alert": Labels("warning", frozenset({"inference_engine"})),
    "system_alert": Labels("error", frozenset({"database", "knowledge_graph"})),
    "system_status": Labels(None, frozenset({"database", "redis", "inference_engine"})),
    "maintenance_mode": Labels(None, frozenset({"database", "redis", "inference_engine"})),
}


@pytest.mark.parametrize("name", CATALOG)
def test_alerts_and_the_state_of_a_system_have_labels_and_nothing_else_has(name: str) -> None:
    assert unpack(message(pack(example_of(name))), WORKSPACE).labels == LABELS.get(name, Labels())


def test_labels_are_read_once() -> None:
    carried = unpack(message(pack(example_of("system_alert"))), WORKSPACE)
    assert carried.labels is carried.labels
    other = unpack(message(pack(example_of("performance_alert"))), WORKSPACE)
    assert other.labels != carried.labels


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        ({"severity": None, "affected_components": None, "components": None}, Labels()),
        ({"severity": 5, "components": "redis"}, Labels()),
        ({"severity": ["error"], "affected_components": 5}, Labels()),
        ({"severity": "", "affected_components": []}, Labels("", frozenset())),
        ({"affected_components": ["a", 5, None, ["b"]]}, Labels(None, frozenset({"a"}))),
        ({"affected_components": ["a"], "components": {"b": "healthy"}}, Labels(None, frozenset({"a"}))),
        ({"affected_components": None, "components": {"b": "healthy"}}, Labels(None, frozenset({"b"}))),
        ({"violation": {"severity": "high"}}, Labels()),
    ],
)
def test_a_label_that_is_no_word_is_none(data: dict[str, Any], labels: Labels) -> None:
    assert Carried(type="x", data=msgspec.Raw(json.dumps(data).encode())).labels == labels


@pytest.mark.parametrize(
    "data",
    [
        rb'{"severity":"\ud800"}',
        b'{"severity":"error","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"components":' + b'{"x":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"severity":"error","components":{"redis":1e999}}',
    ],
)
def test_labels_that_cannot_be_read_raise_nothing(data: bytes) -> None:
    assert isinstance(Carried(type="x", data=msgspec.Raw(data)).labels, Labels)


# -- refused, with the path

LONG = "x" * 256
VIOLATION = EXAMPLES["shield.violation"]["violation"]

WRONG: list[tuple[str, str, Event]] = [
    ("no type", "$.type", Event(type="", workspace_id=WORKSPACE)),
    ("an unknown type", "$.type", Event(type="task.paused", workspace_id=WORKSPACE)),
    ("a type in capitals", "$.type", Event(type="TASK.STARTED", workspace_id=WORKSPACE)),
    ("a type that is a number", "$.type", Event(type=5, workspace_id=WORKSPACE)),  # type: ignore[arg-type]
    ("a type that is a list", "$.type", Event(type=["x"], workspace_id=WORKSPACE)),  # type: ignore[arg-type]
    *(
        (f"workspace {value!r:.20}", "$.workspace_id", example_of("agent.online", workspace_id=value))
        for value in ("", LONG, "a\nb", "a\x00", "{a}", "a}", "\ud800", 5, None, ["a"])
    ),
    *(
        (f"agent {value!r:.20}", "$.agent_id", example_of("task.started", agent_id=value, data={"task_id": "t"}))
        for value in ("", LONG, "a\nb", "\u2028", "\ud800", 5, ["a"])
    ),
    ("no agent", "$.agent_id", Event(type="agent.online", workspace_id=WORKSPACE)),
    ("no agent, said twice", "$.agent_id", Event(type="agent.online", workspace_id=WORKSPACE, data={"agent_id": None})),
    ("no task", "$.data.task_id", Event(type="task.started", workspace_id=WORKSPACE)),
    ("no execution", "$.data.execution_id", Event(type="llm_end", workspace_id=WORKSPACE, agent_id="a")),
    ("no inference", "$.data.inference_id", Event(type="inference_failed", workspace_id=WORKSPACE, agent_id="a")),
    ("a task that is a number", "$.data.task_id", example_of("task.started", data={"task_id": 5})),
    ("a task without a name", "$.data.task_id", example_of("task.started", data={"task_id": ""})),
    ("a task that is too long", "$.data.task_id", example_of("task.started", data={"task_id": LONG})),
    ("another agent", "$.data.agent_id", example_of("agent.online", agent_id="another")),
    (
        "another workspace",
        "$.data.workspace_id",
        example_of("agent.online", data={"workspace_id": "ws-1", "agent_id": "a"}),
    ),
    *(
        (f"data that is {value!r}", "$.data", example_of("agent.online", agent_id="a", data=value))
        for value in (None, [], "{}", b"{}", 5)
    ),
    ("a step that is a text", "$.data.step", example_of("task.progress", data={"task_id": "t", "step": "3"})),
    ("a step that is null", "$.data.step", example_of("task.progress", data={"task_id": "t", "step": None})),
    ("a step that is a fraction", "$.data.step", example_of("task.progress", data={"task_id": "t", "step": 3.5})),
    ("no error", "$.data.error", example_of("task.failed", data={"task_id": "t"})),
    *(
        (path, path, example_of(name, data={"task_id": "t", "agent_id": "a"} | data))
        for path, name, data in (
            ("$.data.result.success", "task.completed", {"result": {"success": 1}}),
            ("$.data.result.output_files[1]", "task.completed", {"result": {"output_files": ["a", 5]}}),
            ("$.data.error.message", "task.failed", {"error": {"code": "X"}}),
            ("$.data.violation.severity", "shield.violation", {"violation": VIOLATION | {"severity": "huge"}}),
        )
    ),
    *(
        (f"{name} in data", f"$.data.{name}", example_of("task.progress", data={"task_id": "t", name: value}))
        for name, value in itertools.product(("type", "timestamp", "event_id", "data"), ("x", None, {}))
    ),
    *(
        (f"timestamp {value!r}", "$.timestamp", example_of("agent.online", timestamp=value))
        for value in (5, ["2026-03-27T10:30:45Z"], {}, b"2026-03-27T10:30:45Z", True)
    ),
    ("what JSON cannot say", "$.data", example_of("agent.online", data={"agent_id": "a", "x": object()})),
    ("a key that JSON cannot say", "$.data", example_of("agent.online", data={"agent_id": "a", (1, 2): 1})),
    ("text that is no Unicode", "$.data", example_of("agent.online", data={"agent_id": "a", "x": "\ud800"})),
    ("a key that is no Unicode", "$.data", example_of("agent.online", data={"agent_id": "a", "\ud800": 1})),
    ("too much", "$", example_of("agent.online", data={"agent_id": "a", "x": "x" * MAX_EVENT_BYTES})),
]  # fmt: skip


@pytest.mark.parametrize(("path", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_wrong_is_refused_with_its_path(path: str, said: Event) -> None:
    error = invalid(pack, said)
    assert error.path == path
    assert str(error) == f"{path}: {error.reason}"
    assert error.reason[0].islower() or error.reason[0].isdigit()
    assert "`" not in error.reason
    assert len(error.reason) < 200


def test_data_that_holds_itself_is_refused() -> None:
    data: dict[str, Any] = {"agent_id": "a"}
    data["self"] = data
    assert invalid(pack, example_of("agent.online", data=data)).path == "$.data"


def test_data_that_is_nested_deeply_is_refused() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert invalid(pack, example_of("agent.online", data={"agent_id": "a", "x": deep})).path == "$.data"


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**64), 2**100, 10**400, 1e308, 5e-324])
def test_a_number_of_any_size_is_refused_or_arrives(number: float) -> None:
    try:
        packed = pack(example_of("agent.online", data={"agent_id": "a", "x": number}))
    except Invalid as error:
        path = error.path
    else:
        path = ""
        assert unpack(message(packed), WORKSPACE).event().data["x"] == number
    assert path in ("", "$.data")


def test_other_dialects_keep_their_own_fields_of_these_names() -> None:
    """`data` of an alert has a `type`: on its envelope nothing would collide."""
    said = example_of("system_alert", data=EXAMPLES["system_alert"] | {"type": "high_memory_usage", "data": 1})
    assert unpack(message(pack(said)), WORKSPACE).event().data == said.data


# -- whoever may PUBLISH


def published(**parts: Any) -> bytes:
    """A message on a channel; `...` takes a part away."""
    event = {"type": "task.progress", "task_id": "t", "data": {"step": 1}} | parts
    return json.dumps({name: value for name, value in event.items() if value is not ...}).encode()


def test_a_plain_publish_is_completed_from_its_channel() -> None:
    before = now()
    carried = unpack(published(), WORKSPACE, "agent-1")
    assert (carried.workspace_id, carried.agent_id, carried.id) == (WORKSPACE, "agent-1", None)
    assert carried.timestamp is not None
    assert before <= carried.timestamp <= now()
    assert unpack(published(), WORKSPACE, "").agent_id is None
    assert unpack(published(), WORKSPACE).agent_id is None


def test_a_plain_publish_may_have_its_ids_in_data_as_the_documents_show_them() -> None:
    for spaces in ((",", ":"), (", ", ": "), (" ,\n", "\t:\r")):
        data = {"task_id": "t", "workspace_id": WORKSPACE, "step": 3, "agent_id": "agent-1", "extra": [1.5, None, "ü"]}
        for order in (data, dict(reversed(data.items()))):
            text = json.dumps({"type": "task.progress", "data": order}, separators=spaces)
            for agent in (None, "agent-1"):
                carried = unpack(text.encode(), WORKSPACE, agent)
                assert (carried.task_id, carried.agent_id) == ("t", "agent-1")
                assert json.loads(bytes(carried.data)) == {"step": 3, "extra": [1.5, None, "ü"]}


WRONG_MESSAGES: list[tuple[str, str | None, bytes]] = [
    ("nothing", None, b""),
    ("no JSON", None, b"hello"),
    ("half of it", None, published()[:-5]),
    ("two of them", None, published() * 2),
    ("a list", "$", b"[]"),
    ("null", "$", b"null"),
    ("no text", "$", b"\xff\xfe"),
    ("bad UTF-8 in what is not read", "$", b'{"type":"task.progress","task_id":"t","data":{"x":"\xff"}}'),
    ("bad UTF-8 beside", "$", b'{"type":"task.progress","task_id":"t","x":"\xc3","data":{}}'),
    ("bad UTF-8 in the type", "$", b'{"type":"task.\xff","task_id":"t","data":{}}'),
    ("nested deeply", "$", b"[" * 100_000),
    ("nested deeply beside", "$", published()[:-1] + b',"x":' + b"[" * 100_000),
    ("nested deeply in data", "$", b'{"type":"task.progress","task_id":"t","data":{"x":' + b'{"x":' * 100_000),
    ("no type", "$.type", published(type=...)),
    ("a type that is a number", "$.type", published(type=5)),
    ("an unknown type", "$.type", published(type="task.paused")),
    ("no data", "$.data", published(data=...)),
    *((f"data that is {data!r}", "$.data", published(data=data)) for data in (None, [], "x", 5, True, [{}])),
    ("a step that is a text", "$.data.step", published(data={"step": "3"})),
    ("a step that is a text, ids in data", "$.data.step", published(task_id=..., data={"task_id": "t", "step": "3"})),
    ("an error without a code", "$.data.error.code", published(type="task.failed", data={"error": {"message": "x"}})),
    ("another workspace", "$.workspace_id", published(workspace_id="ws-1")),
    ("a workspace that is a number", "$.workspace_id", published(workspace_id=5)),
    ("another workspace in data", "$.data.workspace_id", published(data={"workspace_id": "ws-1"})),
    ("another task in data", "$.data.task_id", published(data={"task_id": "u"})),
    ("another agent in data", "$.data.agent_id", published(agent_id="a", data={"agent_id": "b"})),
    ("no task", "$.task_id", published(task_id=...)),
    ("a task that is a number", "$.task_id", published(task_id=5)),
    ("a task without a name", "$.task_id", published(task_id="")),
    ("a task that is too long", "$.task_id", published(task_id=LONG)),
    ("a task in data that is too long", "$.data.task_id", published(task_id=..., data={"task_id": LONG})),
    ("a task in data that is a list", "$.data.task_id", published(task_id=..., data={"task_id": ["t"]})),
    ("no agent", "$.agent_id", published(type="agent.online")),
    ("a task with a line break", None, published(task_id="a\nb")),
    ("an agent with a line break", None, published(agent_id="a\u2028b")),
    ("a task in data with a line break", None, published(task_id=..., data={"task_id": "a\nb"})),
    ("an execution with a line break", None, published(execution_id="a\nb")),
    ("a position that is none", "$.id", published(id="soon")),
    ("a position without its second number", "$.id", published(id="5")),
    ("a negative position", "$.id", published(id="-5-1")),
    ("a position that is a number", "$.id", published(id=5)),
    ("a position before it that is a number", "$.prev", published(id="5-0", prev=5)),
    *(
        (f"{name} in data, {value!r}", f"$.data.{name}", published(data={name: value}))
        for name, value in itertools.product(("type", "timestamp", "event_id", "data"), ("x", None))
    ),
    ("type in data, escaped", "$.data.type", rb'{"type":"task.progress","task_id":"t","data":{"\u0074ype":"x"}}'),
    ("too much", "$", published(data={"x": "x" * 3 * MAX_EVENT_BYTES})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text"), [case[1:] for case in WRONG_MESSAGES], ids=[case[0] for case in WRONG_MESSAGES]
)
def test_a_message_that_is_no_event_of_its_channel_is_refused(path: str | None, text: bytes) -> None:
    assert path in (None, invalid(unpack, text, WORKSPACE).path)
    if path != "$.id":
        assert path in (None, invalid(unpack, text, WORKSPACE, None, "5-0").path)


def test_an_event_of_another_agent_is_none_of_this_channel() -> None:
    for agent in ("agent-1", ""):
        assert invalid(unpack, published(agent_id="agent-2"), WORKSPACE, agent).path == "$.agent_id"
        in_data = published(data={"agent_id": "agent-2"})
        assert invalid(unpack, in_data, WORKSPACE, agent).path.endswith(".agent_id")


def test_in_the_log_the_position_is_the_entrys_own() -> None:
    assert unpack(published(id="5-0"), WORKSPACE, position="9-0").id == "9-0"


# -- at random

# Words of JSON, good and bad, as a producer in any language may get them wrong.
WORDS = [
    *("null", "true", "false", "0", "-1", "1.5", "1e5", "1E-5", '""', '"x"', "{}", "[]", '"ü"', r'"\u00fc\n\/"'),
    *('"task.progress"', '"t"', '"agent-1"', '"ws-456"', '"2026-03-27T10:30:45Z"', '"5-0"', "9" * 30, "1" + "0" * 400),
    *("01", "+1", "1.", ".5", "-", "1e", "0x1", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "tru", "nul", "'x'"),
    *(
        r'"\q"',
        r'"\u12"',
        r'"\ud800"',
        r'"\ud800\ud800"',
        r'"\udc00x"',
        '"\x00"',
        '"\n"',
        '"\t"',
        '"\x7f"',
        '"',
        r'"\"',
    ),
    *("", ",", "[1,]", "[,]", '{"a"}', '{"a":}', '{"a":1,}', '{"a":1,"a":2}', "{1:2}", "[" * 2000, '{"a":[{"b":"c"}]}'),
]
VALID_WORDS = WORDS[:22]
KEYS = [
    *IDS,
    "type",
    "timestamp",
    "event_id",
    "data",
    "id",
    "prev",
    "step",
    "output",
    "error",
    "result",
    "x",
    "ü",
    "",
    " ",
]
spaces = st.sampled_from(["", "", "", " ", "\n", "\t\r "])


def escaped(key: str) -> str:
    """The same name, its first letter written as an escape."""
    return f"\\u{ord(key[0]):04x}{key[1:]}" if key else key


@st.composite
def members(draw: st.DrawFn, keys: list[str], words: list[str], max_size: int = 5) -> list[str]:
    found = []
    for key in draw(st.lists(st.sampled_from(keys), max_size=max_size)):
        name = escaped(key) if draw(st.integers(0, 5)) == 0 else key
        space = draw(spaces)
        found.append(f'{space}"{name}"{space}:{draw(spaces)}{draw(st.sampled_from(words))}{draw(spaces)}')
    return found


@st.composite
def raw_messages(draw: st.DrawFn) -> bytes:
    """An event as text, mostly well-formed, with names twice, escaped and where they do not belong."""
    words = draw(st.sampled_from([VALID_WORDS, VALID_WORDS, WORDS]))
    name = draw(st.sampled_from(MAXICORE) | st.sampled_from(FREEAGENTICS))
    required = {
        "task.failed": ['"error":{"code":"C","message":"M"}'],
        "shield.violation": [f'"violation":{json.dumps(EXAMPLES["shield.violation"]["violation"])}'],
        "agent_status": ['"new_status":"idle"'],
        "inference_progress": ['"progress":0.5'],
        "entity_created": ['"entity_id":"entity-1"'],
    }.get(name, [])
    inside = draw(members([*KEYS[:5], *KEYS[11:]] if draw(st.booleans()) else KEYS, words))
    space = draw(spaces)
    data = f'"data":{space}{{' + ",".join(draw(st.permutations([*required, *inside]))) + f"{space}}}"
    top = [f'"type":"{name}"', data, *draw(members(["x", "ü", *IDS, "id", "prev", "timestamp"], words, 2))]
    if draw(st.integers(0, 9)):
        top += ['"task_id":"t"' if name in MAXICORE else '"inference_id":"i"', '"agent_id":"agent-1"']
    return (space + "{" + ",".join(draw(st.permutations(top))) + "}" + space).encode(errors="surrogatepass")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message with bytes changed, lost and added."""
    text = bytearray(published(data={"step": 1, "x": {"y": ["ü", 1.5, None]}}))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text) - 1))
        text[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(text)


messages = (
    st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()) | raw_messages() | damaged()
)


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def strictly(text: bytes) -> list[tuple[str, Any]]:
    """The members of a JSON object, in order, as a parser reads them that forgives nothing."""
    decoded: list[tuple[str, Any]] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        decoded[:] = found  # the outermost object comes last
        return dict(found)

    assert isinstance(json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=no_constant), dict)
    return decoded


ENVELOPE = {"type", "timestamp", "workspace_id", "agent_id", "task_id", "event_id", "data"}


def check_that_it_can_be_sent_on(carried: Carried) -> None:
    """Every form of an accepted event is valid JSON, and no name of its envelope stands in it twice."""
    assert carried.type in CATALOG
    data = strictly(bytes(carried.data))
    said = carried.event()  # what `tail` and watching from Python make of it
    assert said.workspace_id == WORKSPACE
    for name, variant in maxicore.VARIANTS.items():
        words = variant.encode(carried)
        if carried.type not in maxicore.TYPES:
            assert words is None
            continue
        assert words is not None
        top = strictly(words)
        names = Counter(key for key, _ in top)
        assert {"type", "timestamp", "workspace_id"} <= set(names)
        assert all(names[key] == 1 for key in ENVELOPE & set(names))
        values = dict(top)
        assert (values["type"], values["workspace_id"]) == (carried.type, WORKSPACE)
        expected = {"agent_id": carried.agent_id, "task_id": carried.task_id, "event_id": carried.id}
        assert {key: values.get(key) for key in expected} == expected
        if name != "flat":
            assert values["data"] == dict(data)
        if name != "nested":
            # A name that stands twice in `data` is its producer's own doing, and no more than twice on top.
            assert names - Counter(ENVELOPE) == Counter(key for key, _ in data)
    check_that_it_can_be_nested(carried, data)


def check_that_it_can_be_nested(carried: Carried, data: list[tuple[str, Any]]) -> None:
    """As FreeAgentics' clients have it: the ids of agent and inference stand in `data`, once."""
    words = freeagentics.encode(carried)
    if carried.type not in freeagentics.TYPES:
        assert words is None
        return
    assert words is not None
    top = strictly(words)
    expected = {"type": carried.type, "timestamp": carried.timestamp, "workspace_id": WORKSPACE}
    expected |= {} if carried.id is None else {"event_id": carried.id}
    assert [key for key, _ in top] == [*expected, "data"]
    assert dict(top[:-1]) == expected
    ids = {} if CATALOG[carried.type].subject is None else {"inference_id": carried.inference_id}
    ids |= {} if carried.agent_id is None else {"agent_id": carried.agent_id}
    inner = words[words.index(b',"data":') + len(b',"data":') : -1]
    assert strictly(inner) == [*ids.items(), *data]


@given(messages, st.sampled_from([None, "", "agent-1"]), st.sampled_from([None, "9-0"]))
@example(published(data={}), None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{ }}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{\n\t"step" : 1 }}', None, "9-0")
@example(rb'{"type":"task.progress","data":{"task_id":"t","task_id":"t"}}', None, None)
@example(rb'{"type":"task.progress","data":{"task_id":"t","\u0074ask_id":"t","step":1}}', None, None)
@example(b'{"type":"task.progress","data":{"task_id":"t","task_id" :"t","step":1}}', None, None)
@example(rb'{"type":"task.progress","data":{"\u0074ask_id":"t","step":1}}', None, None)
@example(rb'{"type":"task.progress","data":{"task_id":"t","x":{"task_id":"t"}}}', None, None)
@example(rb'{"type":"task.progress","data":{"task_id":"t","x":"\"task_id\":\"t\""}}', None, None)
@example(b'{"type":"task.progress","data":{"task_id":"t","x":1e999}}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{"x":1e999}}', None, None)
@example(rb'{"type":"task.progress","data":{"task_id":"t","x":"\ud800"}}', None, None)
@example(rb'{"type":"task.progress","task_id":"t","data":{"x":"\ud800"}}', None, None)
@example(rb'{"type":"task.progress","task_id":"t","data":{"\ud800":1}}', None, None)
@example(rb'{"type":"task.progress","task_id":"t","data":{"x":"\q"}}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{"x":"\x00"}}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{"x":"a\nb"}}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{"x":01}}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{"x":1.}}', None, None)
@example(b'{"type":"task.progress","task_id":"t","data":{"x":-}}', None, None)
@example(b'{"type":"agent_status","agent_id":"a","data":{ "new_status":"idle","inference_id":"i" }}', None, "9-0")
@example(
    b'{"type":"agent_status","agent_id":"a","inference_id":"i","data":{"new_status":"x","inference_id":1}}', None, None
)
@example(b'{"type":"metrics_update","inference_id":"i","data":{}}', None, None)
@example(b'{"type":"inference_failed","agent_id":"a","data":{"inference_id":"i","agent_id":"a"}}', None, None)
@example(
    b'{"type":"agent.online","agent_id":"a","execution_id":"e","inference_id":"i","data":{"task_id":"t"}}', None, None
)
@settings(deadline=None, max_examples=1000)
def test_what_anyone_publishes_is_refused_or_can_be_sent_on(
    text: bytes, agent: str | None, position: str | None
) -> None:
    try:
        carried = unpack(text, WORKSPACE, agent, position)
    except Invalid:
        return
    assert carried.id is None or position in (None, carried.id)
    check_that_it_can_be_sent_on(carried)


@given(said_events())
@settings(deadline=None)
def test_what_is_packed_can_be_sent_on_in_every_form(said: Event) -> None:
    said.workspace_id = WORKSPACE
    check_that_it_can_be_sent_on(unpack(message(pack(said), POSITIONS), WORKSPACE))


CLIENT_MESSAGES = [
    '{"type":"auth","token":"Bearer a.b.c"}',
    '{"type":"subscribe","filters":{"agent_id":["a","b"],"task_id":"t","event_types":["task.failed"]},"since":"5-0"}',
    '{"type":"subscribe","since":{"ws-1":"5-0"},"filters":null}',
    '{"type":"unsubscribe","filters":{"workspace_id":"ws-1"}}',
    '{"type":"ping"}',
    '{"type":"pong","more":[1,2.5,null]}',
]


@st.composite
def damaged_words(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(CLIENT_MESSAGES))
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(WORDS) | st.text(max_size=3)) + text[at + draw(st.integers(0, 9)) :]


any_text = st.text(st.characters(), max_size=60)  # with surrogates
filters = st.dictionaries(st.sampled_from([*IDS, "event_types", "x"]), json_values, max_size=3)
typed = st.builds(
    lambda kind, fields, filters: json.dumps(fields | {"type": kind, "filters": filters}),
    st.sampled_from(["auth", "subscribe", "unsubscribe", "ping", "pong", "", "x"]),
    st.dictionaries(st.sampled_from(["since", "token", "x"]), json_values, max_size=2),
    filters | json_values,
)


@given(any_text | json_values.map(json.dumps) | typed | damaged_words() | st.sampled_from(WORDS))
@example("[" * 100_000)
@example('{"type":"subscribe","filters":' + "[" * 60_000)
@example('{"type":"ping","x":"\ud800"}')
@example('{"type":"subscribe","filters":{"agent_id":"\\ud800"}}')
@settings(deadline=None, max_examples=500)
def test_whatever_a_client_says_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        maxicore.decode(text)


def test_what_a_client_may_say_is_understood() -> None:
    for text in CLIENT_MESSAGES:
        maxicore.decode(text)
