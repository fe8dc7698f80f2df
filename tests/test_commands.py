"""Commands: each reaches its agent wherever that lives, at least once, and its sender hears once what became of it."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from broker import Broker, Command, Event, Invalid, Unavailable, address
from broker.commands import Reply, commander, listener
from broker.commands.command import MAX_HELD
from broker.commands.commander import Commander
from broker.commands.settling import Settler
from broker.errors import AgentOffline, AgentUnknown, QueueFull
from broker.keyspace import Keyspace
from broker.local import LocalRedis
from broker.topology import clients

from .proxy import proxy
from .support import private_redis, until

pytestmark = pytest.mark.anyio

WORKSPACE, AGENT = "ws-456", "agent-123"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and ends that tests can wait for."""
    monkeypatch.setattr(listener, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(listener, "LISTENING_SECONDS", 1.5)
    monkeypatch.setattr(listener, "BLOCK_MS", 50)
    monkeypatch.setattr(commander, "BLOCK_MS", 50)


class Sender:
    """A node's end: its commander, running, and what it was told."""

    def __init__(self, redis: Redis, keys: Keyspace, commander: Commander, replies: list[Reply]) -> None:
        self.redis, self.keys, self.commander, self.replies = redis, keys, commander, replies

    async def send(self, name: str = "stop", agent: str = AGENT, seconds: float = 20.0, **more: Any) -> str:
        """As soon as somebody listens."""
        workspace = more.pop("workspace", WORKSPACE)
        presence = self.keys.listening(workspace, agent)
        await until(lambda: self.redis.exists(presence))
        return await self.command(name, agent, seconds, workspace=workspace, **more)

    async def command(self, name: str = "stop", agent: str = AGENT, seconds: float = 20.0, **more: Any) -> str:
        return await self.commander.send(
            more.get("workspace", WORKSPACE), agent, name, more.get("parameters", {}),
            request_id=more.get("request_id", "req-1"), sender="user-1", seconds=seconds,
        )  # fmt: skip

    async def reply(self, key: str) -> Reply:
        found: list[Reply] = await until(lambda: [reply for reply in self.replies if reply.key == key])
        return found[0]

    async def pending(self, agent: str = AGENT) -> int:
        """Commands that were fetched by somebody and not settled."""
        found = await self.redis.xpending(self.keys.commands(WORKSPACE, agent), "agent")
        return int(found["pending"])

    async def queued(self, agent: str = AGENT) -> int:
        return int(await self.redis.xlen(self.keys.commands(WORKSPACE, agent)))


@contextlib.asynccontextmanager
async def sending(url: str, prefix: str, *, node: str = "n1", is_running: bool = True) -> AsyncIterator[Sender]:
    where, keys = address.read(url), Keyspace(prefix)
    redis = clients.client(where, "test-node")
    replies: list[Reply] = []
    sender = Sender(redis, keys, Commander(redis, where, keys, node, replies.append), replies)
    task = asyncio.create_task(sender.commander.run()) if is_running else None
    try:
        yield sender
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await redis.aclose()


@contextlib.asynccontextmanager
async def listening(broker: Broker, agent: str = AGENT, workspace: str = WORKSPACE) -> AsyncIterator[list[Command]]:
    """The commands that an agent was given so far; it settles none."""
    given: list[Command] = []

    task = asyncio.create_task(_collect(broker.commands(agent, workspace_id=workspace), given))
    try:
        yield given
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _collect(commands: AsyncGenerator[Command, None], given: list[Command]) -> None:
    async with contextlib.aclosing(commands):
        async for command in commands:
            given.append(command)  # noqa: PERF401 (what came is seen at once)


async def first(given: list[Command], number: int = 1) -> list[Command]:
    await until(lambda: len(given) >= number)
    return given[:number]


# -- there and back


async def test_a_command_reaches_its_agent_and_its_result_the_sender(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker,
        sending(redis_url, prefix) as sender,
        contextlib.aclosing(broker.commands(AGENT)) as commands,
    ):
        coming = asyncio.ensure_future(anext(commands))
        key = await sender.send("update_config", parameters={"model": "large-1", "deep": [1, {"ü": None}]})
        command = await coming
        assert (command.workspace_id, command.agent_id, command.name) == (WORKSPACE, AGENT, "update_config")
        assert command.parameters == {"model": "large-1", "deep": [1, {"ü": None}]}
        assert (command.request_id, command.sender) == ("req-1", "user-1")
        seconds, microseconds = await sender.redis.time()
        assert 15_000 < command.deadline - (seconds * 1000 + microseconds / 1000) <= 20_000
        assert await sender.commander.waiting(WORKSPACE) == 1
        await command.done({"new_status": "idle", "load": 0.5})
        assert await sender.reply(key) == Reply(key, "done", result={"new_status": "idle", "load": 0.5})
        assert await sender.commander.waiting(WORKSPACE) == 0
        assert (await sender.queued(), await sender.pending(), sender.commander.pending) == (0, 0, 0)


async def test_a_failure_reaches_the_sender_with_its_code_and_message(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        keys = [await sender.send(name) for name in ("start", "restart")]
        plain, odd = await first(given, 2)
        await plain.failed("CONFIG_REJECTED", "no such model")
        await odd.failed("A", "\ud800" + "x" * 5000)
        assert await sender.reply(keys[0]) == Reply(keys[0], "failed", "CONFIG_REJECTED", "no such model")
        assert await sender.reply(keys[1]) == Reply(keys[1], "failed", "A", "?" + "x" * 999)


async def test_two_nodes_hear_what_became_of_their_own_commands(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix, node="n1") as one,
        sending(redis_url, prefix, node="n2") as other,
        listening(broker) as given,
    ):
        keys = [await one.send(), await other.send()]
        for command in await first(given, 2):
            await command.done()
        assert await one.reply(keys[0]) == Reply(keys[0], "done")
        assert await other.reply(keys[1]) == Reply(keys[1], "done")
        assert [len(one.replies), len(other.replies)] == [1, 1]


async def test_commands_of_one_agent_come_in_order_and_several_may_be_in_hand(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        for number in range(60):
            await sender.send(parameters={"number": number})
        commands = await first(given, 60)
        assert [command.parameters["number"] for command in commands] == list(range(60))
        for command in reversed(commands):
            await command.done()
        await until(lambda: len(sender.replies) == 60)
        assert await sender.pending() == 0


async def test_equal_agents_of_two_workspaces_do_not_hear_each_other(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix, workspace_id="ws-1") as broker,
        sending(redis_url, prefix) as sender,
        listening(broker, workspace="ws-1") as given,
        listening(broker, workspace="ws-2") as others,
    ):
        keys = {name: await sender.send(workspace=name, parameters={"to": name}) for name in ("ws-1", "ws-2")}
        for commands, name in ((given, "ws-1"), (others, "ws-2")):
            (command,) = await first(commands)
            assert (command.workspace_id, command.parameters) == (name, {"to": name})
            await command.done()
            await sender.reply(keys[name])
        assert [len(given), len(others)] == [1, 1]
        assert [await sender.commander.waiting(name) for name in keys] == [0, 0]


async def test_two_listeners_for_an_agent_share_its_commands(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        Broker.connect(redis_url, prefix=prefix) as elsewhere,
        sending(redis_url, prefix) as sender,
        listening(broker) as one,
        listening(broker) as other,
        listening(elsewhere) as third,
    ):
        for number in range(90):
            await sender.send(parameters={"number": number})
        await until(lambda: len(one + other + third) == 90)
        assert sorted(command.parameters["number"] for command in one + other + third) == list(range(90))


# -- what it refuses


async def test_an_agent_that_nobody_ever_heard_of_is_unknown_and_one_that_left_is_offline(
    redis_url: str, prefix: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, sending(redis_url, prefix) as sender:
        with pytest.raises(AgentUnknown):
            await sender.command()
        await broker.publish(Event(type="agent.online", workspace_id=WORKSPACE, agent_id=AGENT))
        with pytest.raises(AgentOffline):
            await sender.command()
        with pytest.raises(AgentUnknown):
            await sender.command(workspace="ws-other")
        async with listening(broker, "agent-listened"):
            await sender.send(agent="agent-listened")
        await until(lambda: _is_gone(sender, "agent-listened"))
        with pytest.raises(AgentOffline):
            await sender.command(agent="agent-listened")
        assert sender.commander.pending == 1


async def _is_gone(sender: Sender, agent: str) -> bool:
    return not await sender.redis.exists(sender.keys.listening(WORKSPACE, agent))


async def test_the_workspaces_where_an_agent_is_known_are_found(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker, workspace="ws-2"),
    ):
        await broker.publish(Event(type="agent.online", workspace_id="ws-4", agent_id=AGENT))
        await until(lambda: sender.redis.exists(sender.keys.listening("ws-2", AGENT)))
        assert await sender.commander.find(["ws-1", "ws-2", "ws-3", "ws-4"], AGENT) == ["ws-2", "ws-4"]
        assert await sender.commander.find([], AGENT) == []
        with pytest.raises(Invalid, match=r"^agent_id"):
            await sender.commander.find(["ws-1"], "\ud800")


async def test_a_full_queue_and_a_node_with_too_much_pending_take_no_more(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        monkeypatch.setattr(commander, "MAX_QUEUED", 3)
        for _ in range(3):
            await sender.send()
        with pytest.raises(QueueFull, match="agent"):
            await sender.send()
        for command in await first(given, 3):
            await command.done()
        await sender.send()
        monkeypatch.setattr(commander, "MAX_PENDING", 1)
        await until(lambda: sender.commander.pending == 1)
        with pytest.raises(QueueFull, match="node"):
            await sender.send()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"name": "explode"}, "name"),
        ({"agent": ""}, "agent_id"),
        ({"workspace": "{ws}"}, "workspace_id"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": 3601}, "seconds"),
        ({"parameters": {"text": "x" * 65536}}, "parameters"),
        ({"parameters": {"text": "\ud800"}}, "parameters"),
    ],
)
async def test_what_is_no_command_is_invalid(redis_url: str, prefix: str, given: dict[str, Any], path: str) -> None:
    async with sending(redis_url, prefix, is_running=False) as sender:
        with pytest.raises(Invalid) as invalid:
            await sender.command(**given)
        assert invalid.value.path == path
        assert sender.commander.pending == 0
        await sender.commander._replies.aclose()


