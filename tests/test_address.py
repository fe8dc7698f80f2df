"""Clients of Redis fail as redis-py says, whatever event loop is under them."""

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

from broker import address


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
        async with address.client(address.read(f"redis://127.0.0.1:{hasty}/0"), "test") as redis:
            for _ in range(20):
                pings = [asyncio.ensure_future(redis.ping()) for _ in range(10)]
                for _ in range(20):
                    await asyncio.sleep(0)
                    time.sleep(0.001)  # a busy loop: an answer and the end come in one turn of it
                failures.update(map(type, await asyncio.gather(*pings, return_exceptions=True)))

    uvloop.run(ping_often())
    assert failures.keys() == {RedisConnectionError}
