"""The benchmark of the Agents API counts right: short runs of it with a small registry."""

import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis

from broker.keyspace import Keyspace
from broker.local import LocalRedis

from ..support import http
from . import payload, servers
from .machine import Cores
from .plan import Bench, Lengths, Requests, requests_of
from .servers import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark stands on epoll and /proc")

AGENTS = 40
SHORT = Lengths(warm=0.1, closed_loop=0.3, open_loop=0.3, producer=0.1)
WRONG = ("lost", "failed")
ALL = requests_of(AGENTS)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(Cores.of_this_machine(), SHORT)


@pytest.fixture(scope="module")
def registry(bench: Bench) -> Iterator[LocalRedis]:
    with servers.filled_redis(bench.cores, AGENTS) as redis:
        yield redis


@pytest.fixture(scope="module")
def node(bench: Bench, registry: LocalRedis) -> Iterator[Server]:
    """One that counts requests."""
    with servers.trunkline(registry, bench.cores, messages=1_000_000_000) as node:
        yield node


@pytest.mark.parametrize("requests", ALL, ids=lambda requests: requests.name)
def test_every_request_is_answered_right(bench: Bench, registry: LocalRedis, node: Server, requests: Requests) -> None:
    figures = bench.ask(requests, registry, node)
    assert figures["asked"] > requests.connections
    assert min(figures["server_us"], figures["redis_us"], figures["requests_per_second"]) > 0
    assert [figures[name] for name in WRONG] == [0, 0], figures["first_failure"]


def test_requests_are_counted_where_there_is_a_limit(bench: Bench, registry: LocalRedis, node: Server) -> None:
    with Redis.from_url(registry.url) as client:
        client.delete(*windows(client), "nothing")
        asked = bench.ask(ALL[0], registry, node)["asked"]
        assert sum(int(client.get(name) or 0) for name in windows(client)) == asked


def windows(client: Redis) -> list[str]:
    """The keys of what is counted."""
    return [str(name, "ascii") for name in client.keys(f"{servers.PREFIX}:messages:*")]


def test_a_change_is_stored(bench: Bench, registry: LocalRedis, node: Server) -> None:
    figures = bench.ask(ALL[-1], registry, node)
    answered = json.loads(figures["answer"].partition("\r\n\r\n")[2])["data"]
    with Redis.from_url(registry.url) as client:
        soul = client.hget(Keyspace(servers.PREFIX).agent(payload.WORKSPACE, answered["id"]), "soul")
    assert json.loads(soul or b"") == answered["soul"]
    assert answered["soul"]["change"] >= 100_000


def test_the_steady_rate_goes_by_the_clock(bench: Bench, registry: LocalRedis, node: Server) -> None:
    figures = bench.ask(ALL[0], registry, node, 100)
    assert abs(figures["asked"] - 100 * (SHORT.warm + SHORT.open_loop)) <= 1
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert [figures[name] for name in WRONG] == [0, 0]


def test_both_servers_are_asked_alike(bench: Bench, registry: LocalRedis) -> None:
    pair = bench.requests(dataclasses.replace(ALL[0], rate=50), registry)
    assert list(pair) == ["trunkline", "baseline"]
    for figures in pair.values():
        assert figures["p50_ms"] > 0
        assert [figures[name] for name in WRONG] == [0, 0], figures["first_failure"]
    ours, bare = (sorted(figures["answer"].split("\r\n")) for figures in pair.values())
    assert bare[-1] == ours[-1]
    assert names(bare) == names(ours)


def names(lines: list[str]) -> list[str]:
    """Of an answer's headers."""
    return [line.partition(":")[0] for line in lines]


def test_the_bare_route_answers_any_request_from_memory(bench: Bench) -> None:
    answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: 1\r\ncontent-length: 2\r\n\r\n{}"
    with servers.plain(answer, bench.cores) as plain:
        for path in ("/v2/agents?limit=20", "/v2/agents/agent-1"):
            status, headers, body = http(f"http://127.0.0.1:{plain.port}{path}")
            assert (status, headers["x-request-id"], body) == (200, "1", b"{}")


def test_an_answer_that_does_not_say_what_it_must_has_failed(bench: Bench, registry: LocalRedis, node: Server) -> None:
    figures = bench.ask(dataclasses.replace(ALL[0], proof='"total":41'), registry, node)
    assert figures["failed"] == figures["asked"] > 0
    assert "200 OK" in figures["first_failure"]


def test_what_waits_for_a_connection_has_waited_since_it_was_due(bench: Bench, registry: LocalRedis) -> None:
    requests = dataclasses.replace(ALL[0], connections=1, proof="")
    with slow_server(0.02) as port:  # twice as slow as it is asked
        figures = bench.ask(requests, registry, Server(os.getpid(), port), 100)
    # The last of 40 is answered after 800 ms at the earliest, and was due after 400.
    assert figures["p99_ms"] > 390
    assert figures["lost"] == 0


@contextmanager
def slow_server(seconds: float) -> Iterator[int]:
    """A port where one connection is answered, that much later each time."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 16):
                time.sleep(seconds)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield int(listener.getsockname()[1])
        server.join(10)
