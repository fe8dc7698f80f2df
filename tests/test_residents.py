"""Agents with a connection of their own: present over the fleet, heard, and given their commands."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker import Broker, Event
from broker.agents.model import Draft
from broker.local import LocalRedis

from .freeagentics import freeagentics
from .rest import Rest
from .support import Client, Node, maxicore, private_redis, token, until
from .wire import examples

pytestmark = pytest.mark.anyio

WORKSPACE, AGENT = "ws-456", "agent-123"
OURS = frozenset({WORKSPACE})


def own(agent: str = AGENT, *workspaces: str, **claims: Any) -> str:
    """An agent's own token."""
    return token(*(workspaces or (WORKSPACE,)), **({"sub": agent, "agent_id": agent, "scope": "events:write"} | claims))


@contextlib.asynccontextmanager
async def connected(node: Node) -> AsyncIterator[Broker]:
    async with Broker.connect(node.redis_url, prefix=node.prefix, workspace_id=WORKSPACE) as broker:
        yield broker


async def told(broker: Broker, agent: str = AGENT) -> list[Event]:
    """What stands in the log of an agent, but for what is told twice: in FreeAgentics' words too."""
    page = await broker.log.page(WORKSPACE, "0-0", 1000)
    return [event.event() for event in page.events if event.agent_id == agent and event.type != "agent_status"]


async def kinds(broker: Broker, agent: str = AGENT) -> list[str]:
    return [event.type for event in await told(broker, agent)]


async def lapse(broker: Broker, agent: str = AGENT) -> None:
    """As if the grace were over: its lease ends now, and the elected node finds it."""
    await broker.redis.zadd(broker.keys.presence(WORKSPACE), {agent: 1}, xx=True)


async def has_left(broker: Broker, agent: str = AGENT) -> bool:
    return bool(await broker.redis.hexists(broker.keys.farewells(WORKSPACE), agent))


async def refusal(client: Client, message: Any) -> dict[str, Any]:
    await client.send(message)
    answer = await client.receive()
    assert answer["type"] == "error"
    return answer["error"]  # type: ignore[no-any-return]


# -- presence


async def test_an_agent_is_online_once_with_however_many_sockets_at_two_nodes_and_offline_once_they_are_gone(
    start_node: Callable[..., Node],
) -> None:
    nodes = [start_node(), start_node()]
    async with connected(nodes[0]) as broker, maxicore(nodes[1], token()) as watcher:
        await watcher.subscribe(event_types=["agent.online", "agent.offline"])
        await watcher.synchronise()
        async with contextlib.AsyncExitStack() as sockets:
            for node in nodes * 2:
                client = await sockets.enter_async_context(maxicore(node, own()))
                await client.synchronise()  # it is present before anything that it says is done
                assert await kinds(broker) == ["agent.online"]
            assert (await watcher.receive())["type"] == "agent.online"
        await until(lambda: has_left(broker))
        assert await watcher.synchronise() == [], "not within the grace"
        await until(lambda: _is_swept(broker), 30, "a grace from the start of the nodes, and the sweep")
        offline = await watcher.receive()
        assert (offline["type"], offline["agent_id"], offline["reason"]) == (
            "agent.offline",
            AGENT,
            "Client disconnected",
        )
        assert await kinds(broker) == ["agent.online", "agent.offline"]


async def _is_swept(broker: Broker) -> bool:
    """All of its sockets have said goodbye by now, but perhaps not yet to Redis: the lease is ended until it is."""
    await lapse(broker)
    return not await broker.redis.zcard(broker.keys.presence(WORKSPACE))


async def test_a_reconnect_within_the_grace_to_another_node_is_neither_leave_nor_join(
    start_node: Callable[..., Node],
) -> None:
    one, other = start_node(), start_node()
    async with connected(one) as broker:
        async with maxicore(one, own()) as client:
            await client.synchronise()
        await until(lambda: has_left(broker))
        async with maxicore(other, own()) as client:
            await client.synchronise()
            assert not await has_left(broker)
            assert await kinds(broker) == ["agent.online"]


