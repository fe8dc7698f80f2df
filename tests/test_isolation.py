"""No subscription, position, renewal or lie on a channel shows a client the events of a workspace outside its token."""

import contextlib
import itertools
import json
import secrets
from typing import Any

import pytest
import redis.asyncio
import websockets

from broker import Event
from broker.keyspace import Keyspace

from .support import Client, Node, maxicore, token
from .wire.helpers import Stage, ask, errors, progress, staged, steps

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

# Names that begin, end or contain one another, look like patterns, or like the name of another's channel. `{}` is a
# name of the test's own.
NAMES = ["{}", "{}-4", "{}-45", "-{}", "{}:", ":{}", "{}:agent-1", "{}-*", "{}-?", "{}-[45]", "*", "{} ", "{},{}-4"]


def names() -> list[str]:
    """Workspaces of a test's own under `NAMES`; the last differs from the first in case alone."""
    name = f"ws-{secrets.token_hex(4)}"
    return [pattern.replace("{}", name) for pattern in NAMES] + [name.upper()]


def every_filter(workspace: str) -> list[dict[str, Any]]:
    """All combinations of keys, with values that match the test's events, as strings and as lists."""
    parts = {
        "agent_id": ["agent-1", ["agent-1", "*"]],
        "task_id": ["task-1", ["task-1", "*"]],
        "workspace_id": [workspace, [workspace]],
        "event_types": [["task.progress"]],
    }
    return [
        dict(zip(keys, values, strict=True))
        for count in range(len(parts) + 1)
        for keys in itertools.combinations(parts, count)
        for values in itertools.product(*(parts[key] for key in keys))
    ]


def lookalikes(workspaces: list[str]) -> list[Event]:
    """One event in each workspace, all alike but for the step."""
    return [progress(name, step, agent="agent-1", task="task-1") for step, name in enumerate(workspaces)]


async def test_each_token_sees_its_own_workspace_by_whatever_filter(shared_node: Node) -> None:
    workspaces = names()
    async with staged(shared_node, workspaces) as stage:
        for step, name in enumerate(workspaces):
            async with stage.client(name) as client:
                for filters in every_filter(name):
                    await client.subscribe(**filters)
                assert errors(await client.synchronise()) == []
                await stage.publish(*lookalikes(workspaces))
                messages = await stage.delivered(client)
                assert [(message["workspace_id"], message["step"]) for message in messages] == [(name, step)]


async def test_another_workspace_is_refused_alone_and_in_a_list(shared_node: Node) -> None:
    workspaces = names()
    mine, *others = workspaces
    async with staged(shared_node, workspaces) as stage:
        for other in others:
            async with stage.client(mine) as client:
                for asked in (other, [other], [mine, other], [other, mine]):
                    for more in ({}, {"agent_id": "agent-1"}, {"task_id": "task-1"}):
                        request = {"type": "subscribe", "filters": {"workspace_id": asked} | more}
                        assert errors(await ask(client, request)) == ["FORBIDDEN"], asked
                await stage.publish(*lookalikes(workspaces))
                assert await stage.delivered(client) == []


@pytest.mark.parametrize(
    "value", ["*", "?", "**", "%", ".*", "[a-z]*", "agent-*", "", "\n", "{}", ":", "agent-1:", "}:*"]
)
async def test_what_looks_like_a_pattern_is_a_name(stage: Stage, value: str) -> None:
    """Whether such an id is refused or taken, it matches nothing but itself."""
    async with stage.client(stage.other) as client:
        for key in ("agent_id", "task_id"):
            for given in (value, [value]):
                await client.subscribe(**{key: given})
        for given in (value, [value], [value, stage.other]):
            await client.subscribe(workspace_id=given)
        await client.synchronise()
        await stage.publish(*lookalikes(stage.workspaces))
        assert steps(await stage.delivered(client)) == []


async def test_since_brings_nothing_of_another_workspace(stage: Stage) -> None:
    mine, other = stage.other, stage.workspace
    start, *_ = await stage.publish(*(progress(other, step) for step in range(5)))
    [own] = await stage.publish(progress(mine, 100))
    await stage.settle()
    for since in (start, {other: start}, {other: start, mine: own}, {mine: start}, "0-0", {other: "0-0"}, {"*": "0-0"}):
        async with stage.client(mine) as client:
            await client.subscribe(since=since)
            await client.subscribe(since=since, workspace_id=other)
            await client.subscribe(since=since, workspace_id=[mine, other], agent_id="agent-123")
            messages = await client.synchronise() + await stage.delivered(client)
            assert {message["workspace_id"] for message in messages if "workspace_id" in message} <= {mine}
            assert set(steps(messages)) <= {100}
            # Where another workspace is in its log is none of this client's business either.
            told = json.dumps([(message.get("event_id"), message.get("oldest")) for message in client.messages])
            assert json.dumps(other) not in told


