"""The MaxiCore relay over real sockets: every promise of its document and of our reading of it.

The examples of the document are in wire/test_maxicore_examples.py, its flows in wire/test_maxicore_client.py.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
import redis.asyncio
import websockets
from websockets.asyncio.client import connect

from broker import Event
from broker.keyspace import Keyspace

from .support import SECRET, Client, Node, http, maxicore, token, until
from .wire.helpers import Deaf, Stage, ask, errors, producer, progress, receive_steps, staged, steps

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

Message = dict[str, Any]
StartNode = Callable[..., Node]


async def refused(client: Client, code: str = "INVALID_TOKEN") -> None:
    """From now on the client is told `code`, nothing else, and closed with 1008."""
    before = len(client.messages)
    close_code, _ = await client.closed()
    told = client.messages[before:]
    assert [message["type"] for message in told] == ["error"]
    assert (errors(told), close_code) == ([code], 1008)


# --- Credentials ---


@pytest.mark.parametrize("form", ["{}", "Bearer%20{}", "Bearer+{}"])
async def test_the_token_may_stand_in_the_query(shared_node: Node, form: str) -> None:
    async with maxicore(shared_node, form.format(token())) as client:
        assert await ask(client, {"type": "subscribe"}) == []


async def test_the_token_may_stand_in_the_authorization_header(shared_node: Node) -> None:
    async with maxicore(shared_node, "", additional_headers={"Authorization": f"Bearer {token()}"}) as client:
        assert await ask(client, {"type": "subscribe"}) == []


async def test_the_token_may_be_the_first_message_and_that_is_silent(shared_node: Node) -> None:
    async with maxicore(shared_node, "") as client:
        assert await ask(client, {"type": "auth", "token": f"Bearer {token()}"}) == []
        assert await ask(client, {"type": "subscribe"}) == []


def unsigned(claims: Message) -> str:
    return jwt.encode(claims, "", "none")


def claims(**changes: Any) -> Message:
    """The claims of a good token, changed; None takes a claim away."""
    good = jwt.decode(token(), SECRET, ["HS256"])
    return {name: value for name, value in (good | changes).items() if value is not None}


BAD_TOKENS = {
    "no token at all": lambda: "rubbish",
    "three parts of nothing": lambda: "a.b.c",
    "another secret": lambda: token(secret="another-secret-of-at-least-32-bytes!"),
    "expired": lambda: token(ttl=-3600),
    "without expiry": lambda: jwt.encode(claims(exp=None), SECRET, "HS256"),
    "an expiry that is no number": lambda: jwt.encode(claims(exp="soon"), SECRET, "HS256"),
    "not valid yet": lambda: token(nbf=2**32),
    "an algorithm that is not configured": lambda: jwt.encode(claims(), SECRET + SECRET, "HS512"),
    "unsigned": lambda: unsigned(claims()),
    "signature cut off": lambda: token().rpartition(".")[0] + ".",
    "claims of another token": lambda: ".".join(
        [token().split(".")[0], token("ws-1").split(".")[1], token().split(".")[2]]
    ),
}


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_a_bad_token_is_told_and_closed(shared_node: Node, bad: Callable[[], str]) -> None:
    async with maxicore(shared_node, bad()) as client:
        await refused(client)
    async with maxicore(shared_node, "") as client:
        await client.send({"type": "auth", "token": f"Bearer {bad()}"})
        await refused(client)


async def test_a_bad_token_in_the_header_is_told_and_closed(shared_node: Node) -> None:
    for value in ("Bearer rubbish", f"Basic {token()}"):
        async with maxicore(shared_node, "", additional_headers={"Authorization": value}) as client:
            await refused(client)


@pytest.mark.parametrize(
    "first",
    ['{"type":"subscribe"}', '{"type":"ping"}', '{"type":"auth"}', '{"type":"auth","token":5}', "{}", "[]", "hello"],
)
async def test_any_other_first_message_is_an_invalid_token(shared_node: Node, first: str) -> None:
    async with maxicore(shared_node, "") as client:
        await client.send(first)
        await refused(client)


async def test_who_does_not_authenticate_in_time_is_refused(start_node: StartNode) -> None:
    async with maxicore(start_node(auth_seconds=0.5), "") as client:
        await client.socket.ping()
        await refused(client)


async def test_a_token_may_be_renewed_before_it_expires(shared_node: Node) -> None:
    """Three connections live on the same short token; the one that renews it outlives the others."""
    short = token(ttl=2)
    async with (
        staged(shared_node) as stage,
        maxicore(shared_node, short) as expires,
        maxicore(shared_node, "") as expires_too,
        maxicore(shared_node, short) as renewed,
    ):
        assert await ask(expires_too, {"type": "auth", "token": f"Bearer {short}"}) == []
        assert await ask(renewed, {"type": "auth", "token": f"Bearer {token(stage.workspace)}"}) == []
        await renewed.subscribe(workspace_id=stage.workspace)
        await refused(expires)
        await refused(expires_too)
        assert await renewed.synchronise() == []
        await stage.publish(progress(stage.workspace, 1))
        assert (await renewed.receive())["step"] == 1


async def test_a_bad_renewal_ends_the_connection(stage: Stage) -> None:
    async with stage.client() as client:
        assert await ask(client, {"type": "subscribe"}) == []
        await client.send({"type": "auth", "token": f"Bearer {token(ttl=-3600)}"})
        await refused(client)


# --- Events and their envelope ---

RICH = {"step": 3, "total_steps": 10, "note": {"Käse": ["🧀", None, 1.5, True, '"\\\u2028']}, "agent": "x", "id": "7"}
FLAT, NESTED = RICH, {"data": RICH}


@pytest.mark.parametrize(
    ("query", "shape"),
    [("", FLAT | NESTED), ("envelope=flat", FLAT), ("envelope=nested", NESTED)],
    ids=["default", "flat", "nested"],
)
async def test_an_event_has_the_shape_its_client_asks_for(stage: Stage, query: str, shape: Message) -> None:
    """Fields that the catalog does not know travel along untouched."""
    event = Event(
        type="task.progress", workspace_id=stage.workspace, agent_id="agent-123", data={"task_id": "t-1"} | RICH
    )
    event.timestamp = "2026-03-27T10:30:45Z"
    async with stage.client(query=query) as client:
        await client.subscribe()
        await client.synchronise()
        [position] = await stage.publish(event)
        message = await client.receive()
    assert message == shape | {
        "type": "task.progress",
        "timestamp": "2026-03-27T10:30:45Z",
        "workspace_id": stage.workspace,
        "agent_id": "agent-123",
        "task_id": "t-1",
        "event_id": position,
    }


async def test_an_event_without_agent_or_task_has_no_such_field(stage: Stage) -> None:
    async with stage.client() as client:
        await client.subscribe()
        await client.synchronise()
        await stage.publish(progress(stage.workspace, agent=None))
        await stage.publish(Event(type="agent.online", workspace_id=stage.workspace, agent_id="agent-123"))
        without_agent, without_task = await client.receive(), await client.receive()
    assert "agent_id" not in without_agent
    assert "task_id" not in without_task


async def test_events_of_other_dialects_are_not_delivered(stage: Stage) -> None:
    foreign = [
        Event(type="agent_status", workspace_id=stage.workspace, agent_id="agent-123", data={"new_status": "idle"}),
        Event(type="metrics_update", workspace_id=stage.workspace, data={"system": {"cpu_usage": 1.0}}),
        Event(type="llm_start", workspace_id=stage.workspace, agent_id="shop", data={"execution_id": "run-1"}),
    ]
    async with stage.client() as client:
        await client.subscribe()
        await client.synchronise()
        for event in foreign:
            await stage.broker.publish(event)
        await stage.publish(progress(stage.workspace, 1))
        assert steps(await stage.delivered(client)) == [1]
        assert [message["type"] for message in client.messages if message["type"] != "pong"] == ["task.progress"]


async def test_an_ephemeral_event_is_live_only(stage: Stage) -> None:
    async with stage.client() as client:
        await client.subscribe()
        await client.synchronise()
        [position] = await stage.publish(progress(stage.workspace, 1))
        assert await stage.broker.publish(progress(stage.workspace, 2, ephemeral=True)) is None
        await stage.publish(progress(stage.workspace, 3))
        messages = [await client.receive() for _ in range(3)]
    assert steps(messages) == [1, 2, 3]
    assert ["event_id" in message for message in messages] == [True, False, True]
    async with stage.client() as client:
        await client.subscribe(since=position)
        assert steps(await client.synchronise()) == [3]


@pytest.mark.parametrize("agent", [None, "agent-123"], ids=["workspace", "agent"])
async def test_a_plain_publish_reaches_who_watches_that_channel_without_a_position(
    shared_node: Node, agent: str | None
) -> None:
    """What is left out of the event is what its channel says."""
    event = {"type": "task.progress", "agent_id": "agent-123", "data": {"task_id": "task-456", "step": 1}}
    workspace = f"ws-plain-{agent}"
    async with (
        redis.asyncio.from_url(shared_node.redis_url) as plain,
        maxicore(shared_node, token(workspace)) as client,
    ):
        await client.subscribe(**({"agent_id": agent} if agent else {}))
        await client.synchronise()
        await plain.publish(Keyspace(shared_node.prefix).channel(workspace, agent), json.dumps(event))
        message = await client.receive()
    assert message.pop("timestamp")
    data = {"step": 1}
    assert (
        message
        == {
            "type": "task.progress",
            "workspace_id": workspace,
            "agent_id": "agent-123",
            "task_id": "task-456",
            "data": data,
        }
        | data
    )


async def test_what_is_wrong_on_a_channel_is_dropped_and_nothing_else(stage: Stage) -> None:
    channel = Keyspace(stage.node.prefix).channel(stage.workspace)
    async with redis.asyncio.from_url(stage.node.redis_url) as plain, stage.client() as client:
        await client.subscribe()
        await client.synchronise()
        for message in (
            b"",
            b"nonsense",
            b"[]",
            b'{"type":"task.progress"}',
            b'{"type":"x","data":{}}',
            b"\xff",
            b"[" * 99999,
        ):
            await plain.publish(channel, message)
        await stage.publish(progress(stage.workspace, 1))
        assert await receive_steps(client, 1) == [1]


async def test_a_made_up_position_on_a_channel_hides_no_event(stage: Stage) -> None:
    made_up = {"id": "99999999999999-0", "prev": "99999999999998-0", "type": "task.progress", "agent_id": "agent-123"}
    made_up |= {"workspace_id": stage.workspace, "task_id": "task-456", "timestamp": "2026-03-27T10:30:45Z"}
    async with redis.asyncio.from_url(stage.node.redis_url) as plain, stage.client() as client:
        await client.subscribe()
        await client.synchronise()
        await plain.publish(
            Keyspace(stage.node.prefix).channel(stage.workspace), json.dumps(made_up | {"data": {"step": 0}})
        )
        await stage.publish(progress(stage.workspace, 1), progress(stage.workspace, 2))
        assert [step for step in steps(await stage.delivered(client)) if step] == [1, 2]


# --- Subscribe ---


def cast(stage: Stage) -> list[Event]:
    """Events that differ in workspace, agent, task and type; `label` says how."""

    def event(label: str, kind: str, agent: str | None, task: str | None = None, workspace: str = "") -> Event:
        data = {"label": label} | ({"task_id": task} if task else {})
        return Event(type=kind, workspace_id=workspace or stage.workspace, agent_id=agent, data=data)

    return [
        event("a1 started", "task.started", "a", "1"),
        event("a1", "task.progress", "a", "1"),
        event("a2", "task.progress", "a", "2"),
        event("b1", "task.progress", "b", "1"),
        event("b online", "agent.online", "b"),
        event("3", "task.progress", None, "3"),
        event("other a1", "task.progress", "a", "1", stage.other),
        event("other b online", "agent.online", "b", None, stage.other),
    ]


HERE, OTHER = "<here>", "<other>"
EVERYTHING = ["a1 started", "a1", "a2", "b1", "b online", "3", "other a1", "other b online"]


def in_stage(stage: Stage, value: Any) -> Any:
    """`value` with the stage's workspaces in it."""
    text = json.dumps(value).replace(HERE, stage.workspace).replace(OTHER, stage.other)
    return json.loads(text)