async def test_a_killed_nodes_agents_are_offline_once_within_a_minute_unless_they_come_back_elsewhere(
    start_node: Callable[..., Node],
) -> None:
    """Issue 5, shown item 8, by the real times."""
    doomed, one, other = start_node(), start_node(), start_node()
    async with connected(one) as broker, contextlib.AsyncExitStack() as clients:
        watchers = [await clients.enter_async_context(maxicore(node, token())) for node in (one, other)]
        for watcher in watchers:
            await watcher.subscribe(event_types=["agent.online", "agent.offline"])
            await watcher.synchronise()
        for agent in ("agent-lost", "agent-back"):
            await (await clients.enter_async_context(maxicore(doomed, own(agent)))).synchronise()
        doomed.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        back = await clients.enter_async_context(maxicore(other, own("agent-back")))
        await back.synchronise()
        expected = [("agent-back", "agent.online"), ("agent-lost", "agent.offline"), ("agent-lost", "agent.online")]
        for watcher in watchers:
            seen = [await watcher.receive(60) for _ in expected]
            assert sorted((event["agent_id"], event["type"]) for event in seen) == expected
            assert seen[-1]["reason"] == "Client timed out"
        assert 9 < time.monotonic() - killed_at < 60
        # As long again as a second sweep takes: nothing is said twice, and who came back stays.
        await broker.agents.present("agent-last")
        for watcher in watchers:
            assert (await watcher.receive())["agent_id"] == "agent-last"
        assert await kinds(broker, "agent-lost") == ["agent.online", "agent.offline"]
        assert await kinds(broker, "agent-back") == ["agent.online"]


