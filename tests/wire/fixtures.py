"""Fixtures for what is tested over the wire: one node per module, a stage per test.

A module takes them with `pytest_plugins = ["tests.wire.fixtures"]`.
"""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from broker.local import LocalRedis

from ..support import Node
from .helpers import Stage, staged


@pytest.fixture(scope="module")
def shared_node(redis: LocalRedis) -> Iterator[Node]:
    """A node with default settings for all tests of a module: each works in workspaces of its own."""
    node = Node(redis.url, f"test-{secrets.token_hex(4)}")
    try:
        yield node.start()
    finally:
        node.stop()


@pytest.fixture
async def stage(shared_node: Node) -> AsyncIterator[Stage]:
    async with staged(shared_node) as stage:
        yield stage


@pytest.fixture
async def ws_456(shared_node: Node) -> AsyncIterator[Stage]:
    """A stage in the very workspace of the document's examples."""
    async with staged(shared_node, ["ws-456"]) as stage:
        yield stage