async def seen(stage: Stage, client: Client) -> list[str]:
    """The labels of the events that `client` is sent when the whole cast is published; in order per workspace."""
    assert errors(await client.synchronise()) == []
    await stage.publish(*cast(stage))
    messages = await stage.delivered(client)
    return [m["label"] for name in stage.workspaces for m in messages if m["workspace_id"] == name]


@pytest.mark.parametrize(
    ("subscriptions", "expected"),
    [
        ([], []),
        ([{}], EVERYTHING),
        ([{"agent_id": "a"}], ["a1 started", "a1", "a2", "other a1"]),
        ([{"agent_id": ["a"]}], ["a1 started", "a1", "a2", "other a1"]),
        ([{"agent_id": ["a", "b"]}], [label for label in EVERYTHING if label != "3"]),
        ([{"agent_id": "nobody"}], []),
        ([{"task_id": "1"}], ["a1 started", "a1", "b1", "other a1"]),
        ([{"task_id": ["2", "3"]}], ["a2", "3"]),
        ([{"workspace_id": OTHER}], ["other a1", "other b online"]),
        ([{"workspace_id": [HERE, OTHER]}], EVERYTHING),
        ([{"event_types": ["agent.online", "task.started"]}], ["a1 started", "b online", "other b online"]),
        ([{"agent_id": "a", "task_id": "1"}], ["a1 started", "a1", "other a1"]),
        ([{"agent_id": "a", "task_id": "3"}], []),
        ([{"agent_id": ["a", "b"], "task_id": "1", "event_types": ["task.progress"], "workspace_id": HERE}],
         ["a1", "b1"]),
        ([{"agent_id": "b", "workspace_id": HERE}, {"task_id": "3"}], ["b1", "b online", "3"]),
        ([{"agent_id": "a"}, {"task_id": "1"}, {"agent_id": "a", "task_id": "1"}], ["a1 started", "a1", "a2", "b1",
         "other a1"]),
        ([{}, {"agent_id": "a"}, {}, {"workspace_id": HERE}], EVERYTHING),
    ],
)  # fmt: skip
async def test_an_event_is_delivered_when_all_filters_of_any_subscription_match(
    stage: Stage, subscriptions: list[Message], expected: list[str]
) -> None:
    """Each event once, however many subscriptions match it."""
    async with stage.client(*stage.workspaces) as client:
        for filters in in_stage(stage, subscriptions):
            await client.subscribe(**filters)
        assert await seen(stage, client) == expected


