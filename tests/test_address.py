"""What URLs say, and that clients of Redis fail as redis-py says, whatever event loop is under them."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from broker import Invalid, address
from broker.topology import Host, clients


@pytest.fixture
def hasty() -> Iterator[int]:
    """The port of somebody who answers once and resets the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                one.recv(10)
                one.sendall(b"+OK\r\n")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def test_a_connection_that_closes_while_it_is_set_up_is_a_lost_connection(hasty: int) -> None:
    failures: Counter[type[BaseException]] = Counter()

    async def ping_often() -> None:
        async with clients.client(address.read(f"redis://127.0.0.1:{hasty}/0"), "test") as redis:
            for _ in range(20):
                pings = [asyncio.ensure_future(redis.ping()) for _ in range(10)]
                for _ in range(20):
                    await asyncio.sleep(0)
                    time.sleep(0.001)  # a busy loop: an answer and the end come in one turn of it
                failures.update(map(type, await asyncio.gather(*pings, return_exceptions=True)))

    uvloop.run(ping_often())
    assert failures.keys() == {RedisConnectionError}


def test_a_url_of_one_redis_says_where_it_is() -> None:
    found = address.read("redis://user:pa%40ss@redis.example:6380/2")
    assert (found.topology, found.hosts, found.database) == ("one", (Host("redis.example", 6380),), 2)
    assert (found.username, found.password, str(found)) == ("user", "pa@ss", "redis.example:6380")
    assert address.read("redis://").hosts == (Host("localhost", 6379),)
    assert address.read("rediss://[::1]").ssl is not None
    local = address.read("unix:///run/redis.sock?db=3")
    assert (local.path, local.database, str(local)) == ("/run/redis.sock", 3, "/run/redis.sock")


def test_a_url_of_sentinels_names_them_and_their_service() -> None:
    url = "redis+sentinel://user:s%2Ce@one,two:26380/orders/4?sentinel_username=ask&sentinel_password=me"
    found = address.read(url)
    assert (found.topology, found.hosts, found.service) == (
        "sentinel",
        (Host("one", 26379), Host("two", 26380)),
        "orders",
    )
    assert (found.username, found.password, found.database) == ("user", "s,e", 4)
    assert str(found) == "orders of the sentinels one:26379, two:26380"
    one = found.sentinel(found.hosts[0])
    assert (one.topology, one.hosts, one.username, one.password, one.database) == (
        "one", (Host("one", 26379),), "ask", "me", 0,
    )  # fmt: skip
    assert found.at(Host("three", 1)).password == "s,e"


def test_a_url_of_a_cluster_names_some_of_its_nodes() -> None:
    found = address.read("rediss+cluster://:secret@one,[::1]:7001")
    assert (found.topology, found.hosts) == ("cluster", (Host("one", 6379), Host("::1", 7001)))
    assert (found.username, found.password, found.ssl is not None) == (None, "secret", True)
    assert str(found) == "the cluster of one:6379, [::1]:7001"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:secret@host", "expected redis://"),
        ("redis+cluster+tls://:secret@host", "expected redis://"),
        ("unix+sentinel://:secret@host/x", "expected redis://"),
        ("redis://:secret@host:port", "not a Redis URL"),
        ("redis://:secret@host?colour=red", "no option 'colour'"),
        ("redis+sentinel://:secret@host", "the name of the master"),
        ("redis+sentinel://:secret@host/", "the name of the master"),
        ("redis+sentinel://:secret@/orders", "expected a host"),
        ("redis+sentinel://:secret@one,,two/orders", "expected a host"),
        ("redis+sentinel://:secret@host/orders?colour=red", "sentinel_password"),
        ("redis+cluster://:secret@one,", "expected a host"),
        ("redis+cluster://:secret@host/1", "a cluster has one database"),
        ("redis+cluster://:secret@host?db=1", "a cluster has one database"),
        ("rediss://:secret@host?ssl_ca_certs=/nowhere", "ssl_ca_certs"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(Invalid, match="redis_url") as refused:
        address.read(url)
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)
