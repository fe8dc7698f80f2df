"""Behind a gap a client gets all that is live from then on, and no part of what came before."""

import asyncio
from collections.abc import Callable

import pytest

from broker import Broker, Event

from .proxy import proxy
from .support import Node, maxicore, private_redis

pytestmark = pytest.mark.anyio


def progress(step: int, agent: str) -> Event:
    return Event(type="task.progress", workspace_id="ws-456", agent_id=agent, data={"task_id": "t", "step": step})


async def test_who_comes_back_with_a_lost_position_is_not_given_a_part_of_what_others_missed(
    prefix: str, start_node: Callable[..., Node]
) -> None:
    """The node hears one agent for somebody else, and heals that one's events while the client's channels join."""
    with private_redis() as redis:
        async with proxy(redis.port) as middle, Broker.connect(redis.url, prefix=prefix) as broker:
            node = await asyncio.to_thread(start_node, redis_url=middle.url)
            async with maxicore(node) as other, maxicore(node) as client:
                await other.subscribe(agent_id="agent-1")
                await other.synchronise()
                await broker.publish(progress(1, "agent-1"))
                assert (await other.receive())["step"] == 1
                middle.pause()
                middle.cut()
                await broker.publish_many([progress(2, "agent-1"), progress(3, "agent-2")])
                await client.subscribe(since="1-1")
                middle.go_on()
                assert (await other.receive())["step"] == 2
                assert (await client.receive())["type"] == "resume.gap"
                assert await client.synchronise() == []
                await broker.publish_many([progress(4, "agent-1"), progress(5, "agent-2")])
                assert [(await client.receive())["step"] for _ in range(2)] == [4, 5]