async def test_an_agent_that_vanished_without_a_word_is_taken_to_have_left_by_the_heartbeat(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(heartbeat_seconds=0.3, slow_close_seconds=0.3)
    async with connected(node) as broker, maxicore(node, own(), close_timeout=0.1) as client:
        await client.synchronise()
        client.socket.transport.pause_reading()  # neither its end nor an answer comes
        await until(lambda: has_left(broker))
        assert node.metric("trunkline_connections_closed_total", code="1008") == 1


async def test_a_deleted_agent_is_cut_off_when_it_speaks(node: Node) -> None:
    """Before the beat that would find it out; what comes behind its first word is nobody's."""
    async with connected(node) as broker, maxicore(node, token()) as watcher:
        agent = (await broker.agents.create(WORKSPACE, Draft(name="Alpha", workspace_id=WORKSPACE))).id
        await watcher.subscribe(event_types=["task.progress"])
        await watcher.synchronise()
        async with maxicore(node, own(agent)) as client:
            await client.synchronise()
            await broker.agents.delete(OURS, agent)
            for step in range(20):
                await client.send({"type": "task.progress", "task_id": "t", "step": step, "total_steps": 20})
            assert (await client.closed())[0] == 1008
        assert len(await watcher.synchronise()) <= 1


async def test_a_deleted_agents_connection_ends_and_its_token_opens_none(node: Node) -> None:
    async with connected(node) as broker:
        agent = (await broker.agents.create(WORKSPACE, Draft(name="Alpha", workspace_id=WORKSPACE))).id
        async with maxicore(node, own(agent)) as client:
            await client.synchronise()
            await until(lambda: broker.redis.exists(broker.keys.listening(WORKSPACE, agent)))
            await broker.agents.delete(OURS, agent)
            assert (await client.closed(15))[0] == 1008
            assert client.messages[-1]["error"]["code"] == "INVALID_TOKEN"
        async with maxicore(node, own(agent)) as client:
            assert (await client.closed())[0] == 1008
        assert (await kinds(broker, agent))[-2:] == ["agent.offline", "agent_deleted"]
        assert node.metric("trunkline_auth_failures_total", reason="deleted") == 2


async def test_a_pairing_key_becomes_a_token_that_makes_its_agent_online(node: Node) -> None:
    rest = Rest(node)
    created = rest.create()
    paired = rest.ask("POST", "/v2/agents/pair", {"pairing_key": created["pairing_key"]}).data
    async with maxicore(node, paired["token"]) as client:
        await client.synchronise()
        assert rest.ask("GET", f"/v2/agents/{created['id']}").data["status"] == "online"
        listed = rest.ask("GET", "/v2/agents?status=online").data
        assert [item["id"] for item in listed["items"]] == [created["id"]]
    assert node.metric("trunkline_http_requests_total", status="200") >= 3
    assert node.metric("trunkline_http_requests_total", status="201") == 1


@pytest.mark.parametrize(
    "claims",
    [{"scope": "events:read"}, {"agent_id": None}, {"workspaces": [WORKSPACE, "ws-2"]}, {"agent_id": "x\n"}],
    ids=["may not write", "is nobody's", "has two workspaces", "is no id"],
)
async def test_another_token_makes_no_agent_present_and_says_nothing(node: Node, claims: dict[str, Any]) -> None:
    credentials = own(**{name: value for name, value in claims.items() if value is not None})
    if claims.get("agent_id", "") is None:
        credentials = token(WORKSPACE, scope="events:write")
    async with connected(node) as broker, maxicore(node, credentials) as client:
        for message in ({"type": "task.started", "task_id": "t"}, {"type": "command.completed", "command_id": "1-0"}):
            error = await refusal(client, message)
            assert (error["code"], error["message"][:8]) == ("INVALID_MESSAGE", "$.type: ")
        assert not await broker.redis.exists(broker.keys.presence(WORKSPACE), broker.keys.log(WORKSPACE))


async def test_a_connection_stays_its_agents(node: Node) -> None:
    for other in (own(agent_id="agent-9"), own(scope="events:read")):
        async with maxicore(node, own()) as client:
            await client.send({"type": "auth", "token": own()})
            await client.synchronise()
            await client.send({"type": "auth", "token": other})
            assert (await client.closed())[0] == 1008


# -- what it says

SAID: list[dict[str, Any]] = [
    examples.TASK_STARTED,
    examples.TASK_PROGRESS,
    {
        "type": "task.progress",
        "timestamp": "2026-03-27T10:30:45Z",
        "agent_id": AGENT,
        "task_id": "task-456",
        "data": {"step": 4, "ours": {"deep": [1]}},
    },
    examples.TASK_COMPLETED,
    examples.TASK_FAILED,
]


async def test_what_an_agent_says_in_the_documents_shapes_is_published_as_its_own_in_order(node: Node) -> None:
    async with connected(node) as broker, maxicore(node, own()) as client, maxicore(node, token()) as watcher:
        await watcher.subscribe(agent_id=AGENT, event_types=[message["type"] for message in SAID])
        await watcher.synchronise()
        for message in SAID:
            await client.send(message)
        assert await client.synchronise() == [], "success is silent"
        for message in SAID:
            event = await watcher.receive()
            fields = {name: value for name, value in message.items() if name not in ("data", "timestamp")}
            assert event.items() >= (fields | message.get("data", {}) | {"agent_id": AGENT}).items()
            assert event["timestamp"] == message.get("timestamp", event["timestamp"])
            assert event["event_id"]
        assert await kinds(broker) == ["agent.online", *(message["type"] for message in SAID)]
        assert await broker.redis.hget(broker.keys.agent(WORKSPACE, AGENT), "credits_used") == b"47"


async def test_a_thousand_steps_stay_in_order(node: Node) -> None:
    async with connected(node) as broker, maxicore(node, own()) as client:
        for step in range(600):
            await client.send({"type": "task.progress", "task_id": "t", "step": step})
        await client.synchronise(30)
        assert [event.data["step"] for event in (await told(broker))[1:]] == list(range(600))


@pytest.mark.parametrize(
    ("message", "code", "path"),
    [
        ({"type": "task.progress", "task_id": "t", "step": "3"}, "INVALID_MESSAGE", "$.step: "),
        ({"type": "task.progress", "data": {"task_id": "t", "step": "3"}}, "INVALID_MESSAGE", "$.data.step: "),
        ({"type": "task.progress", "step": 3}, "INVALID_MESSAGE", "$.task_id: "),
        ({"type": "task.failed", "task_id": "t", "error": {"code": "X"}}, "INVALID_MESSAGE", "$.error"),
        ({"type": "task.started", "task_id": "t", "timestamp": "now"}, "INVALID_MESSAGE", "$.timestamp: "),
        ({"type": "task.started", "task_id": "t", "timestamp": 5}, "INVALID_MESSAGE", "$.timestamp: "),
        ({"type": "task.started", "task_id": "t", "data": [1]}, "INVALID_MESSAGE", "$.data: "),
        ({"type": "task.started", "task_id": "t", "event_id": "1-0"}, "INVALID_MESSAGE", "$.event_id"),
        ({"type": "task.started", "task_id": "t", "agent_id": "agent-9"}, "FORBIDDEN", "$.agent_id: "),
        ({"type": "task.started", "task_id": "t", "workspace_id": "ws-9"}, "FORBIDDEN", "$.workspace_id: "),
        ({"type": "task.started", "data": {"task_id": "t", "agent_id": "agent-9"}}, "FORBIDDEN", "$.agent_id: "),
        (
            {"type": "task.started", "task_id": "t", "agent_id": "agent-9", "data": {"agent_id": AGENT}},
            "INVALID_MESSAGE",
            "$.data: ",
        ),
        ({"type": "task.started", "task_id": "t", "data": {"task_id": "u"}}, "INVALID_MESSAGE", "$.data: "),
        ({"type": "agent.offline", "reason": "…"}, "INVALID_MESSAGE", "$.type: "),
        ({"type": "command.completed", "command_id": "1-0"}, "COMMAND_NOT_FOUND", "$.command_id: "),
        ({"type": "command.failed", "command_id": "1-0", "error": {"code": "X"}}, "INVALID_MESSAGE", "$.error: "),
        ('{"type":"task.progress","task_id":"t","step":1e999}', "INVALID_MESSAGE", ""),
    ],
    ids=str,
)
async def test_what_an_agent_may_not_say_is_refused_with_the_path(
    node: Node, message: Any, code: str, path: str
) -> None:
    async with connected(node) as broker, maxicore(node, own()) as client:
        error = await refusal(client, message)
        assert error["code"] == code
        assert error["message"].startswith(path)
        await client.synchronise()
        assert await kinds(broker) == ["agent.online"]


async def test_without_redis_an_agent_hears_that_it_was_not_heard(start_node: Callable[..., Node], prefix: str) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url)
        async with maxicore(node, own()) as client:
            await client.synchronise()
            await asyncio.to_thread(redis.stop)
            await client.send({"type": "task.started", "task_id": "t"})
            answer = await client.receive(30)
            assert answer["error"]["code"] == "UNAVAILABLE"
            await _start(redis)
            await client.send({"type": "task.started", "task_id": "t-2"})
            assert await client.synchronise(30) == []
        async with Broker.connect(redis.url, prefix=prefix) as broker:
            assert "t-2" in [event.data.get("task_id") for event in await told(broker)]


