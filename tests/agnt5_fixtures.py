"""Fixtures of AGNT5's tests: two nodes per module, a shop per test.

A module takes them with `pytest_plugins = ["tests.agnt5_fixtures"]`.
"""

import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.local import LocalRedis

from .agnt5 import Shop, opened
from .support import Node


@pytest.fixture(scope="module")
def pair(redis: LocalRedis) -> Iterator[list[Node]]:
    """Two nodes with default settings for all tests of a module: each test has a shop of its own."""
    prefix = f"test-{secrets.token_hex(4)}"
    nodes = [Node(redis.url, prefix) for _ in range(2)]
    try:
        with ThreadPoolExecutor() as pool:
            yield list(pool.map(Node.start, nodes))
    finally:
        for node in nodes:
            node.stop()


@pytest.fixture
async def shop(pair: list[Node]) -> AsyncIterator[Shop]:
    async with opened(pair) as shop:
        yield shop