async def test_subscribe_without_filters_takes_all_workspaces_of_the_token(stage: Stage) -> None:
    async with stage.client() as of_one, stage.client(*stage.workspaces) as of_both:
        for client in (of_one, of_both):
            assert await ask(client, {"type": "subscribe"}) == []
        assert await seen(stage, of_one) == EVERYTHING[:6]
        assert sorted(m["label"] for m in await of_both.synchronise()) == sorted(EVERYTHING)


async def test_a_subscription_pinned_to_an_agent_is_live_though_nobody_watches_its_workspace(shared_node: Node) -> None:
    async with producer(shared_node) as broker, maxicore(shared_node, token("ws-alone")) as client:
        await client.subscribe(agent_id="agent-123")
        await client.synchronise()
        for step in range(20):
            await broker.publish(progress("ws-alone", step, agent="agent-123" if step % 2 else "agent-124"))
        assert await receive_steps(client, 10) == list(range(1, 20, 2))


async def test_a_channel_that_was_wanted_and_left_several_times_is_left_once(start_node: StartNode) -> None:
    """The node leaves its channels some seconds after the last client that wanted them, and lives on."""
    node = start_node()
    for _ in range(3):
        async with maxicore(node) as client:
            await client.subscribe(workspace_id="ws-456")
            await client.subscribe(agent_id=["agent-1", "agent-2"])
            await client.synchronise()
    assert node.metric("trunkline_channels") > 0
    await until(lambda: node.metric("trunkline_channels") == 0, what="no channel subscribed")
    async with producer(node) as broker, maxicore(node) as client:
        await client.subscribe()
        await client.synchronise()
        await broker.publish(progress("ws-456", 1))
        assert await receive_steps(client, 1) == [1]


