"""AGNT5's limits (seed 002, "Rate Limits", and our reading of them) over a real node, and what all dialects forbid.

The fifty connections of an endpoint are in test_agnt5_handshake.py.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import statistics
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from time import monotonic, sleep
from typing import Any
from unittest import mock

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from broker.local import LocalRedis

from .agnt5 import GONE, Agnt5, Message, Shop, execution_of, opened, refused, types
from .proxy import Proxy, proxy
from .support import Node, maxicore, until
from .wire.helpers import Deaf

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]

PING = '{"type":"ping"}'
KB = 1024
CLOSED_1008 = re.compile(rb"\x88.\x03\xf0", re.DOTALL)


def of_size(size: int) -> str:
    """A run message of so many bytes."""
    frame = json.dumps({"name": "noop", "metadata": {"x": ""}})
    return frame.replace('""', f'"{"x" * (size - len(frame))}"')


async def burst(client: Agnt5, *messages: str) -> list[Message]:
    """Say all this at once and read as many answers, or up to the close."""
    before = len(client.messages)
    for message in messages:
        await client.send(message)
    with contextlib.suppress(ConnectionClosed):
        for _ in messages:
            await client.receive()
    return client.messages[before:]


async def next_window() -> None:
    """Wait for a time: nothing tells of a window's end, and to ask for it takes messages of the window."""
    await asyncio.sleep(1.1)


# --- The size of a message ---


