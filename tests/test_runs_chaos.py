"""Runs under chaos: ten thousand of them, and every part of the fleet is killed, restarted or cut off meanwhile.

The same again: with CHAOS_SEED as the failure told it, as far as chance and not the machine decides.
"""

import asyncio
import os
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from broker import Broker, Event, address
from broker.credentials import Credentials

from .agnt5_chaos import (
    OUR_CONNECTIONS,
    Crew,
    Havoc,
    faults_of_clients,
    faults_of_log,
    faults_of_memory,
    faults_of_nodes,
    faults_of_story,
    faults_of_work,
    takeovers,
)
from .agnt5_chaos_client import ChaosClient, Wish
from .agnt5_chaos_worker import ENDPOINT, LOG_EVENTS, WORKSPACE, Mood
from .running import Client
from .support import Node, private_redis, until

pytestmark = pytest.mark.anyio

StartNode = Callable[..., Node]

RUNS, CLIENTS, NODES, WORKERS = 10_000, 20, 2, 4
RUNS_PER_SECOND = 250.0  # of all clients, as far as the machine goes
LONGEST_SECONDS = 150.0  # less than a hanging test is given (pyproject.toml)

# A node that is killed cannot give its clients' places back: they count for 45 s, beside those that the clients take on
# the other node. The attempts are for a run whose workers die time and again.
SETTINGS = {"log_events": LOG_EVENTS, "max_connections_per_endpoint": -1, "run_attempts": 10, "fast": 1}


def wishes(chance: random.Random) -> Iterator[Wish]:
    """Most are short and go well; some fail, want to be tried again, take long, or are cancelled while they do."""
    for number in range(RUNS):
        kind = chance.random()
        seconds = chance.uniform(1, 3) if kind < 0.05 else chance.uniform(0, 0.02)
        mood: Mood = "fails" if 0.05 <= kind < 0.08 else "retries" if 0.08 <= kind < 0.11 else "well"
        yield Wish(number, seconds, mood, is_cancelled=kind < 0.03)


class Fleet(NamedTuple):
    """Everything that can break, and a broker of ours beside it."""

    nodes: list[Node]
    crew: Crew
    broker: Broker
    key: str


@asynccontextmanager
async def fleet(prefix: str, directory: Path, start_node: StartNode) -> AsyncIterator[Fleet]:
    with private_redis() as redis:
        nodes = [start_node(redis_url=redis.url, **SETTINGS) for _ in range(NODES)]
        broker = Broker(address.read(redis.url), prefix=prefix, name=OUR_CONNECTIONS)
        crew = Crew(WORKERS, redis.url, prefix, directory)
        try:
            key = (await Credentials(broker.redis, broker.keys).create(ENDPOINT, WORKSPACE)).key
            crew.complete()
            yield Fleet(nodes, crew, broker, key)
        finally:
            crew.dismiss()
            await broker.close()


async def test_ten_thousand_runs_end_once_each_whatever_is_killed_and_their_clients_are_told_all_of_it(
    prefix: str, tmp_path: Path, start_node: StartNode
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or secrets.randbelow(10**6) + 1
    chance, began = random.Random(seed), time.monotonic()
    wanted, pace = list(wishes(chance)), RUNS_PER_SECOND / CLIENTS
    async with fleet(prefix, tmp_path, start_node) as (nodes, crew, broker, key):
        clients = [
            ChaosClient(f"ws_{number}", nodes, key, wanted[number::CLIENTS], random.Random(chance.random()), pace)
            for number in range(CLIENTS)
        ]
        havoc = Havoc(crew, nodes, broker.redis, random.Random(chance.random()))
        await survive(clients, havoc)
        faults = [*faults_of_nodes(nodes), *await judge(Client(broker), crew, clients)]
    print(f"\nseed {seed}: {time.monotonic() - began:.0f} s; {told(havoc, crew, clients)}")
    if faults:
        keep_traces(tmp_path, nodes, clients)
        first = "\n".join(faults[:20])
        raise AssertionError(f"CHAOS_SEED={seed}, {len(faults)} faults, traces in {tmp_path}:\n{first}")
    assert all(havoc.done[deed] for deed in ("kill_worker", "SIGTERM", "SIGKILL", "cut_redis"))


async def survive(clients: list[ChaosClient], havoc: Havoc) -> None:
    """Let the clients have their runs while everything breaks, as long as anything is left to start."""
    try:
        async with asyncio.timeout(LONGEST_SECONDS), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run())
            group.create_task(havoc.wreak())
            await until(lambda: all(client.has_sent_all for client in clients), 2 * LONGEST_SECONDS)
            havoc.over.set()
    except TimeoutError:
        pass  # what is missing then, `judge` says


async def judge(broker: Client, crew: Crew, clients: list[ChaosClient]) -> list[str]:
    """All that should not be."""
    said: dict[str, list[Event]] = defaultdict(list)
    for event in await broker.events():
        said[event.data["execution_id"]].append(event)
    stories = {execution: story for client in clients for execution, story in client.stories.items()}
    faults = [*faults_of_log(said, set(stories)), *faults_of_work(crew, said), *faults_of_clients(clients)]
    for execution, story in stories.items():
        faults += faults_of_story(story, said[execution])
    for client in clients:
        faults += await faults_of_memory(client, said)
    if not await broker.is_left_nothing():
        faults.append("runs are left in the queue, or held")
    return faults


def told(havoc: Havoc, crew: Crew, clients: list[ChaosClient]) -> str:
    """What it was like, for who reads `pytest -s`."""
    of_clients, waits = sum((client.told for client in clients), Counter[str]()), takeovers(crew)
    taken = f"{len(waits)} runs taken over from the dead, after {max(waits, default=0):.1f} s at most"
    return f"{dict(havoc.done)}; clients: {dict(of_clients)}; {taken}"


def keep_traces(directory: Path, nodes: list[Node], clients: list[ChaosClient]) -> None:
    """Beside the workers' log and journal, which are there."""
    for node in nodes:
        (directory / f"node-{node.port}.log").write_text(node.output())
    for client in clients:
        (directory / client.name).write_text("\n".join(client.diary))