@pytest.mark.parametrize("kind", ["task.exploded", "agent_status", "*", ""])
async def test_an_unknown_event_type_is_refused_and_nothing_changes(stage: Stage, kind: str) -> None:
    async with stage.client() as client:
        await client.subscribe(task_id="2")
        answer = await ask(client, {"type": "subscribe", "filters": {"event_types": ["task.progress", kind]}})
        assert errors(answer) == ["INVALID_MESSAGE"]
        assert "event_types" in answer[0]["error"]["message"]
        assert await seen(stage, client) == ["a2"]


@pytest.mark.parametrize("workspace", [OTHER, [HERE, OTHER], "ws-of-nobody"])
async def test_a_workspace_that_the_token_does_not_name_is_refused_and_nothing_changes(
    stage: Stage, workspace: Any
) -> None:
    async with stage.client() as client:
        await client.subscribe(task_id="2")
        answer = await ask(client, {"type": "subscribe", "filters": {"workspace_id": in_stage(stage, workspace)}})
        assert errors(answer) == ["FORBIDDEN"]
        assert await seen(stage, client) == ["a2"]


# --- Unsubscribe ---


@pytest.mark.parametrize(
    ("subscription", "unsubscription", "remains"),
    [
        ({"agent_id": "a"}, {"agent_id": "a"}, False),
        ({"agent_id": "a"}, {"agent_id": ["b", "a"]}, False),
        ({"agent_id": ["a", "b"]}, {"agent_id": "a"}, True),
        ({"agent_id": ["a", "b"]}, {"agent_id": ["b", "a"]}, False),
        ({"agent_id": "a", "task_id": "1"}, {"agent_id": "a"}, False),
        ({"agent_id": "a", "task_id": "1"}, {"task_id": "1"}, False),
        ({"agent_id": "a"}, {"agent_id": "a", "task_id": "1"}, True),
        ({"agent_id": "a"}, {"agent_id": "b"}, True),
        ({}, {"agent_id": "a"}, True),
        ({"event_types": ["task.progress", "task.failed"]}, {"event_types": ["task.progress"]}, True),
        ({"event_types": ["task.progress"]}, {"event_types": ["task.failed", "task.progress"]}, False),
        ({"workspace_id": HERE, "agent_id": "a"}, {"workspace_id": HERE}, False),
        ({"workspace_id": [HERE, OTHER]}, {"workspace_id": HERE}, True),
        ({"agent_id": "a"}, {}, False),
        ({}, {}, False),
    ],
)
async def test_unsubscribe_ends_what_asks_for_nothing_beyond_the_given_values(
    stage: Stage, subscription: Message, unsubscription: Message, *, remains: bool
) -> None:
    async with stage.client(*stage.workspaces) as client:
        await client.subscribe(**in_stage(stage, subscription))
        answer = await ask(client, {"type": "unsubscribe", "filters": in_stage(stage, unsubscription)})
        assert errors(answer) == []
        assert ("a1" in await seen(stage, client)) is remains


