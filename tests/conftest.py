"""Fixtures: one private redis-server for the whole run, a key prefix for each test, nodes that end with their test.

And the order: a run on several workers ends with its last file, so the files that take longest begin.
"""

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.local import LocalRedis

from .support import Node, private_redis

LONGEST = (
    "test_runs_chaos",
    "test_api_schemathesis",
    "test_residents",
    "test_cli",
    "test_freeagentics_limits",
    "test_runs",
    "test_worker",
    "test_deploys",
    "test_delivery",
    "test_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis() -> Iterator[LocalRedis]:
    """The run's own redis-server, shared: a test that stops it or fills it starts one of its own instead."""
    with private_redis() as server:
        yield server


@pytest.fixture
def redis_url(redis: LocalRedis) -> str:
    return redis.url


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def start_node(redis_url: str, prefix: str) -> Iterator[Callable[..., Node]]:
    """Start a node with these settings; it ends with the test."""
    nodes: list[Node] = []

    def start(**settings: Any) -> Node:
        node = Node(settings.pop("redis_url", redis_url), settings.pop("prefix", prefix), **settings)
        nodes.append(node)
        return node.start()

    yield start
    for node in nodes:
        node.stop()


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node()