async def _start(redis: LocalRedis) -> None:
    await asyncio.to_thread(redis.start)


# -- what it is to do


async def test_a_command_reaches_the_agents_own_connection_and_its_answer_the_sender(
    start_node: Callable[..., Node],
) -> None:
    one, other = start_node(), start_node()
    async with (
        connected(one) as broker,
        maxicore(one, own()) as agent,
        maxicore(one, token()) as stranger,
        freeagentics(other, token(scope="commands:send events:read")) as user,
    ):
        await stranger.subscribe()
        await until(lambda: broker.redis.exists(broker.keys.listening(WORKSPACE, AGENT)))
        ask = {"agent_id": AGENT, "parameters": {"model": "large-1"}}
        await user.send({"type": "command", "data": ask | {"command": "get_status", "request_id": "req-1"}})
        command = await agent.receive()
        assert command["type"] == "agent.command"
        assert (command["agent_id"], command["command"], command["request_id"]) == (AGENT, "get_status", "req-1")
        assert command["parameters"] == {"model": "large-1"}
        assert command["expires_at"].endswith("Z")
        error = await refusal(
            agent,
            {
                "type": "command.failed",
                "command_id": command["command_id"],
                "error": {"code": "no code", "message": ""},
            },
        )
        assert (error["code"], error["message"][:14]) == ("INVALID_MESSAGE", "$.error.code: ")
        result = {"new_status": "idle", "load": 0.5}
        await agent.send({"type": "command.completed", "command_id": command["command_id"], "result": result})
        status = await _receive(user, "agent_status")
        assert status["data"]["new_status"] == "idle"

        await user.send({"type": "command", "data": ask | {"command": "update_config", "request_id": "req-2"}})
        command = await agent.receive()
        error = {"code": "CONFIG_REJECTED", "message": "no such model"}
        await agent.send({"type": "command.failed", "command_id": command["command_id"], "error": error})
        failed = await _receive(user, "command_error")
        assert failed["data"]["error_code"] == "CONFIG_REJECTED"
        assert "agent.command" not in {message["type"] for message in await stranger.synchronise()}


async def _receive(user: Any, kind: str) -> dict[str, Any]:
    while (message := await user.receive())["type"] != kind:
        pass
    return message  # type: ignore[no-any-return]


async def test_what_a_connection_leaves_undone_goes_to_the_agents_next_one(start_node: Callable[..., Node]) -> None:
    one, other = start_node(), start_node()
    async with connected(one) as broker, freeagentics(one, token(scope="commands:send")) as user:
        async with maxicore(one, own()) as first:
            await first.synchronise()
            await until(lambda: broker.redis.exists(broker.keys.listening(WORKSPACE, AGENT)))
            await user.send({"type": "command", "data": {"agent_id": AGENT, "command": "restart"}})
            given = await first.receive()
        async with maxicore(other, own()) as second:
            again = await second.receive(20)
            assert again == given
            await second.send({"type": "command.completed", "command_id": again["command_id"]})
            await second.synchronise()
            await until(lambda: _is_settled(broker))


async def _is_settled(broker: Broker) -> bool:
    return not await broker.redis.xlen(broker.keys.commands(WORKSPACE, AGENT))


async def test_an_agent_with_the_scope_to_read_subscribes_as_any_client(node: Node) -> None:
    async with maxicore(node, own(scope="events:write events:read")) as client:
        await client.subscribe(agent_id=AGENT)
        await client.synchronise()
        await client.send({"type": "task.started", "task_id": "t"})
        assert (await client.receive())["task_id"] == "t"
    async with maxicore(node, own()) as client:
        assert (await refusal(client, {"type": "subscribe"}))["code"] == "FORBIDDEN"
