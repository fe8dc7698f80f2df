"""Redis goes and comes back: FreeAgentics' clients stay, are told what cannot be done, and then all goes on by itself.

What limits say meanwhile is decided by each node's own count (DESIGN.md, "Counters").
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker import Broker, Event
from broker.local import LocalRedis

from .freeagentics import QUIET, FreeAgentics, freeagentics, user
from .support import Node, http, private_redis, until
from .test_freeagentics_limits import Clients, active, burst, places_in, refusal, types

pytestmark = pytest.mark.anyio

SETTINGS: dict[str, Any] = QUIET | {"max_connects_per_minute": -1, "command_seconds": 2}
AGENT = "agent_123"


async def is_ready(*nodes: Node) -> None:
    await until(lambda: all(http(node.http("/ready"))[0] == 200 for node in nodes), 20)


async def is_away(*nodes: Node) -> None:
    """Until each says no to its balancer, and is alive all the same."""
    await until(lambda: all(http(node.http("/ready"))[0] == 503 for node in nodes), 20)
    assert [http(node.http("/live"))[0] for node in nodes] == [200] * len(nodes)


def get_status(request_id: str) -> dict[str, Any]:
    return {"type": "command", "data": {"agent_id": AGENT, "command": "get_status", "request_id": request_id}}


async def command(client: FreeAgentics) -> dict[str, Any]:
    """Ask the agent for its status: what comes back, an event's words or an error's."""
    await client.send(get_status("req-1"))
    return await client.until("agent_status", "command_error", seconds=15)


async def is_refused(client: FreeAgentics) -> None:
    """A command cannot travel, and its sender is told so by its own id."""
    error = await command(client)
    assert error["type"] == "command_error"
    asked = {"command": "get_status", "agent_id": AGENT, "request_id": "req-1", "error_code": "UNAVAILABLE"}
    assert asked.items() <= error["data"].items()
    assert error["data"]["error_message"]


async def is_answered(client: FreeAgentics) -> None:
    """A command reaches the agent, as soon as it listens again."""

    async def has_come() -> bool:
        said = await command(client)
        return said["type"] == "agent_status" and said["data"]["new_status"] == "idle"

    await until(has_come, 30)


async def pongs(client: FreeAgentics) -> None:
    """It is there, and answers. Events may come before."""
    assert not [message for message in await client.synchronise() if message["type"] == "disconnect_warning"]


async def refuses(node: Node, credentials: str) -> bool:
    """Whether there is no place. For a second after its last failure a node does not ask Redis."""
    async with freeagentics(node, credentials) as client:
        return client.greeting[0]["type"] == "connection_error"


async def delivers(broker: Broker, *clients: FreeAgentics) -> None:
    """What is published from now on reaches them."""
    name = os.urandom(4).hex()
    data = {"old_status": "pending", "new_status": "active", "reason": name}
    await broker.publish(Event(type="agent_status", workspace_id="ws-456", agent_id=AGENT, data=data))
    for client in clients:
        while (await client.until("agent_status"))["data"].get("reason") != name:
            pass


@contextlib.asynccontextmanager
async def obedient_agent(redis: LocalRedis, prefix: str, done: list[str] | None = None) -> AsyncIterator[Broker]:
    """An agent in a broker of its own, which answers each command. The broker publishes, too.

    The ids of the requests that it was given are added to `done`.
    """
    async with Broker.connect(redis.url, prefix=prefix, workspace_id="ws-456") as broker:

        async def obey() -> None:
            async for one in broker.commands(AGENT):
                if done is not None:
                    done.append(one.request_id)
                await one.done({"new_status": "idle"})

        task = asyncio.create_task(obey())
        try:
            yield broker
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_while_redis_stands_still_each_node_decides_alone_and_then_there_are_five_again(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis() as redis:
        here, there = (start_node(redis_url=redis.url, **SETTINGS) for _ in range(2))
        me = user(scope="events:read commands:send")
        async with (
            obedient_agent(redis, prefix) as broker,
            Clients() as clients,
            places_in(redis.url, prefix) as places,
        ):
            watcher, second = [await clients.join(here, me) for _ in range(2)]
            elsewhere = await clients.join(there, me)
            for client in (watcher, elsewhere):
                await client.subscribe(["agent_status"])
            await delivers(broker, watcher, elsewhere)
            await is_answered(watcher)

            os.kill(redis.pid, signal.SIGSTOP)
            await asyncio.gather(pongs(watcher), pongs(second), pongs(elsewhere))
            await is_refused(second)
            await is_away(here, there)
            # Of its own this node has two, and there is room for three; what the other has it cannot know.
            newcomers = [await clients.join(here, me) for _ in range(3)]
            assert [active(client) for client in newcomers] == [3, 4, 5]
            await refusal(here, me)
            decided = here.metric("trunkline_limit_decisions_total", by="node")
            assert set(types(await burst(newcomers[0], 100))) == {"pong", "rate_limit_warning"}
            [refused] = await burst(newcomers[0], 1)
            assert refused["data"]["error_code"] == "RATE_LIMIT_EXCEEDED"
            assert here.metric("trunkline_limit_decisions_total", by="node") - decided == 100
            await is_refused(watcher)

            os.kill(redis.pid, signal.SIGCONT)
            await is_ready(here, there)
            # Six were live. Redis has room for five: one of those it had not heard of must go.
            await until(lambda: sum(client.socket.close_code is not None for client in newcomers) == 1)
            [lost] = [client for client in newcomers if client.socket.close_code is not None]
            assert (await lost.closed())[0] == 1013
            assert lost.messages[-1]["data"]["error_code"] == "CONNECTION_LIMIT_EXCEEDED"
            await places.are(me, 5)
            for node in (here, there):
                await refusal(node, me)
            await pongs(second)
            await delivers(broker, watcher, elsewhere)
            await is_answered(watcher)
        for node in (here, there):
            assert "Traceback" not in node.output()


async def test_after_a_redis_that_stopped_and_lost_all_its_data_everything_works_again(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis() as redis:
        here, there = (start_node(redis_url=redis.url, **SETTINGS) for _ in range(2))
        me, other = (user(scope="events:read commands:send") for _ in range(2))
        async with obedient_agent(redis, prefix) as broker, Clients() as clients:
            five = [await clients.join((here, there)[number % 2], me) for number in range(5)]
            watcher, elsewhere = five[:2]
            for client in (watcher, elsewhere):
                await client.subscribe(["agent_status", "metrics"])
            await delivers(broker, watcher, elsewhere)
            await watcher.until("metrics_update")
            await is_answered(watcher)

            await asyncio.to_thread(redis.stop)
            await is_away(here, there)
            newcomer = await clients.join(there, other)
            assert active(newcomer) == 1
            for client in (*five, newcomer):
                await pongs(client)
            await is_refused(watcher)
            # A subscription that Redis must carry waits for it, and does not end the connection.
            await newcomer.send({"type": "subscribe", "data": {"events": ["agent_status"]}})
            await newcomer.send({"type": "ping"})
            await newcomer.until("pong")

            await asyncio.to_thread(redis.start)
            await is_ready(here, there)
            async with places_in(redis.url, prefix) as places:
                await places.are(me, 5)
                await places.are(other, 1)
            for node in (here, there):
                await until(lambda node=node: refuses(node, me), what="the fleet's count to decide again")
            await newcomer.until("subscription_confirmed")
            await delivers(broker, watcher, elsewhere, newcomer)
            await is_answered(watcher)
            before = here.metric("trunkline_limit_decisions_total", by="redis")
            await pongs(five[2])
            assert here.metric("trunkline_limit_decisions_total", by="redis") == before + 1
            for client in (watcher, elsewhere):
                client.messages.clear()
                update = await client.until("metrics_update")
                assert AGENT in update["data"]["agents"]
            for client in five:
                await pongs(client)
        for node in (here, there):
            assert "Traceback" not in node.output()


# What a client says behind a subscription of a new channel, which only Redis can begin.
SUBSCRIBE: dict[str, Any] = {"type": "subscribe", "data": {"events": ["agent_status"], "agents": ["another"]}}


async def is_answered_behind_a_subscription(client: FreeAgentics, leaving: FreeAgentics) -> None:
    """What does not build on it does not wait for it, whatever it is."""
    for one in (client, leaving):
        await one.send(SUBSCRIBE)
    for message in (get_status("late"), "{", {"type": "ping"}):
        await client.send(message)
    await leaving.send({"type": "disconnect"})
    refused, malformed, pong = [await client.receive() for _ in range(3)]
    assert (refused["data"]["error_code"], refused["data"]["request_id"]) == ("UNAVAILABLE", "late")
    assert malformed["data"]["error_code"] == "INVALID_MESSAGE_FORMAT"
    assert pong["type"] == "pong"
    assert (await leaving.closed())[0] == 1000


async def test_nobody_waits_behind_a_subscription_for_a_redis_that_is_away_and_no_command_is_done_later(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis(appendonly="yes") as redis:
        node = start_node(redis_url=redis.url, **SETTINGS)
        me, done = user(scope="events:read commands:send"), list[str]()
        async with obedient_agent(redis, prefix, done), Clients() as clients:
            client, leaving = [await clients.join(node, me) for _ in range(2)]
            await is_answered(client)
            await asyncio.to_thread(redis.stop)
            await is_away(node)
            await is_answered_behind_a_subscription(client, leaving)
            await asyncio.to_thread(redis.start)
            await client.until("subscription_confirmed")
            await is_answered(client)
            assert "late" not in done
        assert "Traceback" not in node.output()


async def test_nor_for_one_that_stands_still_and_what_was_on_its_way_is_not_done_either(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis() as redis:
        # What nobody counts asks Redis nothing before it is on its way.
        uncounted = {"max_messages_per_minute": -1, "max_user_messages_per_minute": -1}
        node = start_node(redis_url=redis.url, **(SETTINGS | uncounted))
        me, done = user(scope="events:read commands:send"), list[str]()
        async with obedient_agent(redis, prefix, done), Clients() as clients:
            client, leaving, sending = [await clients.join(node, me) for _ in range(3)]
            await is_answered(client)
            os.kill(redis.pid, signal.SIGSTOP)
            # The node does not know yet that Redis gives no answer.
            await sending.send(get_status("sent"))
            await is_answered_behind_a_subscription(client, leaving)
            refused = await sending.until("command_error")
            assert (refused["data"]["error_code"], refused["data"]["request_id"]) == ("UNAVAILABLE", "sent")
            await is_away(node)
            os.kill(redis.pid, signal.SIGCONT)
            await client.until("subscription_confirmed")
            await is_answered(client)
            assert not {"late", "sent"} & set(done)
        assert "Traceback" not in node.output()


async def test_a_node_that_is_stopped_while_redis_is_away_goes_in_peace(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url, drain_seconds=0.1, **SETTINGS)
        async with freeagentics(node) as client:
            os.kill(redis.pid, signal.SIGSTOP)
            await is_away(node)
            node.signal(signal.SIGTERM)
            assert (await client.closed())[0] == 1012
            assert await asyncio.to_thread(node.wait) == 0
        assert "Traceback" not in node.output()
