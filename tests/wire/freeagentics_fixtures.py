"""Fixtures for FreeAgentics over the wire: one node per module, a stage per test.

A module takes them with `pytest_plugins = ["tests.wire.freeagentics_fixtures"]`.
"""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from broker.local import LocalRedis

from ..freeagentics import QUIET, FreeStage, free_staged
from ..support import Node


@pytest.fixture(scope="module")
def quiet_node(redis: LocalRedis) -> Iterator[Node]:
    """A node for all tests of a module: each works in workspaces and with users of its own."""
    node = Node(redis.url, f"test-{secrets.token_hex(4)}", **QUIET)
    try:
        yield node.start()
    finally:
        node.stop()


@pytest.fixture
async def free_stage(quiet_node: Node) -> AsyncIterator[FreeStage]:
    async with free_staged(quiet_node) as stage:
        yield stage
