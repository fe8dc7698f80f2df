"""The FreeAgentics dialect over real sockets: who comes in, what it subscribes to, what it is sent, and coming back.

The examples of the document are in wire/test_freeagentics_examples.py, what a client configures in
test_freeagentics_configure.py, its figures in test_freeagentics_metrics.py, commands in test_freeagentics_commands.py.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from broker import Event
from broker.keyspace import Keyspace

from .freeagentics import QUIET, TYPES, FreeAgentics, FreeStage, free_staged, freeagentics, user
from .rawsocket import raw_client
from .support import Node, maxicore, token
from .wire.helpers import errors, producer, progress, steps

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.freeagentics_fixtures"]

Message = dict[str, Any]
StartNode = Callable[..., Node]


async def ask(client: FreeAgentics, message: Any) -> list[Message]:
    """What came in answer to `message`; nothing, when it succeeded in silence."""
    await client.send(message)
    return await client.synchronise()


def codes(messages: list[Message], kind: str) -> list[str]:
    """The codes of `messages`, which are all of this kind, and complete."""
    assert [message["type"] for message in messages] == [kind] * len(messages), messages
    assert all(message["timestamp"] and message["data"]["error_message"] for message in messages)
    return [message["data"]["error_code"] for message in messages]


# --- Who comes in ---


async def test_the_token_may_stand_in_the_query_or_in_the_authorization_header(quiet_node: Node) -> None:
    async with (
        freeagentics(quiet_node, user()) as one,
        freeagentics(quiet_node, "", additional_headers={"Authorization": f"Bearer {user()}"}) as other,
    ):
        for client in (one, other):
            assert [message["type"] for message in client.greeting] == [
                "connection_established",
                "connection_pool_info",
            ]


async def test_a_connection_has_a_session_of_its_own_and_the_pool_of_its_user(start_node: StartNode) -> None:
    """Over all nodes: another user has another pool."""
    nodes = [start_node(), start_node()]
    whose, another = user(), user()
    async with (
        freeagentics(nodes[0], whose) as first,
        freeagentics(nodes[1], whose) as second,
        freeagentics(nodes[1], another) as third,
    ):
        established = [client.greeting[0]["data"] for client in (first, second, third)]
        pools = [client.greeting[1]["data"] for client in (first, second, third)]
    assert len({data["session_id"] for data in established}) == 3
    assert [pool["active_connections"] for pool in pools] == [1, 2, 1]
    assert [pool["pool_utilization"] for pool in pools] == [0.2, 0.4, 0.2]
    assert {pool["max_connections"] for pool in pools} == {5}
    assert pools[0]["pool_id"] == pools[1]["pool_id"] != pools[2]["pool_id"]


@pytest.mark.parametrize(
    "credentials",
    [lambda: "", lambda: "rubbish", lambda: token(ttl=-60), lambda: token(secret="another-secret-of-32-bytes-or-more")],
    ids=["missing", "rubbish", "expired", "another secret"],
)
async def test_a_bad_token_is_told_and_closed(quiet_node: Node, credentials: Callable[[], str]) -> None:
    async with freeagentics(quiet_node, credentials()) as client:
        assert codes(client.greeting, "connection_error") == ["AUTHENTICATION_FAILED"]
        assert client.greeting[0]["data"]["close_code"] == 1008
        assert (await client.closed())[0] == 1008
        assert len(client.messages) == 1


async def test_a_connection_that_says_nothing_has_a_pong_and_stays_without_subscriptions(free_stage: FreeStage) -> None:
    """Before the first subscribe nothing is delivered."""
    async with free_stage.client() as client:
        await free_stage.publish(*cast(free_stage))
        assert await free_stage.delivered(client) == []
        pong = client.messages[-1]
    assert pong["timestamp"] == pong["data"]["server_time"]
    assert 0 <= pong["data"]["connection_duration"] < 60


@pytest.mark.parametrize("frame", [b"\x00", b'{"type":"ping"}'])
async def test_binary_messages_end_the_connection(free_stage: FreeStage, frame: bytes) -> None:
    async with free_stage.client() as client:
        await client.send(frame)
        assert (await client.closed())[0] == 1003


MALFORMED = [
    "hello",
    "[]",
    "{}",
    '{"type":5}',
    '{"type":"Ping"}',
    '{"type":"subscribe"}',
    '{"type":"subscribe","data":{}}',
    '{"type":"subscribe","data":{"events":[]}}',
    '{"type":"subscribe","data":{"events":"agent_status","agents":5}}',
    '{"type":"subscribe","data":{"events":["agent_status"],"agents":[5]}}',
    '{"type":"subscribe","data":{"events":["agent_status"],"filters":{"severity":5}}}',
    '{"type":"command","data":{"command":"stop"}}',
    '{"type":"command","data":{"agent_id":"agent_123"}}',
    '{"type":"configure","data":{"metrics_interval":249}}',
    '{"type":"configure","data":{"metrics_interval":3600001}}',
    '{"type":"configure","data":{"metrics_interval":"5000"}}',
    '{"type":"configure","data":{"buffer_size":0}}',
    '{"type":"configure","data":{"buffer_size":10001}}',
    '{"type":"configure","data":{"compression":"yes"}}',
]


async def test_a_malformed_message_is_answered_and_the_connection_stays(quiet_node: Node) -> None:
    for message in MALFORMED:
        async with freeagentics(quiet_node, user(scope="events:read commands:send")) as client:
            assert codes(await ask(client, message), "command_error") == ["INVALID_MESSAGE_FORMAT"], message
            assert client.messages[-2]["data"]["request_id"]


# --- Events ---


def event(stage: FreeStage, mark: str, kind: str, agent: str | None = None, **data: Any) -> Event:
    """An event that is known again by its mark."""
    workspace = stage.other if mark.startswith("other") else stage.workspace
    return Event(type=kind, workspace_id=workspace, agent_id=agent, data={"mark": mark} | data)


def marks(messages: list[Message]) -> list[str]:
    """The marks of the events among `messages` that are ours, and not the elected node's."""
    return [message["data"]["mark"] for message in messages if "mark" in message["data"]]


