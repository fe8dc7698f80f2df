"""Every status that the OpenAPI document names for an operation can be had, from a real node.

But two that take a bug (500, tests/test_api_front.py) and half a minute (408, tests/test_api_bodies.py).
"""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from broker.local import LocalRedis
from gateway.api.agents import OPERATIONS
from gateway.api.document import document
from gateway.api.operations import Operation

from .rest import Answer, Rest
from .support import Node, private_redis

pytest_plugins = ["tests.wire.fixtures"]

SHOWN = document(OPERATIONS, "")["paths"]


def statuses(operation: Operation) -> Iterator[int]:
    yield from (int(status) for status in SHOWN[operation.path][operation.method.lower()]["responses"])


def cases(*wanted: int, but: tuple[int, ...] = ()) -> Any:
    """Operations with one each of their statuses."""
    found = [
        pytest.param(operation, status, id=f"{operation.name}-{status}")
        for operation in OPERATIONS
        for status in statuses(operation)
        if status in wanted or (not wanted and status not in but)
    ]
    return pytest.mark.parametrize(("operation", "status"), found)


class Visitor:
    """Somebody who calls an operation on an agent made for that, in such a way that it is answered with a status."""

    def __init__(self, node: Node) -> None:
        self.rest = Rest(node, "ws-456", sub=secrets.token_hex(4))
        self.stranger = Rest(node, credentials="")

    def call(self, operation: Operation, status: int) -> Answer:
        body, path = operation.example, operation.path.format(agent_id=self._agent(operation, status))
        rest = self.rest
        if status == 400:
            path, body = (path, b"{") if operation.body else (f"{path}?limit=0&purge=perhaps", None)
        if status == 401:
            rest = self.stranger
        if status == 403:
            rest = Rest(self.rest.node, "ws-456", scope="")
        if status == 413:
            body = b" " * (operation.max_bytes + 1)
        if operation.path.endswith("/pair") and status == 200:
            body = {"pairing_key": self.rest.create()["pairing_key"]}
        kind = {"Content_Type": "text/plain"} if status == 415 else {}
        return rest.ask(operation.method, path, body, **kind)

    def _agent(self, operation: Operation, status: int) -> str:
        return str(self.rest.create()["id"]) if operation.has_agent and status in (200, 204) else "agent-0"


@cases(but=(408, 429, 500, 503))
def test_a_status_of_an_operation(shared_node: Node, operation: Operation, status: int) -> None:
    assert Visitor(shared_node).call(operation, status).status == status


@pytest.fixture(scope="module")
def strict_node(redis: LocalRedis) -> Iterator[Node]:
    """A node that lets everybody ask once a minute."""
    node = Node(redis.url, f"test-{secrets.token_hex(4)}", max_requests_per_minute=1)
    try:
        yield node.start()
    finally:
        node.stop()


@cases(429)
def test_once_too_often(strict_node: Node, operation: Operation, status: int) -> None:
    visitor = Visitor(strict_node)
    visitor.call(operation, 404)
    answer = visitor.call(operation, 404)
    assert (answer.status, answer.code) == (status, "RATE_LIMITED")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


@pytest.fixture(scope="module")
def lonely_node() -> Iterator[Node]:
    """A node whose Redis has gone."""
    with private_redis() as redis:
        node = Node(redis.url, f"test-{secrets.token_hex(4)}").start()
    try:
        yield node
    finally:
        node.stop()


@cases(503)
def test_without_redis(lonely_node: Node, operation: Operation, status: int) -> None:
    answer = Visitor(lonely_node).call(operation, 404)
    assert (answer.status, answer.code) == (status, "UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