async def test_a_message_of_64_kb_is_taken_and_one_more_byte_closes_with_1009(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        await client.send(of_size(64 * KB))
        assert (await client.end())["type"] == "execution_completed"
        await client.send(of_size(64 * KB + 1))
        assert (await client.closed())[0] == 1009


async def test_a_message_of_65_kb_closes_with_1009_also_in_fragments(shop: Shop) -> None:
    for text in (of_size(65 * KB), [of_size(65 * KB)[start : start + KB] for start in range(0, 65 * KB, KB)]):
        async with shop.client() as client:
            await client.socket.send(text)
            assert (await client.closed())[0] == 1009
            assert client.messages == []


async def test_a_message_in_fragments_is_one_message(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        await client.socket.send(['{"na', 'me":"no', 'op"}'])
        assert (await client.end())["type"] == "execution_completed"


# --- Messages per second ---


async def test_the_101st_message_within_a_second_is_refused_and_starts_nothing(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client, shop.client() as neighbour:
        run = json.dumps({"name": "wait", "connection_id": "ws_1"})
        answers = await burst(client, *[PING] * 100, run)
        assert types(answers[:100]) == ["pong"] * 100
        assert refused(answers[100:]) == ["RATE_LIMITED"]
        assert await neighbour.synchronise() == []  # it has messages of its own
        await next_window()
        await client.start("wait")
        assert len(crew.begun) == 1


async def test_messages_of_every_kind_count(shop: Shop) -> None:
    """And every kind is refused once there were a hundred."""
    kinds = [
        json.dumps({"type": "cancel", "execution_id": GONE}),
        "hello",
        PING,
        json.dumps({"name": "somersault"}),
    ]
    async with shop.crew(), shop.client() as client:
        answers = await burst(client, *kinds * 26)
        codes = Counter(refused([message for message in answers if message["type"] != "pong"]))
        assert types(answers).count("pong") == 25
        assert codes == {"INVALID_MESSAGE": 50, "UNKNOWN_WORKFLOW": 25, "RATE_LIMITED": 4}


async def test_a_hundred_runs_in_a_second_all_run(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        for _ in range(100):
            await client.run("noop")
        for _ in range(100):
            assert (await client.end())["type"] == "execution_completed"
        assert len({execution_of(message) for message in client.messages}) == 100


async def test_twice_the_limit_within_a_second_closes_with_1008(shop: Shop) -> None:
    async with shop.client() as client:
        answers = await burst(client, *[PING] * 200)
        assert types(answers[:100]) == ["pong"] * 100
        assert refused(answers[100:]) == ["RATE_LIMITED"] * 100
        await next_window()  # 200 are not too many to stay
        for _ in range(201):
            await client.send(PING)
        assert (await client.closed())[0] == 1008


async def test_a_new_second_has_a_hundred_messages_of_its_own(shop: Shop) -> None:
    async with shop.client() as client:
        assert types(await burst(client, *[PING] * 100)) == ["pong"] * 100
        await next_window()
        assert types(await burst(client, *[PING] * 100)) == ["pong"] * 100


class Late:
    """What a reader reads, 20 ms later."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        await asyncio.sleep(0.02)
        return data


@contextlib.asynccontextmanager
async def far(port: int) -> AsyncIterator[Proxy]:
    """A proxy before a Redis that is far away."""
    pump: Any = Proxy._pump

    async def slow_pump(self: Proxy, reader: Any, writer: Any, *, answers: bool) -> None:
        await pump(self, Late(reader) if answers else reader, writer, answers=answers)

    with mock.patch.object(Proxy, "_pump", slow_pump):
        async with proxy(port) as middle:
            yield middle


async def test_messages_count_when_they_come_however_far_redis_is(
    start_node: Callable[..., Node], redis: LocalRedis
) -> None:
    """Fifty runs a second can be asked for there. Two hundred and one were said in a moment."""
    async with far(redis.port) as middle:
        node = await asyncio.to_thread(start_node, redis_url=middle.url)
        async with opened([node], redis_url=redis.url) as shop, shop.crew(), shop.client() as client:
            for _ in range(201):
                await client.run("somersault")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(8):
                    await client.closed()
    assert Counter(refused(client.messages))["UNKNOWN_WORKFLOW"] <= 100
    assert client.socket.close_code == 1008


# --- What all dialects forbid ---


async def test_binary_closes_with_1003(shop: Shop) -> None:
    async with shop.client() as client:
        await client.send(b'{"name":"noop"}')
        assert (await client.closed())[0] == 1003


async def test_invalid_utf_8_closes_with_1007(shop: Shop) -> None:
    async with shop.client() as client:
        await client.socket.send(b'{"name":"\xff"}', text=True)
        assert (await client.closed())[0] == 1007


async def test_ten_malformed_messages_in_a_row_close_with_1008(shop: Shop) -> None:
    async with shop.client() as client:
        for _ in range(3):
            assert refused(await burst(client, *["hello"] * 9)) == ["INVALID_MESSAGE"] * 9
            assert await client.synchronise() == []  # a good one between them
        answers = await burst(client, *["{}"] * 10)
        assert set(refused(answers)) == {"INVALID_MESSAGE"}
        assert (await client.closed())[0] == 1008


async def test_unknown_workflows_are_no_malformed_messages(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        answers = await burst(client, *['{"name":"somersault"}'] * 15)
        assert refused(answers) == ["UNKNOWN_WORKFLOW"] * 15
        assert await client.synchronise() == []


# --- Silence ---


async def test_who_says_and_hears_nothing_is_kept(start_node: Callable[..., Node]) -> None:
    """A MaxiCore client, which is not, tells that the time has come."""
    node = start_node(idle_seconds=0.5)
    async with opened([node]) as shop, shop.client() as client:
        async with maxicore(node) as other:
            await other.subscribe()
            assert (await other.closed())[0] == 1000
        assert await client.synchronise() == []


async def test_three_unanswered_pings_end_a_connection_and_answered_ones_do_not(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(heartbeat_seconds=0.15)
    async with opened([node]) as shop, shop.client() as client:
        async with shop.client(create_connection=Deaf) as deaf:
            await deaf.closed()
            assert isinstance(deaf.socket, Deaf)
            assert deaf.socket.ping_frames == 3
            assert deaf.messages == []
        assert await client.synchronise() == []
        assert types(client.messages) == ["pong"]


# --- Neighbours ---


class Flood:
    """Connections that say more than they may, as fast as they can, and come back whenever they are closed.

    Threads that write what was made ready before: they leave the test's own loop alone.
    """

    def __init__(self, shop: Shop, *texts: str) -> None:
        """Each text has a connection."""
        self._port = shop.nodes[0].port
        key = base64.b64encode(os.urandom(16)).decode()
        self._hello = (
            f"GET /ws?x-wf-endpoint={shop.endpoint} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: x-api-key.{shop.key}\r\n\r\n"
        ).encode()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._pour, args=(text,)) for text in texts]
        self.closed = dict.fromkeys(texts, 0)  # with 1008
        self.otherwise: list[bytes] = []

    def _pour(self, text: str) -> None:
        frames = Frame(Opcode.TEXT, text.encode()).serialize(mask=True) * 2000
        while not self._is_over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5) as connected:
                connected.sendall(self._hello)
                assert connected.recv(4096).startswith(b"HTTP/1.1 101")
                connected.sendall(frames)
                answers = b""
                while not CLOSED_1008.search(answers):
                    read = connected.recv(65536)
                    if not read:
                        self.otherwise.append(answers[-40:])
                        return
                    answers = answers[-40:] + read
                self.closed[text] += 1
            sleep(0.02)

    @contextlib.asynccontextmanager
    async def poured(self) -> AsyncIterator["Flood"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            for thread in self._threads:
                await asyncio.to_thread(thread.join)


async def round_trips(client: Agnt5, count: int) -> float:
    """The median time (s) of a ping and its pong, some time apart."""
    times = []
    for _ in range(count):
        asked = monotonic()
        assert await client.synchronise() == []
        times.append(monotonic() - asked)
        await asyncio.sleep(0.02)
    return statistics.median(times)


async def test_neighbours_keep_their_latency_while_others_flood(shop: Shop) -> None:
    async with opened(shop.nodes) as other, other.crew(), shop.crew(), other.client() as neighbour:
        quiet = await round_trips(neighbour, 30)
        async with Flood(shop, PING, '{"name":"somersault"}', "hello").poured() as flood:
            await until(lambda: sum(flood.closed.values()) >= 3)
            flooded = await round_trips(neighbour, 50)
            await neighbour.start("noop")
            assert (await neighbour.end())["type"] == "execution_completed"
            await until(lambda: sum(flood.closed.values()) >= 9)
        assert flood.otherwise == []
    print(f"median round trip: {quiet * 1000:.2f} ms, beside a flood {flooded * 1000:.2f} ms")
    assert flooded < 10 * quiet + 0.05
