"""FreeAgentics' words, as values: what its clients say means what the document says, what they hear has its shape."""

import json
import re
from datetime import datetime
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker import Event
from broker.catalog import CATALOG
from broker.commands import Reply
from broker.commands.command import Command as Order
from broker.events import Carried, pack, unpack
from gateway import frames
from gateway.dialects.freeagentics import DEFLATED, FREEAGENTICS, PLAIN, SUPPORTED, TYPES, decode, encode, say
from gateway.messages import (
    Asked,
    Authenticate,
    Command,
    Configure,
    Confirmed,
    Disconnect,
    Error,
    Expiring,
    Farewell,
    GapSaid,
    NearLimit,
    Notice,
    Ordered,
    Ping,
    PingSent,
    Pong,
    PongSent,
    PoolSaid,
    Refused,
    Request,
    StatusSaid,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from gateway.reasons import (
    AGENT_OFFLINE,
    AGENT_UNKNOWN,
    BUG,
    COMMAND_FAILED,
    COMMAND_TIMEOUT,
    EVENTS_LOST,
    FLOOD,
    FORBIDDEN,
    GOING_AWAY,
    GOODBYE,
    IDLE,
    INVALID_MESSAGE,
    INVALID_TOKEN,
    NOT_TEXT,
    PONG_TIMEOUT,
    SLOW_CONSUMER,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_ERRORS,
    TOO_MANY_EVENT_TYPES,
    TOO_MANY_MESSAGES,
    UNAVAILABLE,
    UNKNOWN_COMMAND,
    UNKNOWN_EVENT_TYPE,
    Reason,
)

from .support import SHARED
from .test_catalog import EXAMPLES
from .wire import freeagentics_examples as examples
from .wire.seed import missing

Message = dict[str, Any]


def decoded(message: Any) -> Request:
    return decode(message if isinstance(message, str) else json.dumps(message))


def refused(message: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        decoded(message)
    return caught.value


def at(timestamp: str) -> float:
    """Unix time."""
    return datetime.fromisoformat(timestamp).timestamp()


def said(notice: Notice, timestamp: str = "2024-01-15T10:30:00Z") -> Message:
    """What a client is told at this time. Our own times have milliseconds, where the document has none."""
    words = say(notice, at(timestamp))
    assert words is not None
    return json.loads(re.sub(rb"\.000Z", b"Z", words))  # type: ignore[no-any-return]


def ids(*values: str) -> frozenset[str]:
    return frozenset(values)


# -- the document

JSON_BLOCK, SENT = re.compile(r"```json\n(.*?)```", re.DOTALL), re.compile(r"\.send\((.*?)\);\n", re.DOTALL)


def document() -> str:
    found = sorted(SHARED.glob("seeds/003_*.txt"))
    if not found:
        missing(f"the protocol documents are not beside this checkout ({SHARED.name}/seeds)")
    return found[0].read_text(encoding="utf-8")


def test_the_examples_are_the_documents() -> None:
    shown = [json.loads(re.sub(r"//.*", "", block)) for block in JSON_BLOCK.findall(document())]
    assert shown == list(examples.DOCUMENT)


def test_what_scripts_send_is_the_documents() -> None:
    sent = [literal.removeprefix("JSON.stringify(").rstrip(")") for literal in SENT.findall(document())]
    assert [as_json(literal) for literal in sent if literal != "message"] == list(examples.SCRIPTS)


def as_json(literal: str) -> Any:
    """The value of an object literal."""
    text = re.sub(r"//.*", "", literal).replace("'", '"').replace("this.agentId", '"<agent>"')
    return json.loads(re.sub(r'"?(\w+)"?:', r'"\1":', text))


# -- what clients send

TWO_AGENTS = {"agents": ids("agent_123", "agent_456"), "named": ("agent_123", "agent_456")}

REQUESTS: list[tuple[str, Message, Request]] = [
    (
        "subscribe, after the acknowledgment",
        examples.SUBSCRIBE_FIRST,
        Subscribe(
            Asked(
                types=ids("agent_status", "metrics_update", "system_alert"),
                words=(
                    ("agent_status", "agent_status"),
                    ("metrics_update", "metrics"),
                    ("system_alert", "system_alerts"),
                ),
                **TWO_AGENTS,
            )
        ),
    ),
    (
        "subscribe, with filters",
        examples.SUBSCRIBE,
        Subscribe(
            Asked(
                types=ids("agent_status", "metrics_update", "inference_completed", "system_alert"),
                words=(
                    ("agent_status", "agent_status"),
                    ("metrics_update", "metrics"),
                    ("inference_completed", "inference_completed"),
                    ("system_alert", "system_alerts"),
                ),
                severities=ids("warning", "error"),
                components=ids("inference_engine"),
                **TWO_AGENTS,
            )
        ),
    ),
    (
        "subscribe, the dashboard's: no agents are all",
        examples.SUBSCRIBE_DASHBOARD,
        Subscribe(
            Asked(
                types=ids("agent_status", "metrics_update", "inference_completed"),
                words=tuple((name, name) for name in ("agent_status", "metrics_update", "inference_completed")),
            )
        ),
    ),
    (
        "subscribe, the monitor's",
        examples.SUBSCRIBE_MONITOR,
        Subscribe(
            Asked(
                agents=ids("<agent>"),
                types=ids("inference_started", "inference_progress", "inference_completed"),
                words=tuple(
                    (name, name) for name in ("inference_started", "inference_progress", "inference_completed")
                ),
                named=("<agent>",),
            )
        ),
    ),
    (
        "unsubscribe",
        examples.UNSUBSCRIBE,
        Unsubscribe(
            Asked(
                agents=ids("agent_123"),
                types=ids("metrics_update"),
                words=(("metrics_update", "metrics"),),
                named=("agent_123",),
            )
        ),
    ),
    ("command", examples.COMMAND, Command("agent_123", "stop", {"graceful": True})),
    ("ping", examples.PING, Ping()),
    ("configure", examples.CONFIGURE, Configure(5.0, 100, True)),
    ("disconnect", examples.DISCONNECT, Disconnect()),
]


@pytest.mark.parametrize(("message", "request_"), [case[1:] for case in REQUESTS], ids=[case[0] for case in REQUESTS])
def test_every_request_of_the_document_is_understood(message: Message, request_: Request) -> None:
    assert decoded(message) == request_
    assert decoded(message | {"timestamp": "2024-01-15T10:30:00Z"}) == request_, "all messages may have one"


def test_what_the_document_leaves_out_is_understood_too() -> None:
    assert decoded({"type": "auth", "data": {"token": "Bearer a.b.c"}}) == Authenticate("Bearer a.b.c")
    assert decoded({"type": "pong"}) == Pong()
    assert decoded({"type": "disconnect"}) == Disconnect()
    assert decoded({"type": "ping", "data": {"sent": 5}}) == Ping()


# -- event types

# "Event Types Reference", group by group.
REFERENCE = [
    *("agent_status", "agent_created", "agent_deleted", "agent_updated"),
    *("inference_started", "inference_progress", "inference_completed", "inference_failed"),
    *("metrics_update", "performance_alert"),
    *("system_alert", "system_status", "maintenance_mode"),
    *("entity_created", "entity_updated", "entity_deleted"),
    *("relationship_created", "relationship_updated", "relationship_deleted"),
    *("connection_established", "subscription_confirmed", "subscription_error", "command_error"),
    *("rate_limit_warning", "disconnect_warning"),
]
ALIASES = {
    "metrics": "metrics_update",
    "metrics_updates": "metrics_update",
    "system_alerts": "system_alert",
    "performance_alerts": "performance_alert",
    "agent_statuses": "agent_status",
    "disconnect_warnings": "disconnect_warning",
}


def words_of(*events: str) -> tuple[tuple[str, str], ...]:
    request = decoded({"type": "subscribe", "data": {"events": list(events)}})
    assert isinstance(request, Subscribe)
    assert request.asked.types == frozenset(name for name, _ in request.asked.words)
    return request.asked.words


@pytest.mark.parametrize("name", REFERENCE)
def test_every_type_of_the_reference_can_be_subscribed_to(name: str) -> None:
    assert words_of(name) == ((name, name),)


def test_the_types_that_are_supported_are_those_of_the_reference() -> None:
    assert len(REFERENCE) == 25
    assert sorted(SUPPORTED) == sorted(REFERENCE)


@pytest.mark.parametrize(("word", "name"), ALIASES.items())
def test_an_alias_stands_for_a_type_and_is_kept_as_the_clients_own_word(word: str, name: str) -> None:
    assert words_of(word) == ((name, word),)


def test_a_type_that_is_named_twice_is_one_by_its_first_word() -> None:
    assert words_of("metrics", "agent_status", "metrics_update") == (
        ("metrics_update", "metrics"),
        ("agent_status", "agent_status"),
    )


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize("word", ["invalid_event", "", "AGENT_STATUS", "agent_status ", "task.progress", "resume_gap"])
def test_another_type_is_refused_by_its_name(kind: str, word: str) -> None:
    error = refused({"type": kind, "data": {"events": ["agent_status", word]}})
    assert (error.reason, error.detail) == (UNKNOWN_EVENT_TYPE, f"Event type '{word}' is not supported")
    message = said(Error(error.reason, error.detail, error.request))
    assert (message["type"], message["data"]["error_code"]) == ("subscription_error", "INVALID_EVENT_TYPE")


SECRET = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyLTEifQ.c2VjcmV0"


@pytest.mark.parametrize("word", [SECRET, f"Bearer {SECRET}", "x" * 65, "x\n", "\u2028", "a " * 200])
def test_what_may_be_a_secret_or_no_word_at_all_is_not_repeated(word: str) -> None:
    error = refused({"type": "subscribe", "data": {"events": [word]}})
    assert (error.reason, error.detail) == (UNKNOWN_EVENT_TYPE, "An event type is not supported")


# -- what else clients may say


def subscribed(**data: Any) -> Subscribe:
    request = decoded({"type": "subscribe", "data": {"events": ["agent_status"]} | data})
    assert isinstance(request, Subscribe)
    return request


@pytest.mark.parametrize("data", [{}, {"agents": []}, {"agents": None}])
def test_agents_absent_or_empty_are_all(data: Message) -> None:
    assert subscribed(**data).asked == subscribed().asked
    assert subscribed().asked.agents is None
    assert decoded({"type": "unsubscribe", "data": {"events": ["metrics"]} | data}) == decoded(
        {"type": "unsubscribe", "data": {"events": ["metrics"]}}
    )


def test_agents_keep_their_order_and_one_needs_no_list() -> None:
    assert subscribed(agents=["b", "a", "c"]).asked.named == ("b", "a", "c")
    assert subscribed(agents="a").asked == subscribed(agents=["a"]).asked


def test_filters_may_be_given_one_by_one_and_without_a_list() -> None:
    assert subscribed(filters={}).asked == subscribed().asked
    assert subscribed(filters={"severity": "error"}).asked.severities == ids("error")
    assert subscribed(filters={"components": ["redis"]}).asked.components == ids("redis")
    assert subscribed(filters={"severity": "error"}).asked.components is None


@pytest.mark.parametrize("since", [None, "5-0", {"ws-1": "5-0"}])
def test_a_position_to_resume_from_stands_beside_the_events(since: Any) -> None:
    assert subscribed(since=since).since == since


@pytest.mark.parametrize("data", [{}, {"data": {}}, {"data": None}])
def test_nothing_named_is_everything_given_back(data: Message) -> None:
    assert decoded({"type": "unsubscribe"} | data) == Unsubscribe(Asked())


@pytest.mark.parametrize(
    ("given", "request_id"),
    [
        ({}, None),
        ({"data": {"request_id": "req_789"}}, "req_789"),
        ({"request_id": "req_789"}, "req_789"),
        ({"request_id": "outer", "data": {"request_id": "inner"}}, "inner"),
        ({"data": {"request_id": "r" * 255}}, "r" * 255),
        ({"data": {"request_id": None}}, None),
    ],
)
def test_a_command_may_bring_an_id_of_the_clients_own(given: Message, request_id: str | None) -> None:
    command = decoded(
        {"type": "command"} | given | {"data": {"agent_id": "a", "command": "stop"} | given.get("data", {})}
    )
    assert command == Command("a", "stop", {}, request_id)


def test_a_command_may_name_its_workspace_and_parameters_of_any_kind() -> None:
    data = {"agent_id": "a", "command": "update_config", "workspace_id": "ws-1", "parameters": {"deep": [{"x": None}]}}
    assert decoded({"type": "command", "data": data}) == Command(
        "a", "update_config", {"deep": [{"x": None}]}, None, "ws-1"
    )


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        ({}, Configure()),
        ({"metrics_interval": 250}, Configure(metrics_seconds=0.25)),
        ({"metrics_interval": 3_600_000}, Configure(metrics_seconds=3600.0)),
        ({"buffer_size": 1}, Configure(buffer_events=1)),
        ({"buffer_size": 10_000}, Configure(buffer_events=10_000)),
        ({"compression": False}, Configure(is_compressed=False)),
    ],
)
def test_what_is_not_configured_stays_as_it_is(data: Message, request_: Request) -> None:
    assert decoded({"type": "configure", "data": data}) == request_


