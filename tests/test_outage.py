"""Redis goes and comes back: clients stay, the node says that it is not ready, and afterwards everything goes on."""

import asyncio
from collections.abc import Callable

import pytest

from broker import Broker, Event

from .support import Client, Node, http, maxicore, private_redis, until

pytestmark = pytest.mark.anyio


def progress(step: int) -> Event:
    return Event(type="task.progress", workspace_id="ws-456", agent_id="agent-1", data={"task_id": "t", "step": step})


async def test_clients_stay_while_redis_is_away_and_everything_goes_on_when_it_is_back(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        node = start_node(redis_url=redis.url, heartbeat_seconds=0.3)
        async with (
            Broker.connect(redis.url, prefix=prefix) as broker,
            maxicore(node) as watcher,
            maxicore(node) as newcomer,
        ):
            await watcher.subscribe()
            await watcher.synchronise()
            await broker.publish(progress(1))
            assert (await event(watcher))["step"] == 1

            await asyncio.to_thread(redis.stop)
            await until(lambda: http(node.http("/ready"))[0] == 503)
            assert http(node.http("/ready"))[1]["retry-after"] == "1"
            assert http(node.http("/live"))[0] == 200
            await watcher.synchronise()
            # A subscription that Redis must carry waits for it; a ping is answered all the same.
            await newcomer.subscribe(agent_id="agent-1")
            await newcomer.synchronise()

            await asyncio.to_thread(redis.start)
            await until(lambda: http(node.http("/ready"))[0] == 200)
            await newcomer.synchronise()
            await broker.publish(progress(2))
            assert (await event(watcher))["step"] == 2
            assert (await event(newcomer))["step"] == 2
        assert node.metric("trunkline_feed_reconnects_total") == 1
        assert "Traceback" not in node.output()


async def test_a_redis_that_comes_back_empty_cuts_nobody_off_and_tells_who_keeps_positions(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url)
        async with (
            Broker.connect(redis.url, prefix=prefix) as broker,
            maxicore(node) as plain,
            maxicore(node) as resuming,
        ):
            first = await broker.publish(progress(1))
            await plain.subscribe()
            await resuming.subscribe(since=first)
            await plain.synchronise()
            await resuming.synchronise()
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            await broker.publish(progress(2))
            said = await resuming.receive()
            assert (said["type"], said["since"]) == ("resume.gap", first)
            assert (await event(resuming))["step"] == 2
            assert (await event(plain))["step"] == 2


async def event(client: Client) -> dict[str, object]:
    """The next message that is an event."""
    while (message := await client.receive())["type"] in ("ping", "pong"):
        pass
    return message
