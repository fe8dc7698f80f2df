"""The publisher: a process on the load's core that publishes what the load generator asks for, when it asks.

    python -m tests.bench.publisher WAY DIALECT REDIS_PORT PREFIX AGENTS

It prints `ready`, then reads lines `COUNT RATE` from standard input: publish so many more events, as fast as it goes
(`RATE` 0) or so many per second. Events go to the agents in turn. It ends with its standard input, and with status 1
when a publish fails. The ways:

    log    `Broker.publish_many`: through the log, as producers should, an event of DIALECT
    live   plain PUBLISH of the event's JSON on the agent's channel: what any Redis client can do
    ready  plain PUBLISH, on a channel with the agent's name, of what a client would be sent: for the baseline;
           `ready-log` is the same with a position in it, as events have that came through the log
"""

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from . import payload

Publish = Callable[[list[tuple[str, int]]], Awaitable[None]]
"""Publish an event for each (agent, sequence number), in order."""


async def through_the_log(stack: AsyncExitStack, dialect: str, port: int, prefix: str) -> Publish:
    # Imported here: the baseline is measured even where the broker cannot be imported.
    from broker import Broker, Event  # noqa: PLC0415

    broker = await stack.enter_async_context(Broker.connect(f"redis://127.0.0.1:{port}/0", prefix=prefix))

    def make(agent: str, sequence: int) -> Event:
        kind, data = payload.event(dialect, sequence)
        return Event(type=kind, workspace_id=payload.WORKSPACE, agent_id=agent, data=data)

    async def publish(batch: list[tuple[str, int]]) -> None:
        await broker.publish_many([make(agent, sequence) for agent, sequence in batch])

    return publish


def plainly(port: int, channel: Callable[[str], str], encode: Callable[[str, int], bytes]) -> Publish:
    redis = socket.create_connection(("127.0.0.1", port))
    redis.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    names: dict[str, bytes] = {}

    async def publish(batch: list[tuple[str, int]]) -> None:
        commands = []
        for agent, sequence in batch:
            name = names.get(agent) or names.setdefault(agent, channel(agent).encode())
            body = encode(agent, sequence)
            commands.append(b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(body), body))
        redis.sendall(b"".join(commands))
        answered = 0
        while answered < len(batch):  # each answer is one line: how many subscribers heard it
            answers = redis.recv(1 << 16)
            if not answers or b"-" in answers:
                sys.exit(f"publisher: Redis answered {answers[:100]!r}")
            answered += answers.count(b"\n")

    return publish


async def open_way(stack: AsyncExitStack, way: str, dialect: str, port: int, prefix: str) -> Publish:
    if way == "log":
        return await through_the_log(stack, dialect, port, prefix)
    if way == "live":
        from broker.keyspace import Keyspace  # noqa: PLC0415

        keys = Keyspace(prefix)
        return plainly(port, lambda agent: keys.channel(payload.WORKSPACE, agent), payload.event_json)
    position = way == "ready-log"
    return plainly(port, str, lambda agent, sequence: payload.flat_json(agent, sequence, position=position))


async def serve(way: str, dialect: str, port: int, prefix: str, agents: int) -> None:
    names = [payload.agent(index) for index in range(agents)]
    published = 0
    async with AsyncExitStack() as stack:
        publish = await open_way(stack, way, dialect, port, prefix)
        print("ready", flush=True)
        # Reading blocks the loop: between two requests there is nothing else to do here.
        for line in sys.stdin:
            count, rate = (int(word) for word in line.split())
            batch = [(names[number % agents], number // agents) for number in range(published, published + count)]
            published += count
            if not rate:
                await publish(batch)
                continue
            start = time.monotonic()
            for position, event in enumerate(batch):
                # Against the schedule, not against the last publish: a late one is not followed by more late ones.
                await asyncio.sleep(max(0.0, start + position / rate - time.monotonic()))
                await publish([event])


if __name__ == "__main__":
    _, way, dialect, port, prefix, agents = sys.argv
    asyncio.run(serve(way, dialect, int(port), prefix, int(agents)))