def _data(kind: str, **data: Any) -> Message:
    whole = {"subscribe": {"events": ["metrics"]}, "command": {"agent_id": "a", "command": "stop"}}.get(kind, {})
    return {"type": kind, "data": {name: value for name, value in (whole | data).items() if value is not ...}}


WRONG: list[tuple[str, Any]] = [
    ("not JSON", ""),
    ("not JSON", "hello"),
    ("not JSON", '{"type":"ping"'),
    ("not JSON", '{"type":"ping"}{"type":"ping"}'),
    ("$: ", "[]"),
    ("$: ", "null"),
    ("nested too deeply", '{"type":"command","data":{"parameters":' + '{"x":' * 20_000),
    ("not JSON", '{"type":"auth","data":{"token":"\\ud800"}}'),
    ("$.type: ", {}),
    ("$.type: ", {"type": None}),
    ("$.type: ", {"type": "dance"}),
    ("$.type: ", {"type": "agent_status"}),
    ("$: ", {"type": "subscribe"}),
    ("$.data: ", {"type": "subscribe", "data": None}),
    ("$.data: ", {"type": "subscribe", "data": []}),
    ("$.data.events: ", _data("subscribe", events=None)),
    ("$.data.events: ", _data("subscribe", events=[])),
    ("$.data.events: ", _data("subscribe", events="metrics")),
    ("$.data: ", _data("subscribe", events=...)),
    ("$.data.events[1]: ", _data("subscribe", events=["metrics", 5])),
    ("$.data.events: ", _data("subscribe", events=["metrics"] * 1001)),
    ("$.data.agents: ", _data("subscribe", agents=5)),
    ("$.data.agents[0]: ", _data("subscribe", agents=[None])),
    ("$.data.agents: ", _data("subscribe", agents=["a", ""])),
    ("$.data.agents: ", _data("subscribe", agents="")),
    ("$.data.agents: ", _data("subscribe", agents=["a\nb"])),
    ("$.data.agents: ", _data("subscribe", agents=["a" * 256])),
    ("$.data.agents: ", _data("subscribe", agents=[f"a{number}" for number in range(1001)])),
    ("$.data.filters: ", _data("subscribe", filters=[])),
    ("$.data.filters: ", _data("subscribe", filters={"colour": "red"})),
    ("$.data.filters.severity: ", _data("subscribe", filters={"severity": 5})),
    ("$.data.filters.severity: ", _data("subscribe", filters={"severity": []})),
    ("$.data.filters.components: ", _data("subscribe", filters={"components": [""]})),
    ("$.data.since: ", _data("subscribe", since=5)),
    ("$.data: ", _data("subscribe", agent="a")),
    ("$.data.events: ", _data("unsubscribe", events=[])),
    ("$.data.events: ", _data("unsubscribe", events="metrics")),
    ("$.data: ", _data("unsubscribe", event=["metrics"])),
    ("$: ", {"type": "command"}),
    ("$.data: ", _data("command", agent_id=...)),
    ("$.data.agent_id: ", _data("command", agent_id="")),
    ("$.data.agent_id: ", _data("command", agent_id="a\nb")),
    ("$.data: ", _data("command", command=...)),
    ("$.data.command: ", _data("command", command=None)),
    ("$.data.parameters: ", _data("command", parameters=["graceful"])),
    ("$.data.request_id: ", _data("command", request_id=5)),
    ("$.data.request_id: ", _data("command", request_id="x" * 256)),
    ("$.data.request_id: ", _data("command", request_id="a\nb")),
    ("$.data.workspace_id: ", _data("command", workspace_id=5)),
    ("$: ", {"type": "configure"}),
    ("$.data.metrics_interval: ", _data("configure", metrics_interval=249)),
    ("$.data.metrics_interval: ", _data("configure", metrics_interval=3_600_001)),
    ("$.data.metrics_interval: ", _data("configure", metrics_interval="5000")),
    ("$.data.metrics_interval: ", _data("configure", metrics_interval=True)),
    ("$.data.buffer_size: ", _data("configure", buffer_size=0)),
    ("$.data.buffer_size: ", _data("configure", buffer_size=10_001)),
    ("$.data.buffer_size: ", _data("configure", buffer_size=2.5)),
    ("$.data.compression: ", _data("configure", compression=1)),
    ("$.data: ", _data("configure", interval=5000)),
    ("$: ", {"type": "auth"}),
    ("$: ", {"type": "auth", "token": "a.b.c"}),
    ("$.data.token: ", {"type": "auth", "data": {"token": None}}),
]