async def test_a_lying_workspace_id_on_a_channel_reaches_nobody_elses_workspace(stage: Stage) -> None:
    """What is PUBLISHed on a workspace's channel belongs to that workspace or is dropped, whatever it says it is."""
    mine, other = stage.workspace, stage.other
    keyspace = Keyspace(stage.node.prefix)
    places: list[dict[str, Any]] = [
        {"workspace_id": mine, "data": {"task_id": "task-1", "step": 1}},
        {"data": {"task_id": "task-1", "step": 1, "workspace_id": mine}},
        {"id": "1-1", "workspace_id": mine, "task_id": "task-1", "data": {"step": 1}},
        {"data": {"task_id": "task-1", "step": 1}, "workspace_id": mine, "workspace_id ": other},
    ]
    async with (
        redis.asyncio.from_url(stage.node.redis_url) as plain,
        stage.client(mine) as of_mine,
        stage.client(other) as of_other,
    ):
        for client in (of_mine, of_other):
            await client.subscribe()
            await client.subscribe(agent_id="agent-1")
            await client.synchronise()
        for lie in places:
            text = json.dumps(
                {"type": "task.progress", "agent_id": "agent-1", "timestamp": "2026-03-27T10:30:45Z"} | lie
            )
            await plain.publish(keyspace.channel(other), text)
            await plain.publish(keyspace.channel(other, "agent-1"), text)
            await plain.publish(keyspace.channel(other), text.replace('"type"', f'"workspace_id":"{other}","type"'))
        await stage.publish(progress(mine, 7), progress(other, 8))
        assert steps(await stage.delivered(of_mine)) == [7]
        told = await of_other.synchronise()
        assert {message["workspace_id"] for message in told} == {other}


async def test_a_renewed_token_leaves_the_workspaces_that_it_no_longer_names(stage: Stage) -> None:
    mine, other = stage.workspaces
    async with stage.client(mine, other) as client:
        await client.subscribe()
        await client.subscribe(workspace_id=[mine, other])
        await client.subscribe(agent_id="agent-1")
        await client.synchronise()
        await client.send({"type": "auth", "token": f"Bearer {token(mine)}"})
        await client.synchronise()
        await stage.publish(*lookalikes([mine, other]))
        messages = await stage.delivered(client)
        assert {message["workspace_id"] for message in messages} <= {mine}
        assert errors(await ask(client, {"type": "subscribe", "filters": {"workspace_id": other}})) == ["FORBIDDEN"]


@pytest.mark.parametrize("workspaces", [[], "ws-45", "*", None, {}, {"ws-456": True}, [["ws-456"]], [1], 456])
async def test_a_token_that_names_no_workspace_sees_none(shared_node: Node, ws_456: Stage, workspaces: Any) -> None:
    """Refused or not, what it says instead is not taken for that name, for a part of it or for everything."""
    async with maxicore(shared_node, token(workspaces=workspaces)) as client:
        await only_refusals(client, ws_456)


async def test_a_token_without_the_scope_to_read_sees_nothing(shared_node: Node, ws_456: Stage) -> None:
    async with maxicore(shared_node, token("ws-456", scope="events:write agents:write")) as client:
        await only_refusals(client, ws_456)
    async with maxicore(shared_node, token("ws-456", scope="agents:write events:read")) as client:
        await client.subscribe()
        await client.synchronise()
        await ws_456.publish(progress("ws-456", 1))
        assert steps(await ws_456.delivered(client)) == [1]


async def only_refusals(client: Client, stage: Stage) -> None:
    """The client asks for what there is in the stage's workspace and never gets any of it."""
    with contextlib.suppress(websockets.ConnectionClosed):
        for filters in ({}, {"workspace_id": stage.workspace}, {"agent_id": "agent-123"}):
            await client.subscribe(**filters)
        await client.synchronise()
        await stage.publish(progress(stage.workspace))
        await stage.delivered(client)
    assert {message["type"] for message in client.messages} <= {"error", "pong"}