async def test_unsubscribe_leaves_the_other_subscriptions(stage: Stage) -> None:
    async with stage.client() as client:
        await client.subscribe(agent_id="a", task_id="1")
        await client.subscribe(agent_id="a", task_id="2")
        await client.subscribe(task_id="3")
        await client.send({"type": "unsubscribe", "filters": {"agent_id": "a", "task_id": "1"}})
        assert await seen(stage, client) == ["a2", "3"]


async def test_unsubscribe_without_filters_removes_all_and_one_may_begin_again(stage: Stage) -> None:
    async with stage.client() as client:
        await client.subscribe(agent_id="a")
        await client.subscribe()
        await client.send({"type": "unsubscribe"})
        assert await seen(stage, client) == []
        await client.subscribe(task_id="2")
        assert await seen(stage, client) == ["a2"]


async def test_equal_subscriptions_count_once(stage: Stage) -> None:
    """One unsubscribe ends them all."""
    async with stage.client() as client:
        for filters in ({"agent_id": "a"}, {"agent_id": "a"}, {"agent_id": ["a"]}, {"agent_id": ["a", "a"]}):
            await client.subscribe(**filters)
        await client.send({"type": "unsubscribe", "filters": {"agent_id": "a"}})
        assert await seen(stage, client) == []


# --- Limits ---


async def test_the_101st_subscription_ends_the_connection(stage: Stage) -> None:
    async with stage.client() as client:
        for number in range(100):
            await client.subscribe(task_id=f"task-{number}")
        for number in range(100):
            await client.subscribe(task_id=[f"task-{number}"])
        await client.send({"type": "unsubscribe", "filters": {"task_id": "task-0"}})
        await client.subscribe(task_id="task-100")
        assert await client.synchronise() == []
        await client.subscribe(task_id="task-0")
        await refused(client, "TOO_MANY_SUBSCRIPTIONS")


async def test_a_message_may_have_64_kb_and_no_byte_more(stage: Stage) -> None:
    ping = '{"type":"ping"}'
    async with stage.client() as client:
        await client.send(ping.ljust(65536))
        assert (await client.receive())["type"] == "pong"
        await client.send(ping.ljust(65537))
        assert (await client.closed())[0] == 1009
    async with stage.client() as client:
        await client.socket.send([ping.ljust(40000), " " * 40000])
        assert (await client.closed())[0] == 1009


async def test_an_event_may_be_larger_than_what_a_client_may_send(stage: Stage) -> None:
    event = progress(stage.workspace)
    event.data["output"] = "ü" * 100_000
    async with stage.client(query="envelope=nested") as client:
        await client.subscribe()
        await client.synchronise()
        await stage.publish(event)
        assert (await client.receive())["data"]["output"] == event.data["output"]


async def test_binary_frames_are_not_understood(stage: Stage) -> None:
    async with stage.client() as client:
        await client.send(b'{"type":"ping"}')
        assert (await client.closed())[0] == 1003


async def test_text_that_is_not_utf8_ends_the_connection(stage: Stage) -> None:
    async with stage.client() as client:
        await client.socket.send(b'{"type":"\xff"}', text=True)
        assert (await client.closed())[0] == 1007


GARBAGE = [
    "",
    "hello",
    "{",
    "[]",
    "null",
    "1",
    '"ping"',
    "{}",
    '{"type":null}',
    '{"type":["ping"]}',
    '{"type":"dance"}',
    '{"type":"task.progress","step":1}',
    '{"type":"subscribe","filters":[]}',
    '{"type":"subscribe","filters":"agent-123"}',
    '{"type":"subscribe","filters":{"agent_id":1}}',
    '{"type":"subscribe","filters":{"task_id":[1]}}',
    '{"type":"subscribe","filters":{"workspace_id":{}}}',
    '{"type":"subscribe","filters":{"event_types":[null]}}',
    '{"type":"subscribe","since":1}',
    '{"type":"unsubscribe","filters":[]}',
    '{"type":"unsubscribe","filters":{"agent_id":1}}',
    '{"type":"ping"} {"type":"ping"}',
    "[" * 60000,
    '{"type":"subscribe","filters":' + '{"a":' * 10000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda text: text[:60])