async def test_listening_needs_a_workspace_and_an_id(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        with pytest.raises(Invalid, match=r"^workspace_id"):
            broker.commands(AGENT)
        with pytest.raises(Invalid, match=r"^workspace_id"):
            broker.commands(AGENT, workspace_id="a}")
        with pytest.raises(Invalid, match=r"^agent_id"):
            broker.commands("", workspace_id=WORKSPACE)


async def test_a_settlement_that_cannot_travel_is_invalid_and_the_command_stays_in_hand(
    redis_url: str, prefix: str
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        key = await sender.send()
        (command,) = await first(given)
        for result in ({"a": object()}, {"a": "x" * 65536}, ["a"], {"a": "\ud800"}):
            with pytest.raises(Invalid, match=r"^result"):
                await command.done(result)  # type: ignore[arg-type]
        for code in ("", "lower", "A-B", "1A", "A\n", "A" * 65, None):
            with pytest.raises(Invalid, match=r"^code"):
                await command.failed(code, "why")  # type: ignore[arg-type]
        await command.done()
        assert await sender.reply(key) == Reply(key, "done")


async def test_a_redis_that_is_away_or_silent_makes_senders_hear_unavailable(
    redis: LocalRedis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commander, "PATIENCE_SECONDS", 0.3)
    async with proxy(redis.port) as middle, sending(middle.url, prefix) as sender:
        await sender.redis.set(sender.keys.listening(WORKSPACE, AGENT), "somebody")
        await sender.send()
        calls: list[Callable[[], Any]] = [
            sender.command,
            lambda: sender.commander.find([WORKSPACE], AGENT),
            lambda: sender.commander.waiting(WORKSPACE),
        ]
        middle.pause()
        for call in calls:
            with pytest.raises(Unavailable):
                await call()
        middle.go_on()
        await sender.command()
        middle.lose_answers(1000)
        for call in calls:
            with pytest.raises(Unavailable):
                await call()
        middle.lose_answers(0)
        await sender.command()
        assert sender.commander.pending == 3


async def test_what_a_redis_that_stood_still_takes_up_too_late_is_not_done(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was told that it could not be sent, and may have thought of something else."""
    with private_redis() as redis:
        async with (
            Broker.connect(redis.url, prefix=prefix) as broker,
            sending(redis.url, prefix) as sender,
            listening(broker) as given,
        ):
            seconds, microseconds = await sender.redis.time()
            sender.commander.tick(seconds + microseconds / 1e6)
            await sender.send("start")
            await first(given)
            os.kill(redis.pid, signal.SIGSTOP)
            with monkeypatch.context() as impatient:
                impatient.setattr(commander, "PATIENCE_SECONDS", 0.2)
                with pytest.raises(Unavailable):
                    await sender.command("stop")
            given_up = time.time()
            await until(lambda: time.time() > given_up + 0.01)  # Redis counts in milliseconds
            os.kill(redis.pid, signal.SIGCONT)
            await sender.command("restart")
            assert [command.name for command in await first(given, 2)] == ["start", "restart"]
            assert await sender.queued() == 2
            assert await sender.commander.waiting(WORKSPACE) == 2


# -- at least once


async def test_what_a_listener_leaves_unsettled_the_next_one_gets(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        Broker.connect(redis_url, prefix=prefix) as elsewhere,
        sending(redis_url, prefix) as sender,
    ):
        async with listening(broker) as given:
            keys = [await sender.send(parameters={"number": number}) for number in range(5)]
            taken = await first(given, 5)
            await taken[2].done()
        async with listening(broker) as again:
            assert [command.id for command in await first(again, 4)] == [taken[i].id for i in (0, 1, 3, 4)]
        async with listening(elsewhere) as others:
            moved = await first(others, 4)
            assert moved == [taken[i] for i in (0, 1, 3, 4)]
            for command in moved:
                await command.done()
        for key in keys:
            await sender.reply(key)
        assert (await sender.pending(), len(sender.replies)) == (0, 5)


async def test_what_one_of_two_in_a_process_leaves_the_other_gets_at_once_and_in_order(
    redis_url: str, prefix: str
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        contextlib.aclosing(broker.commands(AGENT, workspace_id=WORKSPACE)) as commands,
    ):
        coming = asyncio.ensure_future(anext(commands))
        await sender.send(parameters={"number": 0})
        taken = [await coming]
        for number in (1, 2):
            await sender.send(parameters={"number": number})
            taken.append(await anext(commands))
        async with listening(broker) as others:
            await commands.aclose()
            assert await first(others, 3) == taken
            # It may still be settled by whoever had it, once.
            await taken[0].done()
            await others[0].failed("LATE", "")
            await until(lambda: len(sender.replies) == 1)
            assert sender.replies[0].outcome == "done"


SILENT_AGENT = """
import asyncio, sys
from broker import Broker
from broker.commands import listener
listener.BEAT_SECONDS, listener.BLOCK_MS = 0.1, 50
async def main(url, prefix):
    async with Broker.connect(url, prefix=prefix, workspace_id="ws-456") as broker:
        async for command in broker.commands("agent-123"):
            print(command.id, flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_what_a_killed_listener_held_is_taken_over_when_it_was_idle_for_long_enough(
    redis_url: str, prefix: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, sending(redis_url, prefix) as sender:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SILENT_AGENT, redis_url, prefix, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        key = await sender.send()
        id_ = (await process.stdout.readline()).decode().strip()
        async with listening(broker) as given:
            await until(lambda: _consumers(sender, 2))
            # As long as the other lives, nothing is taken from it.
            beats = await _beats(sender)
            await until(lambda: _beats_since(sender, beats, 25))
            assert given == []
            process.send_signal(signal.SIGKILL)
            await process.wait()
            (command,) = await first(given)
            assert command.id == id_
            await command.done()
            assert (await sender.reply(key)).outcome == "done"
            # The dead consumer is swept away, and nothing is left of it.
            await until(lambda: _consumers(sender, 1))
            assert await sender.pending() == 0


async def _consumers(sender: Sender, number: int) -> bool:
    return len(await sender.redis.xinfo_consumers(sender.keys.commands(WORKSPACE, AGENT), "agent")) == number


async def _beats(sender: Sender) -> int:
    """Scripts that this Redis ran: beats, mostly."""
    return int((await sender.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


async def _beats_since(sender: Sender, before: int, number: int) -> bool:
    return await _beats(sender) >= before + number


async def test_what_a_live_listener_works_on_for_long_is_not_given_to_another(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        Broker.connect(redis_url, prefix=prefix) as elsewhere,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        key = await sender.send()
        (command,) = await first(given)
        async with listening(elsewhere) as others:
            seconds, _ = await sender.redis.time()

            async def is_later() -> bool:
                return (await sender.redis.time())[0] > seconds + 2  # four times idle

            await until(is_later)
            assert (len(given), others) == (1, [])
            await command.done()
            assert (await sender.reply(key)).outcome == "done"


async def test_a_lost_read_is_read_again(redis: LocalRedis, prefix: str) -> None:
    async with (
        proxy(redis.port) as middle,
        Broker.connect(middle.url, prefix=prefix) as broker,
        sending(redis.url, prefix) as sender,
        listening(broker) as given,
    ):
        keys = []
        for number in range(15):
            middle.lose_answers(number % 3)
            keys.append(await sender.send(parameters={"number": number}))
            *_, command = await first(given, number + 1)
            assert command.parameters == {"number": number}
        middle.lose_answers(0)
        assert middle.lost >= 10
        for command in given:
            middle.lose_answers(1)
            await command.done()
        for key in keys:
            assert (await sender.reply(key)).outcome == "done"
        assert (len(given), len(sender.replies), await sender.pending()) == (15, 15, 0)


async def test_an_agent_that_takes_nothing_has_a_bounded_number_fetched(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        contextlib.aclosing(broker.commands(AGENT, workspace_id=WORKSPACE)) as commands,
    ):
        coming = asyncio.ensure_future(anext(commands))
        for _ in range(3 * MAX_HELD):
            await sender.send()
        command = await coming
        await until(lambda: _is_full(sender))
        before = await _beats(sender)
        await until(lambda: _beats_since(sender, before, 5))
        assert await sender.pending() <= MAX_HELD
        for _ in range(3 * MAX_HELD - 1):
            await command.done()
            command = await anext(commands)
        await command.done()
        await until(lambda: len(sender.replies) == 3 * MAX_HELD)


async def _is_full(sender: Sender) -> bool:
    return await sender.pending() > MAX_HELD - listener.READ_COMMANDS


async def test_what_is_no_command_is_dropped_and_the_next_one_comes(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        stream = sender.keys.commands(WORKSPACE, AGENT)
        for words in (b"\xff", b"[]", b'{"deadline":"soon-secret"}', b"[" * 5000):
            await sender.redis.xadd(stream, {"c": words})
        await sender.redis.xadd(stream, {"other": "c"})
        await sender.redis.xadd(sender.keys.replies("n1"), {"r": '{"key":"secret"}'})
        key = await sender.send()
        (command,) = await first(given)
        await command.done()
        await sender.reply(key)
        await until(lambda: _is_empty(sender))
        assert len(given) == 1
        assert "is dropped" in caplog.text
        assert "secret" not in caplog.text


async def _is_empty(sender: Sender) -> bool:
    return await sender.queued() == 0 == await sender.pending()


async def test_an_entry_that_was_deleted_alone_leaves_no_trace(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, sending(redis_url, prefix) as sender:
        async with listening(broker) as given:
            await sender.send()
            (command,) = await first(given)
            await sender.redis.xdel(sender.keys.commands(WORKSPACE, AGENT), command.id)
        async with listening(broker) as again:
            await until(lambda: _is_empty(sender))
            assert again == []


# -- deadlines


async def test_a_silent_agent_gives_a_timeout_once_and_its_command_is_withdrawn(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        key = await sender.send(seconds=0.3)
        (command,) = await first(given)
        assert await sender.reply(key) == Reply(key, "timeout")
        await until(lambda: _is_empty(sender))
        await command.done()
        await command.failed("TOO_LATE", "")
        assert await sender.redis.exists(sender.keys.replies("n1")) == 0
        assert await sender.commander.waiting(WORKSPACE) == 0
        # The one after it is heard all the same, and nothing of the first came again.
        key = await sender.send()
        await (await first(given, 2))[1].done()
        assert (await sender.reply(key)).outcome == "done"
        assert len(sender.replies) == 2


async def test_a_command_past_its_deadline_is_never_handed_out_though_nobody_withdrew_it(
    redis_url: str, prefix: str
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix, is_running=False) as sender,
    ):
        presence = sender.keys.listening(WORKSPACE, AGENT)
        await sender.redis.set(presence, "somebody")
        for number in range(30):
            await sender.send(seconds=0.1, parameters={"number": number})
        assert await sender.commander.waiting(WORKSPACE) > 0

        async def is_over() -> bool:
            return await sender.commander.waiting(WORKSPACE) == 0

        await until(is_over)
        key = await sender.send(parameters={"number": 30})
        async with listening(broker) as given:
            (command,) = await first(given)
            assert command.parameters == {"number": 30}
            await command.done()
            await until(lambda: _is_empty(sender))
            assert len(given) == 1
        (reply,) = await sender.redis.xrange(sender.keys.replies("n1"))
        assert msgspec.json.decode(reply[1][b"r"])["key"] == key
        await sender.commander._replies.aclose()


async def test_settling_twice_tells_the_sender_once(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        key = await sender.send()
        (command,) = await first(given)
        await asyncio.gather(command.done({"first": True}), command.failed("SECOND", ""), command.done())
        await command.failed("THIRD", "")
        assert await sender.reply(key) == Reply(key, "done", result={"first": True})
        assert await sender.redis.xlen(sender.keys.replies("n1")) == 1


async def test_a_reply_that_comes_twice_is_handed_on_once(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        keys = [await sender.send(), await sender.send()]
        commands = await first(given, 2)
        await commands[0].done()
        replies = sender.keys.replies("n1")
        (reply,) = await until(lambda: sender.redis.xrange(replies))
        await sender.redis.xadd(replies, reply[1])
        await commands[1].done()
        await sender.reply(keys[1])
        assert [reply.key for reply in sender.replies] == keys


async def test_what_is_forgotten_is_not_told_and_the_agent_does_it_all_the_same(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        sender.commander.forget(await sender.send())
        key = await sender.send()
        for command in await first(given, 2):
            await command.done()
        await sender.reply(key)
        assert [reply.key for reply in sender.replies] == [key]
        assert sender.commander.pending == 0


async def test_a_reply_that_is_faster_than_the_answer_to_its_sender_waits_for_it(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        await until(lambda: sender.redis.exists(sender.keys.listening(WORKSPACE, AGENT)))
        run = sender.commander._command.run

        async def slow(keys: Any, arguments: Any) -> Any:
            answer = await run(keys, arguments)
            await (await first(given))[0].done()
            await until(lambda: next(iter(sender.commander._pending.values())).reply)
            return answer

        monkeypatch.setattr(sender.commander._command, "run", slow)
        key = await sender.command()
        assert sender.replies == []
        assert await sender.reply(key) == Reply(key, "done")


async def test_a_bug_in_what_takes_replies_harms_no_other(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):

        def fail(reply: Reply) -> None:
            sender.replies.append(reply)
            raise LookupError("a bug")

        sender.commander._on_reply = fail
        keys = [await sender.send(), await sender.send()]
        for command in await first(given, 2):
            await command.done()
        for key in keys:
            await sender.reply(key)
        assert caplog.text.count("LookupError: a bug") == 2


# -- presence


async def test_an_agent_is_present_while_somebody_listens(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        Broker.connect(redis_url, prefix=prefix) as elsewhere,
        sending(redis_url, prefix) as sender,
    ):
        presence = sender.keys.listening(WORKSPACE, AGENT)
        async with listening(broker):
            await until(lambda: sender.redis.exists(presence))
            async with listening(elsewhere):
                await until(lambda: _consumers(sender, 2))
            # One left: the other is still there.
            await until(lambda: _consumers(sender, 1))
            assert await sender.redis.exists(presence)
            await until(lambda: _is_renewed(sender, presence))
        await until(lambda: _is_gone(sender, AGENT))


async def _is_renewed(sender: Sender, presence: str) -> bool:
    return int(await sender.redis.pttl(presence)) > 1300


async def test_an_agent_that_is_cancelled_while_it_settles_ends(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though redis-py can swallow a cancellation that comes together with Redis' answer, as is played here."""
    send = Settler._send

    async def send_and_be_cancelled(*arguments: Any) -> None:
        await send(*arguments)
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    async def obey() -> None:
        async for command in broker.commands(AGENT, workspace_id=WORKSPACE):
            await command.done()

    monkeypatch.setattr(Settler, "_send", send_and_be_cancelled)
    async with Broker.connect(redis_url, prefix=prefix) as broker, sending(redis_url, prefix) as sender:
        agent = asyncio.create_task(obey())
        key = await sender.send()
        assert await sender.reply(key) == Reply(key, "done")
        ended, _ = await asyncio.wait([agent], timeout=3)
        agent.cancel()
        assert ended == {agent}
        assert agent.cancelled()
        assert await sender.queued() == 0


async def test_a_broker_that_closes_ends_its_iterators_and_their_presence(redis_url: str, prefix: str) -> None:
    async with sending(redis_url, prefix) as sender:
        async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
            given: list[Command] = []
            agents = (AGENT, AGENT, "agent-456")
            tasks = [asyncio.create_task(_collect(broker.commands(agent), given)) for agent in agents]
            await sender.send()
            await sender.send(agent="agent-456")
            await first(given, 2)
        await asyncio.gather(*tasks)
        assert await _is_gone(sender, AGENT)
        assert await _is_gone(sender, "agent-456")


async def test_a_thousandth_agent_needs_no_connection_of_its_own(redis_url: str, prefix: str) -> None:
    agents = [f"agent-{number}" for number in range(200)]
    async with (
        Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker,
        sending(redis_url, prefix) as sender,
        contextlib.AsyncExitStack() as stack,
    ):
        given = {agent: await stack.enter_async_context(listening(broker, agent)) for agent in agents}
        sent = {agent: await sender.send(agent=agent) for agent in agents}
        for agent in agents:
            (command,) = await first(given[agent])
            assert command.agent_id == agent
            await command.done({"agent": agent})
        for agent, key in sent.items():
            assert (await sender.reply(key)).result == {"agent": agent}
        names = [client["name"] for client in await sender.redis.client_list()]
        assert names.count("trunkline-commands") == 1


async def test_when_nobody_listens_any_more_the_connection_is_given_back(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker,
        sending(redis_url, prefix) as sender,
    ):
        for _ in range(2):
            async with listening(broker) as given:
                await sender.send()
                await (await first(given))[0].done()
            await until(lambda: _is_disconnected(sender))
            await until(lambda: _is_gone(sender, AGENT))


async def _is_disconnected(sender: Sender) -> bool:
    return "trunkline-commands" not in [client["name"] for client in await sender.redis.client_list()]


# -- outages and costs


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_restart_of_redis_is_survived_with_one_line_of_log(
    prefix: str, caplog: pytest.LogCaptureFixture, is_kept: bool
) -> None:
    caplog.set_level(logging.INFO)
    options = {"appendonly": "yes", "appendfsync": "always"} if is_kept else {}
    with private_redis(**options) as redis:
        async with (
            Broker.connect(redis.url, prefix=prefix) as broker,
            sending(redis.url, prefix) as sender,
            listening(broker) as given,
        ):
            key = await sender.send()
            (command,) = await first(given)
            await asyncio.to_thread(redis.stop)
            settling = asyncio.create_task(command.done())
            with pytest.raises(Unavailable):
                await sender.command()
            # Both ends have seen it.
            await until(lambda: {"trunkline.commands", "trunkline.commander"} <= {one.name for one in caplog.records})
            await asyncio.to_thread(redis.start)
            await settling
            assert (await sender.reply(key)).outcome == "done"
            key = await sender.send()
            (_, command) = await first(given, 2)
            await command.done()
            assert (await sender.reply(key)).outcome == "done"
    names = [one.name for one in caplog.records if one.name.startswith("trunkline.")]
    assert sorted(names) == ["trunkline.commander", "trunkline.commands"]


async def test_a_stream_that_was_deleted_is_made_again(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
        listening(broker, "agent-456") as others,
    ):
        stream = sender.keys.commands(WORKSPACE, AGENT)
        for number in range(1, 6):
            await sender.send()
            await sender.send(agent="agent-456")
            await (await first(given, number))[-1].done()
            await (await first(others, number))[-1].done()
            await sender.redis.delete(stream)
        await until(lambda: len(sender.replies) == 10)


async def test_timeouts_are_told_while_redis_is_away(prefix: str) -> None:
    with private_redis() as redis:
        async with (
            Broker.connect(redis.url, prefix=prefix) as broker,
            sending(redis.url, prefix) as sender,
            listening(broker),
        ):
            key = await sender.send(seconds=0.5)
            await asyncio.to_thread(redis.stop)
            assert await sender.reply(key) == Reply(key, "timeout")
            await asyncio.to_thread(redis.start)


async def test_a_command_is_one_round_trip(prefix: str) -> None:
    with private_redis() as redis:
        async with sending(redis.url, prefix, is_running=False) as sender:
            await sender.redis.set(sender.keys.listening(WORKSPACE, AGENT), "somebody")
            await sender.command()
            await sender.redis.config_resetstat()
            for _ in range(10):
                await sender.command()
            stats = await sender.redis.info("commandstats")
            assert stats["cmdstat_evalsha"]["calls"] == 10
            calls = sum(numbers["calls"] for name, numbers in stats.items() if not _is_inside(name))
            assert calls == 10 + 1  # and CONFIG RESETSTAT
            await sender.commander._replies.aclose()


def _is_inside(name: str) -> bool:
    """What scripts call, and what connecting does."""
    inside = (
        "exists",
        "xlen",
        "time",
        "xadd",
        "expire",
        "zadd",
        "zscore",
        "hmget",
        "client",
        "hello",
        "select",
        "info",
    )
    return name.removeprefix("cmdstat_").partition("|")[0] in inside


async def test_keys_do_not_outlive_their_use(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        sending(redis_url, prefix) as sender,
        listening(broker) as given,
    ):
        await sender.send()
        await (await first(given))[0].done()
        await sender.send()
        kinds = ("commands", "listening", "waiting", "replies")
        names = [name async for name in sender.redis.scan_iter(f"{prefix}:*") if name.decode().split(":")[1] in kinds]
        assert len(names) == len(kinds)
        assert all([0 < await sender.redis.ttl(name) <= 3600 for name in names])