@pytest.mark.parametrize(("path", "message"), WRONG, ids=[f"{at} {str(case)[:60]}" for at, case in WRONG])
def test_a_malformed_message_is_refused_with_its_path(path: str, message: Any) -> None:
    error = refused(message)
    assert error.reason is INVALID_MESSAGE
    assert error.detail.startswith(path)
    assert len(error.detail) < 300
    told = said(Error(error.reason, error.detail, error.request, reference="req_1"))
    assert (told["type"], told["data"]["error_code"]) == ("command_error", "INVALID_MESSAGE_FORMAT")


def test_an_unknown_message_type_is_answered_with_those_there_are() -> None:
    known = "subscribe, unsubscribe, command, ping, pong, configure, disconnect, auth"
    assert refused({"type": "dance"}).detail == f"$.type: expected one of {known}"


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(list(ALIASES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
PARTS = [
    "events",
    "agents",
    "filters",
    "since",
    "agent_id",
    "command",
    "parameters",
    "request_id",
    "token",
    "buffer_size",
]
typed = st.builds(
    lambda kind, data: json.dumps({"type": kind, "data": data}),
    st.sampled_from(["subscribe", "unsubscribe", "command", "configure", "auth", "ping", "x"]),
    st.dictionaries(st.sampled_from(PARTS), any_json, max_size=4) | any_json,
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    text = json.dumps(draw(st.sampled_from([message for _, message, _ in REQUESTS])))
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(st.text(max_size=3)) + text[start + draw(st.integers(0, 9)) :]


@given(st.text(max_size=60) | any_json.map(json.dumps) | typed | damaged())
@example('{"type":"subscribe","data":{"events":["\\ud800"]}}')
@example('{"type":"command","data":{"agent_id":"a","command":"stop","parameters":{"x":"\ud800"}}}')
@settings(deadline=None, max_examples=500)
def test_whatever_a_client_says_is_understood_or_refused_and_can_be_answered(text: str) -> None:
    try:
        request = decode(text)
    except Refused as error:
        request, reason = error.request, error.reason
        assert reason in (INVALID_MESSAGE, UNKNOWN_EVENT_TYPE)
        said(Error(reason, error.detail, request, reference="req_1"))
    else:
        said(Error(TOO_MANY_MESSAGES, "detail", request, 1.5, "req_1"))


# -- what clients hear: events


def produced(shown: Message, **changes: Any) -> Carried:
    """The event that somebody published to have `shown` appear, as a node has it."""
    event = Event(
        **{"type": shown["type"], "workspace_id": "ws-456", "data": shown["data"], "timestamp": shown["timestamp"]}
        | changes
    )
    packed = pack(event)
    return unpack(b"{" + packed.stamp + packed.rest, "ws-456")


@pytest.mark.parametrize("name", examples.EVENTS)
def test_every_event_of_the_document_is_produced_as_it_stands(name: str) -> None:
    shown = examples.EVENTS[name]
    carried = produced(shown)
    words = encode(carried)
    assert words is not None
    assert json.loads(words) == shown | {"workspace_id": "ws-456"}
    carried.id = "7-1"
    assert json.loads(encode(carried) or b"") == shown | {"workspace_id": "ws-456", "event_id": "7-1"}


@pytest.mark.parametrize("name", sorted(set(TYPES) - set(examples.EVENTS)))
def test_a_type_without_an_example_looks_like_its_sibling(name: str) -> None:
    shown = {"type": name, "timestamp": "2024-01-15T10:31:00Z", "data": EXAMPLES[name]}
    assert json.loads(encode(produced(shown)) or b"") == shown | {"workspace_id": "ws-456"}


@pytest.mark.parametrize(
    "timestamp", ["2024-01-15T10:31:00Z", "2024-01-15T10:31:00.123456Z", "2024-01-15T12:31:00+02:00"]
)
def test_a_producers_timestamp_travels_as_it_is(timestamp: str) -> None:
    carried = produced(examples.EVENTS["agent_status"] | {"timestamp": timestamp})
    assert json.loads(encode(carried) or b"")["timestamp"] == timestamp


def test_an_event_without_a_timestamp_has_ours() -> None:
    carried = produced(examples.EVENTS["agent_status"], timestamp=None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(encode(carried) or b"")["timestamp"])


def test_ids_that_were_given_beside_data_stand_in_it() -> None:
    said_so = {"type": "agent_status", "timestamp": "2024-01-15T10:31:00Z", "data": {"new_status": "idle"}}
    message = json.loads(encode(produced(said_so, agent_id="agent_123")) or b"")
    assert message["data"] == {"agent_id": "agent_123", "new_status": "idle"}
    assert "agent_id" not in message


def test_data_without_members_is_an_object_too() -> None:
    maintenance = Carried(type="maintenance_mode", data=msgspec.Raw(b"{ }"), workspace_id="ws-456", timestamp="t")
    assert json.loads(encode(maintenance) or b"")["data"] == {}
    created = msgspec.structs.replace(maintenance, type="agent_created", agent_id="a")
    assert json.loads(encode(created) or b"")["data"] == {"agent_id": "a"}


@pytest.mark.parametrize("name", [name for name, kind in CATALOG.items() if kind.dialect != "freeagentics"])
def test_another_dialects_events_have_no_words(name: str) -> None:
    assert encode(Carried(type=name, data=msgspec.Raw(b"{}"), workspace_id="ws-456", agent_id="a")) is None


def test_who_has_compression_on_is_told_the_same_in_frames_of_another_kind() -> None:
    assert FREEAGENTICS.deflated is DEFLATED
    assert FREEAGENTICS.variants[FREEAGENTICS.choose({"token": "x"})] is PLAIN
    assert PLAIN.encode is DEFLATED.encode is encode
    assert (PLAIN.frame, DEFLATED.frame) == (frames.text, frames.deflated)


# -- what clients hear: everything else

COMMAND = Command("agent_123", "start", {}, "req_789")

NOTICES: list[tuple[Message, Notice]] = [
    (examples.CONNECTION_ESTABLISHED, Welcome("client_789", "session_123")),
    (examples.SUBSCRIPTION_CONFIRMED, Confirmed(("agent_status", "metrics"), ("agent_123", "agent_456"))),
    (examples.COMMAND_ERROR, Error(AGENT_UNKNOWN, AGENT_UNKNOWN.text, COMMAND, reference="req_789")),
    (examples.PONG, PongSent(780.9)),
    (examples.RATE_LIMIT_WARNING, NearLimit(95, 100, 60.0, is_users=False)),
    (examples.CONNECTION_ERROR, Error(INVALID_TOKEN, INVALID_TOKEN.text, retry_after=INVALID_TOKEN.retry_after)),
    (examples.CONNECTION_POOL_INFO, PoolSaid("pool_123", 3, 5)),
]


@pytest.mark.parametrize(("shown", "notice"), NOTICES, ids=[shown["type"] for shown, _ in NOTICES])
def test_every_message_of_the_document_is_said_as_it_stands(shown: Message, notice: Notice) -> None:
    assert said(notice, shown["timestamp"]) == shown


def test_the_acknowledgment_is_said_with_the_version() -> None:
    shown = examples.CONNECTION_ACKNOWLEDGED
    message = said(Welcome("client_789", "session_123"), shown["timestamp"])
    assert message["data"].items() >= shown["data"].items()
    assert message.keys() == shown.keys()


def test_a_subscription_error_names_all_types_there_are() -> None:
    shown = examples.SUBSCRIPTION_ERROR
    error = refused({"type": "subscribe", "data": {"events": ["invalid_event"]}})
    message = said(Error(error.reason, error.detail, error.request), shown["timestamp"])
    supported = message["data"].pop("supported_events")
    assert {*shown["data"]["supported_events"], *REFERENCE} - {"metrics"} == set(supported)
    assert all(words_of(word) for word in supported)
    assert message == shown | {"data": {k: v for k, v in shown["data"].items() if k != "supported_events"}}


async def _settle(_: Reply) -> None:
    """Nobody answers it here."""


ANY: dict[type, Notice] = {
    type(notice): notice
    for notice in (
        *(notice for _, notice in NOTICES),
        GapSaid("ws-456", "7-0", "9-0"),
        StatusSaid("agent_123", {"new_status": "idle"}),
        Expiring(60.0),
        Farewell(GOING_AWAY),
        PingSent("5-0"),
        Ordered(Order("1-0", "req_789", "ws-456", "agent_123", "start", {}, "user", 0, "key", _settle)),
    )
}

# Its clients know no such messages.
UNSAID = (PingSent, Ordered)


@pytest.mark.parametrize("kind", get_args(Notice))
def test_everything_that_is_said_has_type_timestamp_and_data(kind: type) -> None:
    """The document's own validator throws without a timestamp."""
    if kind in UNSAID:
        assert say(ANY[kind], 0.0) is None
        return
    words = say(ANY[kind], at("2024-01-15T10:30:00Z") + 0.5)
    assert words is not None
    message = json.loads(words)
    assert list(message) == ["type", "timestamp", "data"]
    assert message["timestamp"] == "2024-01-15T10:30:00.500Z"
    assert isinstance(message["data"], dict)


@pytest.mark.parametrize("complete", ["7-1", {"ws-1": "7-1", "ws-2": "9-0"}])
@pytest.mark.parametrize("notice", [PongSent(0.0), Confirmed(("metrics",), ())])
def test_pong_and_confirmation_tell_up_to_where_a_client_has_everything(notice: Any, complete: Any) -> None:
    assert said(notice._replace(complete=complete))["event_id"] == complete
    assert "event_id" not in said(notice)


def test_who_has_given_back_everything_is_inactive() -> None:
    assert said(Confirmed((), ()))["data"] == {"events": [], "agents": [], "status": "inactive"}
    assert said(Confirmed(("metrics",), ()))["data"]["status"] == "active"


def test_a_limit_of_all_of_a_users_messages_has_a_name_of_its_own() -> None:
    data = said(NearLimit(475, 500, 30.0, is_users=True))["data"]
    shown = examples.RATE_LIMIT_WARNING["data"]
    assert {name: type(value) for name, value in data.items()} == {name: type(value) for name, value in shown.items()}
    assert data["limit_type"] != shown["limit_type"]
    assert (data["current_usage"], data["limit"], data["reset_time"]) == (475, 500, "2024-01-15T10:30:30Z")


def test_a_pool_without_a_limit_is_never_full() -> None:
    assert said(PoolSaid("pool_123", 3, None))["data"] == {
        "pool_id": "pool_123",
        "active_connections": 3,
        "max_connections": None,
        "pool_utilization": 0.0,
    }


def test_who_asks_for_a_status_is_told_it_as_an_event_tells_it() -> None:
    shown = examples.EVENTS["agent_status"]["data"]
    status = {name: value for name, value in shown.items() if name != "agent_id"}
    message = said(StatusSaid("agent_123", status))
    assert (message["type"], message["data"]) == ("agent_status", shown)
    assert said(StatusSaid("agent_123", status | {"agent_id": "another"}))["data"] == shown


def test_a_gap_is_said_to_who_resumes() -> None:
    assert said(GapSaid("ws-456", "7-0", None)) == {
        "type": "resume_gap",
        "timestamp": "2024-01-15T10:30:00Z",
        "data": {"workspace_id": "ws-456", "since": "7-0", "oldest": None},
    }


# -- errors

SUBSCRIBE = Subscribe(Asked())

ERRORS: list[tuple[Reason, Request | None, str, str]] = [
    (INVALID_TOKEN, None, "connection_error", "AUTHENTICATION_FAILED"),
    (TOO_MANY_CONNECTIONS, None, "connection_error", "CONNECTION_LIMIT_EXCEEDED"),
    (FLOOD, None, "connection_error", "RATE_LIMIT_EXCEEDED"),
    (INVALID_MESSAGE, None, "command_error", "INVALID_MESSAGE_FORMAT"),
    (TOO_MANY_MESSAGES, None, "command_error", "RATE_LIMIT_EXCEEDED"),
    (TOO_MANY_MESSAGES, Ping(), "command_error", "RATE_LIMIT_EXCEEDED"),
    (TOO_MANY_MESSAGES, COMMAND, "command_error", "RATE_LIMIT_EXCEEDED"),
    (TOO_MANY_MESSAGES, SUBSCRIBE, "subscription_error", "RATE_LIMIT_EXCEEDED"),
    (TOO_MANY_MESSAGES, Unsubscribe(Asked()), "subscription_error", "RATE_LIMIT_EXCEEDED"),
    (TOO_MANY_EVENT_TYPES, SUBSCRIBE, "subscription_error", "RATE_LIMIT_EXCEEDED"),
    (UNKNOWN_EVENT_TYPE, SUBSCRIBE, "subscription_error", "INVALID_EVENT_TYPE"),
    (FORBIDDEN, SUBSCRIBE, "subscription_error", "PERMISSION_DENIED"),
    (FORBIDDEN, COMMAND, "command_error", "PERMISSION_DENIED"),
    (UNKNOWN_COMMAND, COMMAND, "command_error", "INVALID_COMMAND"),
    (AGENT_UNKNOWN, COMMAND, "command_error", "AGENT_NOT_FOUND"),
    (AGENT_OFFLINE, COMMAND, "command_error", "AGENT_OFFLINE"),
    (COMMAND_TIMEOUT, COMMAND, "command_error", "TIMEOUT"),
    (COMMAND_FAILED._replace(code="CONFIG_REJECTED"), COMMAND, "command_error", "CONFIG_REJECTED"),
    (UNAVAILABLE, COMMAND, "command_error", "UNAVAILABLE"),
]


@pytest.mark.parametrize(("reason", "request_", "kind", "code"), ERRORS)
def test_each_reason_has_its_message_and_code(reason: Reason, request_: Request | None, kind: str, code: str) -> None:
    message = said(Error(reason, reason.text, request_, reference="req_789"))
    shown = {
        "connection_error": examples.CONNECTION_ERROR,
        "command_error": examples.COMMAND_ERROR,
        "subscription_error": examples.SUBSCRIPTION_ERROR,
    }[kind]
    assert (message["type"], message["data"]["error_code"]) == (kind, code)
    assert message["data"].keys() == shown["data"].keys()
    assert message["data"]["error_message"]
    if kind == "connection_error":
        assert message["data"]["close_code"] == reason.close_code
    if kind == "command_error":
        asked = (COMMAND.name, COMMAND.agent) if request_ == COMMAND else (None, None)
        assert (message["data"]["command"], message["data"]["agent_id"]) == asked
        assert message["data"]["request_id"] == "req_789"


@pytest.mark.parametrize("request_", [None, SUBSCRIBE, COMMAND])
@pytest.mark.parametrize("reason", [TOO_MANY_MESSAGES, FLOOD])
def test_when_to_come_back_is_told_in_whole_seconds(reason: Reason, request_: Request | None) -> None:
    for seconds, told in ((12.1, 13), (30, 30), (0.2, 1)):
        assert said(Error(reason, "detail", request_, seconds, "req_1"))["data"]["retry_after"] == told


def test_a_refused_connection_is_told_to_try_again_later() -> None:
    data = said(Error(TOO_MANY_CONNECTIONS, TOO_MANY_CONNECTIONS.text, retry_after=44.5))["data"]
    assert (data["close_code"], data["retry_after"]) == (1013, 45)


def test_the_clients_own_id_of_a_command_comes_back_whatever_it_is() -> None:
    for request_id in ("req_789", "x" * 255, "ü 1/2", "0f" * 32, "req_" + "0f" * 40):
        command = decoded({"type": "command", "data": {"agent_id": "a", "command": "x", "request_id": request_id}})
        assert isinstance(command, Command)
        told = said(Error(UNKNOWN_COMMAND, "detail", command, reference=command.request_id))
        assert told["data"]["request_id"] == request_id


@pytest.mark.parametrize("beside", [True, False], ids=["beside data", "in data"])
@pytest.mark.parametrize(
    "wrong",
    [{"agent_id": 5}, {"agent_id": None}, {"command": ["stop"]}, {"parameters": []}, {"workspace_id": 5}],
    ids=str,
)
def test_a_malformed_command_keeps_its_id(wrong: Message, beside: bool) -> None:
    """And what else of it can be told, so that its sender knows which one failed."""
    asked = {"agent_id": "a", "command": "stop"} | wrong
    error = refused(
        {"type": "command", "request_id": "r-1", "data": asked}
        if beside
        else {"type": "command", "data": asked | {"request_id": "r-1"}}
    )
    assert error.reason is INVALID_MESSAGE
    assert isinstance(error.request, Command)
    assert error.request.request_id == "r-1"
    told = said(Error(error.reason, error.detail, error.request, reference=error.request.request_id))
    assert told["type"] == "command_error"
    assert told["data"]["request_id"] == "r-1"
    for name in ("agent_id", "command"):
        assert told["data"][name] == (asked[name] if isinstance(asked[name], str) else None)


@pytest.mark.parametrize("request_id", [5, None, "", "x" * 256, "a\nb", {"id": 1}], ids=lambda given: str(given)[:9])
def test_what_is_no_id_is_none(request_id: Any) -> None:
    error = refused(_data("command", agent_id=5, request_id=request_id))
    assert isinstance(error.request, Command)
    assert not error.request.request_id


@pytest.mark.parametrize(
    "message",
    [
        _data("subscribe", events=5, request_id="r-1"),
        _data("configure", metrics_interval=1, request_id="r-1"),
        {"type": "subscribe", "request_id": "r-1"},
        {"type": "dance", "request_id": "r-1", "data": {"request_id": "r-1"}},
        {"type": "command", "request_id": "r-1", "data": [{"request_id": "r-1"}]},
        {"data": {"agent_id": "a", "command": "stop", "request_id": "r-1"}},
        [{"type": "command", "data": {"request_id": "r-1"}}],
        '{"type":"command","data":{"request_id":"r-1"}',
    ],
    ids=lambda message: str(message)[:60],
)
def test_what_is_no_command_is_refused_as_none(message: Any) -> None:
    """Its answer carries an id of ours: no command of the client's has failed."""
    error = refused(message)
    assert error.reason is INVALID_MESSAGE
    assert error.request is None


def test_what_looks_like_a_secret_is_not_repeated_in_an_error() -> None:
    for name, agent in ((SECRET, "a"), ("stop", SECRET)):
        for reason in (UNKNOWN_COMMAND, AGENT_UNKNOWN, FORBIDDEN):
            words = say(Error(reason, reason.text, Command(agent, name, {}), reference="req_1"), 0.0)
            assert words is not None
            assert SECRET.encode() not in words


# -- farewells


@pytest.mark.parametrize("reason", [GOING_AWAY, SLOW_CONSUMER, EVENTS_LOST, TOO_MANY_ERRORS, PONG_TIMEOUT])
def test_who_is_sent_away_is_warned_why(reason: Reason) -> None:
    message = said(Farewell(reason))
    assert message["type"] == "disconnect_warning"
    assert message["data"]["close_code"] == reason.close_code
    assert message["data"]["reason"]
    assert message["data"]["recommended_action"]


@pytest.mark.parametrize("reason", [INVALID_TOKEN, TOO_MANY_CONNECTIONS, FLOOD, GOODBYE, IDLE, NOT_TEXT, BUG])
def test_who_was_told_already_or_left_by_itself_is_told_nothing_more(reason: Reason) -> None:
    assert say(Farewell(reason), 0.0) is None


def test_who_holds_a_token_that_expires_is_told_when_and_what_to_do() -> None:
    data = said(Expiring(60.0), "2024-01-15T10:30:00Z")["data"]
    assert data["disconnect_time"] == "2024-01-15T10:31:00Z"
    assert data["close_code"] == 1008
    assert "auth" in data["recommended_action"]