async def test_what_is_not_understood_is_told_and_the_connection_stays(stage: Stage, garbage: str) -> None:
    async with stage.client() as client:
        await client.subscribe(task_id="2")
        assert errors(await ask(client, garbage)) == ["INVALID_MESSAGE"]
        assert await seen(stage, client) == ["a2"]


async def test_ten_bad_messages_in_a_row_end_the_connection(stage: Stage) -> None:
    async with stage.client() as client:
        for _ in range(3):
            for garbage in GARBAGE[:9]:
                await client.send(garbage)
            assert errors(await client.synchronise()) == ["INVALID_MESSAGE"] * 9
        client.messages.clear()
        for garbage in GARBAGE[:10]:
            await client.send(garbage)
        assert (await client.closed())[0] == 1008
        assert errors(client.messages) == ["INVALID_MESSAGE"] * 10


async def test_an_unknown_type_is_told_what_may_be_said(stage: Stage) -> None:
    async with stage.client() as client:
        [answer] = await ask(client, {"type": "dance"})
    said = "auth, subscribe, unsubscribe, ping, pong, task.started, task.progress, task.completed, task.failed, "
    assert answer["error"]["message"] == f"$.type: expected one of {said}command.completed, command.failed"


# --- Heartbeat and idleness ---


class Patient:
    """A client that answers heartbeats by its own rule, until it has seen `count` of them or is closed."""

    def __init__(self, answer: Callable[[int], Message | None]) -> None:
        self.answer = answer
        self.pings: list[Message] = []

    async def stay(self, client: Client, count: int = 6) -> None:
        while len(self.pings) < count:
            message = await client.receive()
            if message["type"] == "ping":
                self.pings.append(message)
                if (answer := self.answer(len(self.pings))) is not None:
                    await client.send(answer)


async def test_three_unanswered_heartbeats_in_a_row_end_a_connection(start_node: StartNode) -> None:
    """Whatever a client sends is an answer, a pong frame alone too; and two unanswered are not three."""
    node = start_node(heartbeat_seconds=1)
    pong = {"type": "pong"}

    async def live(answer: Callable[[int], Message | None], *, deaf: bool = True) -> tuple[int, str] | None:
        async with maxicore(node, **({"create_connection": Deaf} if deaf else {})) as client:
            await client.subscribe(agent_id="agent-1")
            try:
                await Patient(answer).stay(client)
            except websockets.ConnectionClosed:
                return client.socket.close_code or 0, client.socket.close_reason or ""
            return None

    silent, *others = await asyncio.gather(
        live(lambda _: None),
        live(lambda _: None, deaf=False),
        live(lambda _: pong),
        live(lambda number: pong if number % 3 == 0 else None),
        live(lambda number: {"type": "subscribe", "filters": {"agent_id": f"agent-{number}"}}),
        live(lambda number: {"type": "dance"}),
    )
    assert silent == (1008, "PONG_TIMEOUT")
    assert others == [None] * 5


async def test_both_kinds_of_heartbeat_are_sent_and_say_how_far_the_client_is(start_node: StartNode) -> None:
    node = start_node(heartbeat_seconds=1)
    async with staged(node) as stage, maxicore(node, token(stage.workspace), create_connection=Deaf) as client:
        await client.subscribe()
        [position] = await stage.publish(progress(stage.workspace))
        while (await client.receive())["type"] == "ping":
            pass
        assert await client.receive() == {"type": "ping", "event_id": position}
        await until(lambda: client.socket.ping_frames > 0)


async def test_a_connection_with_nothing_but_pongs_is_closed_as_idle(start_node: StartNode) -> None:
    """A message keeps a connection, and so does an event."""
    node = start_node(idle_seconds=1)
    async with (
        producer(node) as broker,
        maxicore(node) as silent,
        maxicore(node) as pongs,
        maxicore(node) as talks,
        maxicore(node) as listens,
    ):
        await listens.subscribe(agent_id="agent-123")
        turns = 0

        async def keep_busy() -> None:
            nonlocal turns
            while True:
                with contextlib.suppress(websockets.ConnectionClosed):
                    await pongs.send({"type": "pong"})
                    await pongs.socket.pong()
                await talks.send({"type": "ping"})
                await broker.publish(progress("ws-456"))
                turns += 1
                await asyncio.sleep(0.2)

        busy = asyncio.create_task(keep_busy())
        try:
            assert await silent.closed() == (1000, "idle")
            assert await pongs.closed() == (1000, "idle")
            await until(lambda: turns >= 15 or busy.done())
            assert errors(await talks.synchronise()) == []
            assert steps(await listens.synchronise())
        finally:
            busy.cancel()
            await asyncio.wait([busy])


# --- Resuming ---


