"""Around a failover the log may be read from the new master while the feed still hears the old one."""

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from broker import Broker, Event

from .proxy import proxy
from .support import Client, Node, maxicore, private_redis, until

pytestmark = pytest.mark.anyio


def progress(step: int) -> Event:
    return Event(type="task.progress", workspace_id="ws-456", agent_id="agent-1", data={"task_id": "t", "step": step})


async def steps_to(client: Client, last: int) -> list[int]:
    """All steps up to this one, as they come."""
    steps: list[int] = []
    while not steps or steps[-1] != last:
        message = await client.receive()
        assert message["type"] in ("task.progress", "ping")
        steps += [message["step"]] if "step" in message else []
    return steps


async def test_who_resumes_between_two_masters_gets_nothing_twice(prefix: str, start_node: Callable[..., Node]) -> None:
    with private_redis() as old, private_redis() as new:
        async with (
            proxy(old.port) as middle,
            Redis(port=old.port) as demoted,
            Redis(port=new.port) as promoted,
            Broker.connect(old.url, prefix=prefix) as before,
        ):
            node = await asyncio.to_thread(start_node, redis_url=middle.url)
            async with maxicore(node) as resident, maxicore(node) as client, maxicore(node) as ahead:
                await resident.subscribe()
                await resident.synchronise()
                first = await before.publish(progress(0))
                assert await steps_to(resident, 0) == [0]
                await promoted.replicaof("127.0.0.1", old.port)
                await until(lambda: is_replica_of(promoted))
                await promoted.replicaof("NO", "ONE")

                # Commands go to the new master from now on, and the feed has not noticed anything.
                middle.target = new.port
                await demoted.client_kill_filter(_type="normal", skipme=True)
                async with Broker.connect(new.url, prefix=prefix) as after:
                    second = await after.publish(progress(1))
                    await client.subscribe(since=first)
                    assert await steps_to(client, 1) == [1]
                    # Another node, which was sooner to notice, has given it to this one already.
                    await ahead.subscribe(since=second)
                    # They are not live yet: they wait for the feed to know of what they were given.
                    reads = await reads_of_log(promoted)
                    await until(lambda: has_read_more(promoted, reads + 5))
                    await demoted.client_kill_filter(_type="pubsub")
                    assert await steps_to(resident, 1) == [1]
                    await after.publish(progress(2))
                    assert await steps_to(client, 2) == [2]
                    assert await steps_to(ahead, 2) == [2]
                    assert await steps_to(resident, 2) == [2]


async def is_replica_of(redis: Redis) -> bool:
    return bool((await redis.info("replication"))["master_link_status"] == "up")


async def reads_of_log(redis: Redis) -> int:
    return int((await redis.info("commandstats"))["cmdstat_xrange"]["calls"])


async def has_read_more(redis: Redis, than: int) -> bool:
    return await reads_of_log(redis) > than
