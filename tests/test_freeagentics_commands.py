"""Commands of FreeAgentics' clients: to agents in another process, and every way in which one is not carried out.

The agents live in a program of their own (obedient.py), which knows the gateway only through Redis.
"""

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis.asyncio
import websockets.asyncio.client

from broker import Event
from broker.keyspace import Keyspace

from .freeagentics import FreeAgentics, freeagentics, user
from .support import Node, until
from .test_dev import Dev
from .wire.helpers import producer

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.freeagentics_fixtures"]

Message = dict[str, Any]
StartNode = Callable[..., Node]

SCOPE = "events:read commands:send"
COMMANDS = ("start", "stop", "restart", "update_config", "get_status")

PROGRAM = Path(__file__).with_name("obedient.py")


class Stage(NamedTuple):
    """A node, and a workspace in which `agent` listens: in the process `pid`, that is none of the node's."""

    node: Node
    workspace: str
    agent: str
    pid: int

    @property
    def token(self) -> str:
        return user(self.workspace, scope=SCOPE)


@pytest.fixture
async def stage(quiet_node: Node) -> AsyncIterator[Stage]:
    workspace, agent = f"ws-{secrets.token_hex(4)}", "agent_123"
    arguments = [quiet_node.redis_url, quiet_node.prefix, workspace, agent]
    process = subprocess.Popen([sys.executable, "-m", "tests.obedient", *arguments], cwd=PROGRAM.parents[1])
    try:
        keys = Keyspace(quiet_node.prefix)
        async with redis.asyncio.from_url(quiet_node.redis_url) as plain:
            await until(lambda: plain.exists(keys.listening(workspace, agent)), 20, "the agent listens")
        yield Stage(quiet_node, workspace, agent, process.pid)
    finally:
        process.kill()
        process.wait()


def command(name: str, agent: str = "agent_123", **rest: Any) -> Message:
    return {"type": "command", "data": {"agent_id": agent, "command": name} | rest}


async def failure(client: FreeAgentics, message: Message) -> Message:
    """The `command_error` that `message` is answered with, complete, and nothing else."""
    await client.send(message)
    answer = await client.receive()
    assert answer["type"] == "command_error"
    assert answer["timestamp"]
    asked = message["data"]
    assert answer["data"].items() >= {"command": asked["command"], "agent_id": asked["agent_id"]}.items()
    assert answer["data"]["error_message"]
    assert await client.synchronise() == []
    data: Message = answer["data"]
    return data


# --- There and back ---


async def test_commands_reach_an_agent_in_another_process(stage: Stage) -> None:
    """In their order, with their parameters, who sends them and the id that the client gave; seen by its events."""
    async with (
        freeagentics(stage.node, user(stage.workspace, scope=SCOPE, sub=f"{stage.workspace}-boss")) as client,
        freeagentics(stage.node, user(stage.workspace)) as watcher,
    ):
        await watcher.subscribe(["agent_status"])
        for name in COMMANDS[:4]:
            await client.send(command(name, parameters={"graceful": True, "n": [1, None]}, request_id=f"my-{name}"))
        for name in COMMANDS[:4]:
            told = (await watcher.receive())["data"]["told"]
            assert told == {
                "pid": stage.pid,
                "name": name,
                "parameters": {"graceful": True, "n": [1, None]},
                "request_id": f"my-{name}",
                "sender": f"{stage.workspace}-boss",
            }
        # What was done shows in events: the sender, who has subscribed to none, hears nothing.
        assert await client.synchronise() == []


async def test_get_status_is_answered_to_who_has_asked(stage: Stage) -> None:
    """At once, to a client that has subscribed to nothing; to one that has subscribed not twice."""
    async with (
        freeagentics(stage.node, stage.token) as client,
        freeagentics(stage.node, stage.token) as subscriber,
    ):
        await subscriber.subscribe(["agent_status"])
        for asking in (client, subscriber):
            await asking.send(command("get_status", request_id="req_1"))
            answer = await asking.receive(5)
            assert answer["type"] == "agent_status"
            assert answer["timestamp"]
            assert answer["data"] == {
                "agent_id": stage.agent,
                "old_status": "idle",
                "new_status": "idle",
                "pid": stage.pid,
            }
            assert await asking.synchronise() == []


async def test_an_agents_own_code_and_words_pass_through(stage: Stage) -> None:
    async with freeagentics(stage.node, stage.token) as client:
        asked = command("update_config", parameters={"fail": ["CONFIG_REJECTED", "no such model"]}, request_id="r-1")
        told = await failure(client, asked)
    assert (told["error_code"], told["error_message"]) == ("CONFIG_REJECTED", "no such model")
    assert told["request_id"] == "r-1"


async def test_commands_go_on_while_one_is_not_settled(stage: Stage) -> None:
    """Another agent's answer does not wait for it, nor does a second one of the same agent."""
    async with freeagentics(stage.node, stage.token) as client:
        await client.send(command("start", parameters={"silent": True}))
        await client.send(command("get_status"))
        assert (await client.receive(5))["type"] == "agent_status"


# --- Not carried out ---