def assert_gap(messages: list[Message], since: str, oldest: str) -> None:
    """`messages` is this gap notice and nothing else. (Fields beyond the promised ones are allowed.)"""
    [gap] = messages
    assert gap.items() >= {"type": "resume.gap", "since": since, "oldest": oldest}.items()


async def test_since_brings_what_was_missed_across_nodes_complete_once_and_in_order(start_node: StartNode) -> None:
    """Events go on while the client is away, while it comes back to the other node, and after that."""
    first, second = start_node(), start_node()
    agents = ["agent-123", "agent-124"]
    async with producer(first) as broker:

        async def publish(start: int, end: int) -> None:
            for step in range(start, end):
                await broker.publish(progress("ws-456", step, agent=agents[step % 2]))

        async with maxicore(first) as client:
            await client.subscribe(agent_id="agent-123")
            await client.synchronise()
            await publish(0, 10)
            assert await receive_steps(client, 5) == [0, 2, 4, 6, 8]
            since = client.messages[-1]["event_id"]
        await publish(10, 300)
        async with maxicore(second) as client:
            publishing = asyncio.create_task(publish(300, 600))
            await client.subscribe(since=since, agent_id="agent-123")
            assert await receive_steps(client, 295) == list(range(10, 600, 2))
            await publishing
            assert await client.synchronise() == []


async def test_the_position_of_a_pong_is_one_to_resume_from(stage: Stage) -> None:
    """Nothing before it is sent again, nothing after it is left out."""
    async with stage.client() as client:
        await client.subscribe(agent_id="agent-123")
        await client.synchronise()
        await stage.publish(*(progress(stage.workspace, step, agent=f"agent-{123 + step % 2}") for step in range(10)))
        assert steps(await stage.delivered(client)) == [0, 2, 4, 6, 8]
        since = client.messages[-1]["event_id"]
    await stage.publish(*(progress(stage.workspace, step, agent=f"agent-{123 + step % 2}") for step in range(10, 20)))
    async with stage.client() as client:
        await client.subscribe(since=since, agent_id="agent-123")
        assert steps(await stage.delivered(client)) == [10, 12, 14, 16, 18]


async def test_the_pong_of_an_idle_client_moves_on_with_its_workspace(stage: Stage) -> None:
    async with stage.client() as client:
        await client.subscribe(workspace_id=stage.workspace, task_id="task-of-nobody")
        await client.synchronise()
        [position] = await stage.publish(progress(stage.workspace))
        assert await stage.delivered(client) == []
        assert client.messages[-1] == {"type": "pong", "event_id": position}


async def test_since_the_newest_position_brings_nothing_old(stage: Stage) -> None:
    [*_, newest] = await stage.publish(progress(stage.workspace, 1), progress(stage.workspace, 2))
    await stage.settle()
    async with stage.client() as client:
        await client.subscribe(since=newest)
        assert await client.synchronise() == []
        await stage.publish(progress(stage.workspace, 3))
        assert await receive_steps(client, 1) == [3]


async def test_a_replay_brings_only_what_earlier_subscriptions_did_not_match(stage: Stage) -> None:
    [start] = await stage.publish(progress(stage.workspace, 0))
    await stage.settle()
    async with stage.client() as client:
        await client.subscribe(agent_id="agent-123")
        await client.synchronise()
        await stage.publish(
            progress(stage.workspace, 1, agent="agent-123", task="task-1"),
            progress(stage.workspace, 2, agent="agent-124", task="task-1"),
            progress(stage.workspace, 3, agent="agent-124", task="task-2"),
        )
        assert steps(await stage.delivered(client)) == [1]
        await client.subscribe(since=start, task_id="task-1")
        assert steps(await client.synchronise()) == [2]
        await client.subscribe(since=start, task_id="task-1")
        assert await client.synchronise() == []


async def test_replays_that_are_asked_for_at_once_bring_each_event_once_and_in_order(stage: Stage) -> None:
    """More than one page of the log, with events going on meanwhile; what the second matches too is not sent again."""
    agents = ["agent-1", "agent-2", "agent-3"]

    async def publish(start: int, end: int) -> None:
        events = [progress(stage.workspace, step, agent=agents[step % 3]) for step in range(start, end)]
        await stage.broker.publish_many(events)

    [start] = await stage.publish(progress(stage.workspace, 0))
    await publish(1, 1200)
    async with stage.client() as client:
        publishing = asyncio.create_task(publish(1200, 2400))
        await client.subscribe(since=start, agent_id="agent-1")
        await client.subscribe(since=start, agent_id=["agent-1", "agent-2"])
        await client.subscribe(since=start)
        await client.send({"type": "unsubscribe", "filters": {"agent_id": "agent-1"}})
        await client.synchronise()
        await publishing
        await stage.publish(progress(stage.workspace, 2400))
        while client.messages[-1].get("step") != 2400:
            await client.receive()
    received = steps(client.messages)
    assert sorted(received) == list(range(1, 2401))
    for number in range(3):
        own = [step for step in received if step % 3 == number]
        assert own == sorted(own)