RICH = {"new_status": "active", "note": {"Käse": ["🧀", None, 1.5, True, '"\\\u2028']}, "id": "7", "type": "mine"}


async def test_unknown_fields_travel_along_untouched(free_stage: FreeStage) -> None:
    """The ids of agent and inference stand in `data`, workspace and position on top."""
    moment = "2026-03-27T10:30:45Z"
    async with free_stage.client() as client:
        await client.subscribe(["agent_status", "inference_started"])
        status = Event(type="agent_status", workspace_id=free_stage.workspace, agent_id="a", data=RICH)
        started = Event(
            type="inference_started", workspace_id=free_stage.workspace, agent_id="a", data={"inference_id": "i"}
        )
        status.timestamp = started.timestamp = moment
        positions = await free_stage.publish(status, started)
        messages = [await client.receive(), await client.receive()]
    top = [{"timestamp": moment, "workspace_id": free_stage.workspace, "event_id": position} for position in positions]
    assert messages == [
        {"type": "agent_status", "data": {"agent_id": "a"} | RICH} | top[0],
        {"type": "inference_started", "data": {"agent_id": "a", "inference_id": "i"}} | top[1],
    ]


async def test_a_timestamp_that_no_producer_gave_is_ours_with_milliseconds(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.subscribe(["maintenance_mode"])
        await free_stage.publish(event(free_stage, "now", "maintenance_mode"))
        assert "." in (await client.receive())["timestamp"]


async def test_every_type_of_the_reference_is_delivered(free_stage: FreeStage) -> None:
    """Those without an example in the document too."""
    needed: dict[str, Message] = {
        "agent_status": {"new_status": "idle"},
        "inference_progress": {"progress": 0.5},
        "performance_alert": {"alert_id": "1", "severity": "warning", "message": "m"},
        "system_alert": {"alert_id": "1", "severity": "warning", "message": "m"},
        "system_status": {"new_status": "healthy"},
        "entity_created": {"entity_id": "1"},
        "relationship_created": {"relationship_id": "1"},
    }
    async with free_stage.client() as client:
        await client.subscribe(TYPES)
        for kind in TYPES:
            whose = "a" if kind.startswith(("agent", "inference")) else None
            ids = {"inference_id": "i"} if kind.startswith("inference") else {}
            await free_stage.publish(event(free_stage, kind, kind, whose, **ids, **needed.get(kind, {})))
        assert marks(await free_stage.delivered(client)) == TYPES


async def test_no_dialect_shows_the_events_of_another(free_stage: FreeStage) -> None:
    """The same producer, the same workspace, the same agent; a workflow's events are for neither."""
    everything = [kind for kind in TYPES if kind != "metrics_update"]
    workflow = Event(
        type="llm_start", workspace_id=free_stage.workspace, agent_id="agent-123", data={"execution_id": "run-1"}
    )
    async with free_stage.client() as free, maxicore(free_stage.node, user(free_stage.workspace)) as maxi:
        await free.subscribe(everything)
        await maxi.subscribe()
        await maxi.synchronise()
        await free_stage.broker.publish(progress(free_stage.workspace, 1))
        await free_stage.broker.publish(workflow)
        await free_stage.publish(event(free_stage, "status", "agent_status", "agent-123", new_status="idle"))
        await free_stage.broker.publish(progress(free_stage.workspace, 2))
        while (await maxi.receive()).get("step") != 2:
            pass
        assert marks(await free_stage.delivered(free)) == ["status"]
        assert [message["type"] for message in maxi.messages if message["type"] != "pong"] == ["task.progress"] * 2
        assert {message["type"] for message in free.messages} == {
            "connection_established", "connection_pool_info", "subscription_confirmed", "agent_status", "pong",
        }  # fmt: skip


async def test_the_types_of_another_dialect_can_be_asked_for_by_nobody(free_stage: FreeStage) -> None:
    async with free_stage.client() as free, maxicore(free_stage.node, user(free_stage.workspace)) as maxi:
        for kind in ("task.progress", "agent.online", "llm_start"):
            answer = await ask(free, {"type": "subscribe", "data": {"events": [kind]}})
            assert codes(answer, "subscription_error") == ["INVALID_EVENT_TYPE"]
        await maxi.subscribe(event_types=["agent_status"])
        assert errors(await maxi.synchronise()) == ["INVALID_MESSAGE"]


async def test_another_workspace_is_not_seen_by_whatever_subscription(free_stage: FreeStage) -> None:
    subscriptions: list[Message] = [
        {"events": TYPES},
        {"events": TYPES, "agents": ["a", "b"]},
        {"events": TYPES, "filters": {"severity": ["warning", "error"], "components": ["database"]}},
        {"events": TYPES, "since": "0-0"},
        {"events": TYPES, "since": "1-0"},
    ]
    await free_stage.publish(*cast(free_stage))
    await free_stage.settle()
    for subscription in subscriptions:
        async with free_stage.client(f"{free_stage.workspace}-c") as stranger:
            await stranger.subscribe(**subscription)
            await free_stage.publish(*cast(free_stage))
            assert marks(await free_stage.delivered(stranger)) == []
        text = json.dumps(stranger.messages)
        assert f'"{free_stage.workspace}"' not in text
        assert f'"{free_stage.other}"' not in text


async def test_positions_in_a_workspace_that_the_token_does_not_name_are_refused(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        request = {"events": ["agent_status"], "since": {free_stage.other: "0-0"}}
        assert codes(await ask(client, {"type": "subscribe", "data": request}), "subscription_error") == [
            "PERMISSION_DENIED"
        ]
        assert (await client.subscribe(["agent_deleted"]))["data"]["events"] == ["agent_deleted"]


@pytest.mark.parametrize("kept", ["{}", "{}-c"], ids=["nothing new is left", "something new is left"])
async def test_a_token_that_is_renewed_while_a_subscription_is_on_its_way_bounds_what_is_delivered(
    start_node: StartNode, kept: str
) -> None:
    """What the new one does not name is not delivered, though it was asked for before."""
    node = start_node(**QUIET, max_user_messages_per_minute=-1)
    async with free_staged(node) as stage:
        # Nobody watches the third workspace yet: to subscribe takes a moment.
        before = token(*stage.workspaces, f"{stage.workspace}-c")
        renewal = {"type": "auth", "data": {"token": token(stage.workspace, kept.format(stage.workspace))}}
        async with raw_client(node, before) as client:
            await client.send({"type": "subscribe", "data": {"events": ["agent_status"]}}, renewal, {"type": "ping"})
            await client.until("pong")
            await stage.publish(*cast(stage)[::-1])
            await stage.settle()
            assert (await client.until("agent_status")).message["data"]["mark"] == "status b"


async def test_a_token_without_the_scope_to_read_subscribes_to_nothing(free_stage: FreeStage) -> None:
    async with freeagentics(free_stage.node, user(free_stage.workspace, scope="commands:send")) as client:
        answer = await ask(client, {"type": "subscribe", "data": {"events": ["agent_status"]}})
        assert codes(answer, "subscription_error") == ["PERMISSION_DENIED"]
        await free_stage.publish(*cast(free_stage))
        assert await free_stage.delivered(client) == []


# --- Subscriptions ---


def cast(stage: FreeStage) -> list[Event]:
    """Events that differ in type, agent, severity, components and workspace; their marks say how."""

    def alert(mark: str, severity: str, *components: str, kind: str = "system_alert") -> Event:
        given: Message = {"affected_components": list(components)} if components else {}
        return event(stage, mark, kind, alert_id=mark, severity=severity, message=mark, **given)

    return [
        event(stage, "status a", "agent_status", "a", new_status="idle"),
        event(stage, "status b", "agent_status", "b", new_status="idle"),
        event(stage, "done a", "inference_completed", "a", inference_id="1"),
        event(stage, "done b", "inference_completed", "b", inference_id="2"),
        alert("warning engine", "warning", "engine"),
        alert("error database", "error", "database", "graph"),
        alert("info nothing", "info"),
        alert("performance", "warning", "engine", kind="performance_alert"),
        event(stage, "state", "system_status", new_status="degraded", components={"database": "ok", "redis": "ok"}),
        event(stage, "entity", "entity_created", entity_id="1"),
        event(stage, "entity of a", "entity_created", "a", entity_id="2"),
        event(stage, "metrics", "metrics_update", system={"cpu_usage": 1.0}),
        event(stage, "other status a", "agent_status", "a", new_status="idle"),
    ]


ALERTS = ["warning engine", "error database", "info nothing"]
SUBSCRIBE, UNSUBSCRIBE = "subscribe", "unsubscribe"

# What a client asks one after the other, and what of the cast it is sent then.
SUBSCRIPTIONS: dict[str, tuple[list[tuple[str, Message]], list[str]]] = {
    "one type": ([(SUBSCRIBE, {"events": ["agent_status"]})], ["status a", "status b", "other status a"]),
    "its plural": ([(SUBSCRIBE, {"events": ["agent_statuses"]})], ["status a", "status b", "other status a"]),
    "metrics": ([(SUBSCRIBE, {"events": ["metrics"]})], ["metrics"]),
    "metrics_update": ([(SUBSCRIBE, {"events": ["metrics_update"]})], ["metrics"]),
    "metrics_updates": ([(SUBSCRIBE, {"events": ["metrics_updates"]})], ["metrics"]),
    "system_alerts": ([(SUBSCRIBE, {"events": ["system_alerts"]})], ALERTS),
    "system_alert": ([(SUBSCRIBE, {"events": ["system_alert"]})], ALERTS),
    "a type twice": (
        [(SUBSCRIBE, {"events": ["system_alert", "system_alerts"]}), (SUBSCRIBE, {"events": ["system_alert"]})],
        ALERTS,
    ),
    "no agents are all": (
        [(SUBSCRIBE, {"events": ["inference_completed"], "agents": []})],
        ["done a", "done b"],
    ),
    "one agent": (
        [(SUBSCRIBE, {"events": ["agent_status", "inference_completed"], "agents": ["a"]})],
        ["status a", "done a", "other status a"],
    ),
    "an agent nobody knows": ([(SUBSCRIBE, {"events": ["agent_status"], "agents": ["nobody"]})], []),
    "agents narrow only what has one": (
        [(SUBSCRIBE, {"events": ["agent_status", "system_alerts", "entity_created", "metrics"], "agents": ["b"]})],
        ["status b", *ALERTS, "entity", "metrics"],
    ),
    "an entity may have an agent": (
        [(SUBSCRIBE, {"events": ["entity_created"], "agents": ["a"]})],
        ["entity", "entity of a"],
    ),
    "severity": (
        [(SUBSCRIBE, {"events": ["system_alerts", "performance_alert"], "filters": {"severity": ["warning"]}})],
        ["warning engine", "performance"],
    ),
    "severities narrow only what has one": (
        [(SUBSCRIBE, {"events": ["agent_status", "system_status"], "filters": {"severity": ["error"]}})],
        ["status a", "status b", "state", "other status a"],
    ),
    "components by list": (
        [
            (
                SUBSCRIBE,
                {"events": ["system_alert", "performance_alert"], "filters": {"components": ["graph", "engine"]}},
            )
        ],
        ["warning engine", "error database", "info nothing", "performance"],
    ),
    "components by the keys of an object": (
        [(SUBSCRIBE, {"events": ["system_status"], "filters": {"components": ["redis"]}})],
        ["state"],
    ),
    "components that an event is not about": (
        [(SUBSCRIBE, {"events": ["system_status", "agent_status"], "filters": {"components": ["engine"]}})],
        ["status a", "status b", "other status a"],
    ),
    "all filters hold": (
        [
            (
                SUBSCRIBE,
                {
                    "events": ["agent_status", "system_alert"],
                    "agents": ["a"],
                    "filters": {"severity": ["warning", "error"], "components": ["database"]},
                },
            )
        ],
        ["status a", "error database", "other status a"],
    ),
    "subscriptions add up": (
        [
            (SUBSCRIBE, {"events": ["agent_status"], "agents": ["a"]}),
            (SUBSCRIBE, {"events": ["inference_completed"], "agents": ["b"]}),
            (SUBSCRIBE, {"events": ["system_alert"], "filters": {"severity": ["error"]}}),
            (SUBSCRIBE, {"events": ["system_alert"], "filters": {"severity": ["info"]}}),
        ],
        ["status a", "done b", "error database", "info nothing", "other status a"],
    ),
    "agents add up under their type": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "inference_completed"], "agents": ["a"]}),
            (SUBSCRIBE, {"events": ["agent_status"], "agents": ["b"]}),
        ],
        ["status a", "status b", "done a", "other status a"],
    ),
    "all agents after one": (
        [
            (SUBSCRIBE, {"events": ["agent_status"], "agents": ["a"]}),
            (SUBSCRIBE, {"events": ["agent_status"]}),
        ],
        ["status a", "status b", "other status a"],
    ),
    "an event leaves": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "inference_completed", "metrics"], "agents": ["a"]}),
            (UNSUBSCRIBE, {"events": ["agent_status", "metrics_update"]}),
        ],
        ["done a"],
    ),
    "an event leaves for one agent": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "inference_completed"], "agents": ["a", "b"]}),
            (UNSUBSCRIBE, {"events": ["agent_status"], "agents": ["a"]}),
        ],
        ["status b", "done a", "done b"],
    ),
    "an agent leaves": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "inference_completed"], "agents": ["a", "b"]}),
            (UNSUBSCRIBE, {"agents": ["b"]}),
        ],
        ["status a", "done a", "other status a"],
    ),
    "an agent leaves from all agents": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "inference_completed"]}),
            (UNSUBSCRIBE, {"events": ["agent_status"], "agents": ["a"]}),
        ],
        ["status b", "done a", "done b"],
    ),
    "an agent leaves from all agents and comes back": (
        [
            (SUBSCRIBE, {"events": ["agent_status"]}),
            (UNSUBSCRIBE, {"events": ["agent_status"], "agents": ["a", "b"]}),
            (SUBSCRIBE, {"events": ["agent_status"], "agents": ["b"]}),
        ],
        ["status b"],
    ),
    "the last agent of an event leaves": (
        [
            (SUBSCRIBE, {"events": ["agent_status"], "agents": ["a"]}),
            (UNSUBSCRIBE, {"events": ["agent_status"], "agents": ["a"]}),
        ],
        [],
    ),
    "what was not subscribed leaves": (
        [
            (SUBSCRIBE, {"events": ["inference_completed"]}),
            (UNSUBSCRIBE, {"events": ["agent_status"]}),
            (UNSUBSCRIBE, {"events": ["inference_completed"], "agents": ["c"]}),
        ],
        ["done a", "done b"],
    ),
    "every event leaves": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "system_alerts"]}),
            (UNSUBSCRIBE, {"events": ["agent_status", "system_alerts"]}),
        ],
        [],
    ),
    "everything leaves and something comes back": (
        [
            (SUBSCRIBE, {"events": ["agent_status", "system_alerts"]}),
            (UNSUBSCRIBE, {"events": ["agent_status", "system_alerts"]}),
            (SUBSCRIBE, {"events": ["inference_completed"]}),
        ],
        ["done a", "done b"],
    ),
}