async def test_each_failure_has_its_own_error_with_the_requests_id(stage: Stage, start_node: StartNode) -> None:
    """The client's own id, in `data` or beside it, else one of ours that is never the same."""
    hasty = start_node(prefix=stage.node.prefix, command_seconds=0.5)
    async with producer(stage.node) as broker:
        published = Event(
            type="agent_status", workspace_id=stage.workspace, agent_id="offline", data={"new_status": "x"}
        )
        await broker.publish(published)
    reader = user(stage.workspace, scope="events:read")
    cases: dict[str, tuple[str, Message]] = {
        "AGENT_NOT_FOUND": (stage.token, command("stop", "nobody")),
        "PERMISSION_DENIED": (reader, command("stop")),
        "INVALID_COMMAND": (stage.token, command("dance")),
        "AGENT_OFFLINE": (stage.token, command("stop", "offline")),
        "TIMEOUT": (stage.token, command("stop", parameters={"silent": True})),
    }
    ours = []
    for code, (whose, message) in cases.items():
        async with freeagentics(hasty, whose) as client:
            inside = message | {"data": message["data"] | {"request_id": "mine-inside"}}
            for asked in (message, inside, message | {"request_id": "mine-beside"}):
                told = await failure(client, asked)
                assert told["error_code"] == code
                wanted = asked["data"].get("request_id") or asked.get("request_id")
                if wanted:
                    assert told["request_id"] == wanted
                else:
                    ours.append(told["request_id"])
    assert all(isinstance(name, str) and name for name in ours)
    assert len(set(ours)) == len(cases)


async def test_a_token_without_a_scope_may_only_read(stage: Stage) -> None:
    async with freeagentics(stage.node, user(stage.workspace)) as client:
        await client.subscribe(["agent_status"])
        for name in COMMANDS:
            assert (await failure(client, command(name)))["error_code"] == "PERMISSION_DENIED"


async def test_the_agent_of_another_workspace_is_unknown(stage: Stage) -> None:
    """As if there were none; and whoever names that workspace is refused."""
    async with freeagentics(stage.node, user(f"{stage.workspace}-b", scope=SCOPE)) as client:
        assert (await failure(client, command("stop")))["error_code"] == "AGENT_NOT_FOUND"
        asked = command("stop", workspace_id=stage.workspace)
        assert (await failure(client, asked))["error_code"] == "PERMISSION_DENIED"


async def test_a_client_of_several_workspaces_reaches_the_one_that_has_the_agent(stage: Stage) -> None:
    async with freeagentics(stage.node, user(f"{stage.workspace}-b", stage.workspace, scope=SCOPE)) as client:
        await client.send(command("get_status"))
        assert (await client.receive(5))["data"]["pid"] == stage.pid
        assert (await failure(client, command("stop", "nobody")))["error_code"] == "AGENT_NOT_FOUND"


async def test_an_agent_that_listens_no_longer_is_offline(start_node: StartNode) -> None:
    """At once, when it ends as it should."""
    node = start_node()
    async with producer(node) as broker, freeagentics(node, user("ws-456", scope=SCOPE)) as client:

        async def listen() -> None:
            async for each in broker.commands("agent_9", workspace_id="ws-456"):
                await each.done({"new_status": "idle"})

        listening = asyncio.create_task(listen())
        await until(lambda: broker.redis.exists(broker.keys.listening("ws-456", "agent_9")))
        await client.send(command("get_status", "agent_9"))
        assert (await client.receive())["type"] == "agent_status"
        listening.cancel()
        await asyncio.wait([listening])
        await until(lambda: absent(broker.redis, broker.keys.listening("ws-456", "agent_9")))
        assert (await failure(client, command("get_status", "agent_9")))["error_code"] == "AGENT_OFFLINE"


async def absent(plain: Any, key: str) -> bool:
    return not await plain.exists(key)


# --- The demo ---


async def test_the_demo_agents_obey(tmp_path: Path) -> None:
    """A stop is seen as an `agent_status` a moment later, by everybody."""
    dev = Dev(tmp_path)
    try:
        await until(lambda: "Ctrl-C ends all of it" in dev.output, 20)
        async with redis.asyncio.from_url(dev.said(r"^  Redis +(\S+)$")) as plain:
            presence = Keyspace("trunkline").listening("ws-456", "agent-456")
            await until(lambda: plain.exists(presence), what="the agent listens")
        credentials = dev.said(r"^(eyJ\S+)$")
        url = f"ws://127.0.0.1:{dev.port}/api/v1/ws?token={credentials}"
        async with websockets.asyncio.client.connect(url, proxy=None) as socket:
            client = FreeAgentics(socket)
            await client.greet()
            await client.subscribe(["agent_status", "agent_updated"], ["agent-456"])
            for name, kind, status in (
                ("stop", "agent_status", "stopped"),
                ("get_status", "agent_status", "stopped"),
                ("update_config", "agent_updated", None),
                ("start", "agent_status", "active"),
                ("restart", "agent_status", "active"),
            ):
                await client.send(command(name, "agent-456", parameters={"model": "large-1"}))
                seen = await client.until(kind, seconds=5)
                while seen["data"].get("new_status") != status:
                    seen = await client.until(kind, seconds=5)
                assert seen["data"]["agent_id"] == "agent-456"
            assert not [message for message in client.messages if "error" in message["type"]]
    finally:
        dev.process.terminate()
        await asyncio.to_thread(dev.process.wait, 15)