@pytest.mark.parametrize("since", ["1-0", "99999999999999-0", "yesterday", ""])
async def test_a_position_that_is_not_in_the_log_is_a_gap_and_then_live(stage: Stage, since: str) -> None:
    oldest, *_ = await stage.publish(progress(stage.workspace, 1), progress(stage.workspace, 2))
    await stage.settle()
    async with stage.client() as client:
        await client.subscribe(since=since)
        assert_gap(await client.synchronise(), since, oldest)
        await stage.publish(progress(stage.workspace, 3))
        assert await receive_steps(client, 1) == [3]


async def test_a_gap_is_said_even_to_who_is_subscribed_already(stage: Stage) -> None:
    [oldest] = await stage.publish(progress(stage.workspace, 1))
    await stage.settle()
    async with stage.client() as client:
        await client.subscribe()
        request = {"type": "subscribe", "filters": {"agent_id": "agent-123"}, "since": "1-0"}
        assert_gap(await ask(client, request), "1-0", oldest)
        await stage.publish(progress(stage.workspace, 2))
        assert steps(await stage.delivered(client)) == [2]


async def test_what_the_log_let_go_is_a_gap_unless_nothing_of_it_was_asked_for(stage: Stage) -> None:
    """An agent's newest event stays a valid position when busier agents have pushed it out of the log."""
    [quiet] = await stage.publish(progress(stage.workspace, 1, agent="quiet"))
    busy = await stage.publish(*(progress(stage.workspace, step, agent="busy") for step in range(2, 6)))
    await stage.settle()
    async with redis.asyncio.from_url(stage.node.redis_url) as plain:
        await plain.xtrim(Keyspace(stage.node.prefix).log(stage.workspace), minid=busy[1], approximate=False)
    async with stage.client() as client:
        await client.subscribe(since=quiet, agent_id="quiet")
        assert await client.synchronise() == []
        await client.subscribe(since=quiet, agent_id=["quiet", "busy"])
        assert_gap(await client.synchronise(), quiet, busy[1])
    async with stage.client() as client:
        await client.subscribe(since=quiet)
        assert_gap(await client.synchronise(), quiet, busy[1])
    async with stage.client() as client:
        await client.subscribe(since=busy[1])
        assert steps(await client.synchronise()) == [4, 5]


async def test_a_client_of_several_workspaces_has_a_position_in_each(stage: Stage) -> None:
    here, there = stage.workspaces
    async with stage.client(here, there) as client:
        await client.subscribe()
        await client.synchronise()
        positions = await stage.publish(progress(here, 1), progress(there, 2))
        assert sorted(steps(await stage.delivered(client))) == [1, 2]
        assert client.messages[-1] == {"type": "pong", "event_id": dict(zip((here, there), positions, strict=True))}
        since = client.messages[-1]["event_id"]
    await stage.publish(progress(here, 3), progress(there, 4), progress(here, 5))
    async with stage.client(here, there) as client:
        await client.subscribe(since=since)
        messages = await client.synchronise()
        assert steps([m for m in messages if m["workspace_id"] == here]) == [3, 5]
        assert steps([m for m in messages if m["workspace_id"] == there]) == [4]
        assert all(isinstance(message["event_id"], str) for message in messages)


async def test_a_gap_in_one_of_several_workspaces_is_said(stage: Stage) -> None:
    here, there = stage.workspaces
    oldest, position, _ = await stage.publish(progress(here, 1), progress(there, 2), progress(there, 3))
    await stage.settle()
    async with stage.client(here, there) as client:
        await client.subscribe(since={here: "1-0", there: position})
        messages = await client.synchronise()
        assert_gap([message for message in messages if message["type"] == "resume.gap"], "1-0", oldest)
        await stage.publish(progress(here, 4))
        assert steps(messages + await stage.delivered(client)) == [3, 4]


# --- The handshake ---


async def test_another_path_is_not_found(shared_node: Node) -> None:
    for path in ("/", "/v2", "/v2/ws/", "/v2/ws/more", "/v1/ws"):
        with pytest.raises(websockets.InvalidStatus) as refusal:
            async with connect(shared_node.ws(f"{path}?token={token()}"), proxy=None):
                pass
        assert refusal.value.response.status_code == 404, path


def test_plain_http_on_the_websocket_path_is_told_what_is_missing(shared_node: Node) -> None:
    status, _, body = http(shared_node.http(f"/v2/ws?token={token()}"))
    assert status in (400, 426)
    assert b"websocket" in body.lower()