@pytest.mark.parametrize(("requests", "expected"), SUBSCRIPTIONS.values(), ids=SUBSCRIPTIONS)
async def test_a_client_is_sent_what_it_subscribes_to(
    free_stage: FreeStage, requests: list[tuple[str, Message]], expected: list[str]
) -> None:
    async with free_stage.client(*free_stage.workspaces) as client:
        for kind, data in requests:
            await client.confirmed({"type": kind, "data": data})
        await free_stage.publish(*cast(free_stage))
        seen = marks(await free_stage.delivered(client))
    assert sorted(seen, key=[*expected, *seen].index) == expected


async def test_a_confirmation_has_the_clients_own_words_for_all_that_is_active(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        first = await client.subscribe(["metrics", "system_alerts", "agent_status"], ["b", "a"])
        second = await client.subscribe(["inference_completed", "metrics_update"], ["c"])
        third = await client.unsubscribe(events=["metrics"])
        fourth = await client.subscribe(["agent_created"])
    assert first["data"] == {
        "events": ["metrics", "system_alerts", "agent_status"],
        "agents": ["b", "a"],
        "status": "active",
    }
    assert second["data"]["events"] in (
        ["metrics", "system_alerts", "agent_status", "inference_completed"],
        ["metrics_update", "system_alerts", "agent_status", "inference_completed"],
    )
    assert second["data"]["agents"] == ["b", "a", "c"]
    assert third["data"] == {
        "events": ["system_alerts", "agent_status", "inference_completed"],
        "agents": ["b", "a", "c"],
        "status": "active",
    }
    assert fourth["data"]["agents"] == []  # all: where one event is for all agents, no list names them


@pytest.mark.parametrize(
    "request_",
    [
        {"type": "unsubscribe", "data": {"events": ["agent_status", "metrics", "system_alert"]}},
        {"type": "unsubscribe", "data": {}},
        {"type": "unsubscribe"},
    ],
    ids=["all by name", "nothing named", "no data"],
)
async def test_who_unsubscribes_from_everything_is_inactive(free_stage: FreeStage, request_: Message) -> None:
    async with free_stage.client() as client:
        await client.subscribe(["agent_status", "metrics", "system_alerts"], ["a"])
        assert (await client.confirmed(request_))["data"] == {"events": [], "agents": [], "status": "inactive"}
        await free_stage.publish(*cast(free_stage))
        assert await free_stage.delivered(client) == []


async def test_an_unknown_event_changes_nothing(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        await client.subscribe(["agent_status"], ["a"])
        for kind in (SUBSCRIBE, UNSUBSCRIBE):
            request = {"type": kind, "data": {"events": ["agent_status", "inference_completed", "invalid_event"]}}
            [answer] = await ask(client, request)
            assert codes([answer], "subscription_error") == ["INVALID_EVENT_TYPE"]
            assert answer["data"]["error_message"] == "Event type 'invalid_event' is not supported"
        await free_stage.publish(*cast(free_stage))
        assert marks(await free_stage.delivered(client)) == ["status a"]
        confirmed = await client.subscribe(["agent_deleted"], ["a"])
        assert confirmed["data"]["events"] == ["agent_status", "agent_deleted"]


async def test_everything_that_is_said_to_be_supported_can_be_subscribed_to(free_stage: FreeStage) -> None:
    """The types of the connection itself too, which come without it."""
    async with free_stage.client() as client:
        [answer] = await ask(client, {"type": "subscribe", "data": {"events": ["invalid_event"]}})
        supported = answer["data"]["supported_events"]
        for some in (supported[:15], supported[15:]):
            assert (await client.subscribe(some))["data"]["events"] == some
            assert (await client.unsubscribe())["data"]["status"] == "inactive"
    assert len(supported) == len(set(supported)) >= 25
    assert set(supported) >= {*TYPES, "subscription_confirmed", "rate_limit_warning"}


# --- Coming back ---


def numbered(workspace: str, number: int, agent: str | None = None) -> Event:
    """An event that is known again by its number: the count of an agent's inferences, every other one another's."""
    data = {"new_status": "active", "inference_count": number}
    return Event(type="agent_status", workspace_id=workspace, agent_id=agent or f"agent-{number % 2}", data=data)


def numbers(messages: list[Message]) -> list[int]:
    return [message["data"]["inference_count"] for message in messages if message["type"] == "agent_status"]


async def receive_numbers(client: FreeAgentics, count: int) -> list[int]:
    """The numbers of the next `count` events; other messages between them are let by."""
    return numbers([await client.until("agent_status") for _ in range(count)])


def assert_gap(messages: list[Message], workspace: str, since: str, oldest: str) -> None:
    """`messages` is this gap notice and nothing else."""
    [gap] = messages
    assert gap["type"] == "resume_gap"
    assert gap["timestamp"]
    assert gap["data"].items() >= {"workspace_id": workspace, "since": since, "oldest": oldest}.items()


async def test_since_brings_what_was_missed_across_nodes_complete_once_and_in_order(start_node: StartNode) -> None:
    """Events go on while the client is away, while it comes back to the other node, and after that."""
    first, second = start_node(**QUIET), start_node(**QUIET)
    async with producer(first) as broker:

        async def publish(start: int, end: int) -> None:
            for number in range(start, end):
                await broker.publish(numbered("ws-456", number))

        async with freeagentics(first) as client:
            await client.subscribe(["agent_status"], ["agent-0"])
            await publish(0, 10)
            assert await receive_numbers(client, 5) == [0, 2, 4, 6, 8]
            since = client.messages[-1]["event_id"]
        await publish(10, 300)
        async with freeagentics(second) as client:
            publishing = asyncio.create_task(publish(300, 600))
            confirmed = await client.subscribe(["agent_status"], ["agent-0"], since=since)
            assert confirmed["data"] == {"events": ["agent_status"], "agents": ["agent-0"], "status": "active"}
            assert await receive_numbers(client, 295) == list(range(10, 600, 2))
            await publishing
            assert await client.synchronise() == []


async def test_pong_and_confirmation_carry_a_position_to_resume_from(free_stage: FreeStage) -> None:
    """Nothing before it is sent again, nothing after it is left out, whatever the subscription had of it."""
    workspace = free_stage.workspace
    [first] = await free_stage.publish(numbered(workspace, 0))
    await free_stage.settle()
    async with free_stage.client() as client:
        confirmed = await client.subscribe(["agent_status"], ["agent-1"])
        assert confirmed["event_id"] == first
        [*_, newest] = await free_stage.publish(*(numbered(workspace, number) for number in range(1, 5)))
        assert numbers(await free_stage.delivered(client)) == [1, 3]
        assert client.messages[-1]["event_id"] == newest
    await free_stage.publish(*(numbered(workspace, number) for number in range(5, 8)))
    await free_stage.settle()
    for since, missed in ((first, [1, 2, 3, 4, 5, 6, 7]), (newest, [5, 6, 7])):
        async with free_stage.client() as client:
            await client.subscribe(["agent_status"], since=since)
            assert numbers(await client.synchronise()) == missed


async def test_since_the_newest_position_brings_nothing_old(free_stage: FreeStage) -> None:
    workspace = free_stage.workspace
    [*_, newest] = await free_stage.publish(numbered(workspace, 1), numbered(workspace, 2))
    await free_stage.settle()
    async with free_stage.client() as client:
        await client.subscribe(["agent_status"], since=newest)
        assert await client.synchronise() == []
        await free_stage.publish(numbered(workspace, 3))
        assert await receive_numbers(client, 1) == [3]


async def test_a_replay_obeys_agents_and_filters_and_leaves_out_what_was_delivered(free_stage: FreeStage) -> None:
    async with free_stage.client() as client:
        start = (await client.subscribe(["agent_status"], ["a"]))["event_id"]
        await free_stage.publish(*cast(free_stage))
        assert marks(await free_stage.delivered(client)) == ["status a"]
        await client.subscribe(["agent_status", "system_alert"], filters={"severity": ["error"]}, since=start)
        assert marks(await client.synchronise()) == ["status b", "error database"]
        await client.subscribe(["agent_status", "system_alert"], filters={"severity": ["error"]}, since=start)
        assert marks(await client.synchronise()) == []
        await client.unsubscribe(events=["agent_status"])
        await client.subscribe(["agent_status"], ["b"], since=start)
        assert marks(await client.synchronise()) == ["status b"]


@pytest.mark.parametrize("since", ["1-0", "99999999999999-0", "yesterday", ""])
async def test_a_position_that_is_not_in_the_log_is_a_gap_and_then_live(free_stage: FreeStage, since: str) -> None:
    workspace = free_stage.workspace
    oldest, *_ = await free_stage.publish(numbered(workspace, 1), numbered(workspace, 2))
    await free_stage.settle()
    async with free_stage.client() as client:
        await client.subscribe(["agent_status"], since=since)
        assert_gap(await client.synchronise(), workspace, since, oldest)
        await free_stage.publish(numbered(workspace, 3))
        assert await receive_numbers(client, 1) == [3]


async def test_what_the_log_let_go_is_a_gap_unless_nothing_of_it_was_asked_for(free_stage: FreeStage) -> None:
    workspace = free_stage.workspace
    [quiet] = await free_stage.publish(numbered(workspace, 1, "quiet"))
    busy = await free_stage.publish(*(numbered(workspace, number, "busy") for number in range(2, 6)))
    await free_stage.settle()
    async with redis.asyncio.from_url(free_stage.node.redis_url) as plain:
        await plain.xtrim(Keyspace(free_stage.node.prefix).log(workspace), minid=busy[1], approximate=False)
    async with free_stage.client() as client:
        await client.subscribe(["agent_status"], ["quiet"], since=quiet)
        assert await client.synchronise() == []
        await client.subscribe(["agent_status"], ["busy"], since=quiet)
        assert_gap(await client.synchronise(), workspace, quiet, busy[1])
    async with free_stage.client() as client:
        await client.subscribe(["agent_status"], since=busy[1])
        assert numbers(await client.synchronise()) == [4, 5]


async def test_a_client_of_several_workspaces_has_a_position_in_each(free_stage: FreeStage) -> None:
    here, there = free_stage.workspaces
    async with free_stage.client(here, there) as client:
        await client.subscribe(["agent_status"])
        positions = await free_stage.publish(numbered(here, 1), numbered(there, 2))
        assert sorted(numbers(await free_stage.delivered(client))) == [1, 2]
        since = client.messages[-1]["event_id"]
        assert since == dict(zip((here, there), positions, strict=True))
    await free_stage.publish(numbered(here, 3), numbered(there, 4), numbered(here, 5))
    await free_stage.settle()
    async with free_stage.client(here, there) as client:
        await client.subscribe(["agent_status"], since=since)
        messages = await client.synchronise()
        assert numbers([message for message in messages if message["workspace_id"] == here]) == [3, 5]
        assert numbers([message for message in messages if message["workspace_id"] == there]) == [4]
    async with free_stage.client(here, there) as client:
        request = {"type": "subscribe", "data": {"events": ["agent_status"], "since": "1-0"}}
        assert len(await ask(client, request)) == 1  # which of the two?
        await client.subscribe(["agent_status"], since={here: "1-0", there: positions[1]})
        messages = await client.synchronise()
        gaps = [message for message in messages if message["type"] == "resume_gap"]
        assert_gap(gaps, here, "1-0", positions[0])
        assert numbers(messages) == [4]


async def test_one_client_in_each_dialect_comes_back_to_the_same_log(free_stage: FreeStage) -> None:
    """Positions are the workspace's: what one dialect cannot say is no gap in it."""
    [start] = await free_stage.publish(numbered(free_stage.workspace, 1))
    await free_stage.broker.publish(progress(free_stage.workspace, 2))
    await free_stage.publish(numbered(free_stage.workspace, 3))
    await free_stage.settle()
    async with free_stage.client() as free, maxicore(free_stage.node, user(free_stage.workspace)) as maxi:
        await free.subscribe(["agent_status"], since=start)
        await maxi.subscribe(since=start)
        assert numbers(await free.synchronise()) == [3]
        assert steps(await maxi.synchronise()) == [2]


# --- Leaving ---


async def test_a_drain_is_told_before_the_close(start_node: StartNode) -> None:
    node = start_node(drain_seconds=0)
    async with free_staged(node) as stage, stage.client() as client:
        node.signal(15)
        warning = await client.until("disconnect_warning")
        assert warning["timestamp"]
        assert warning["data"]["close_code"] == 1012
        assert (await client.closed())[0] == 1012
