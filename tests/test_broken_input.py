"""Broken input of every kind, at a real node: it stops nothing, raises nothing, and its neighbours notice nothing.

While a test does its worst a neighbour watches a workspace in which events are published all the time: it must get
them all, in order, and none more. Then the node has logged no traceback, is ready, and has its connections back.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import random
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio
import websockets
from websockets.protocol import OPEN, Protocol, Side

from broker import Broker, Invalid
from broker.events import unpack
from broker.keyspace import Keyspace
from broker.local import LocalRedis

from .support import SECRET, Client, Node, http, maxicore, token, until
from .test_auth import DEEP, WRONG_CLAIMS, forged, good
from .test_auth import GARBAGE as GARBAGE_TOKENS
from .test_events import WRONG_MESSAGES, published
from .test_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, VIOLATIONS, both, frame, head, is_violated
from .test_session import GARBAGE as GARBAGE_MESSAGES
from .wire.helpers import errors, progress

pytestmark = pytest.mark.anyio

AT_ONCE = 20
PAUSE_SECONDS = 0.005


@pytest.fixture(scope="module")
def patient_node(redis: LocalRedis) -> Iterator[Node]:
    """A node for all tests here. It cuts off quickly who does not answer a close."""
    node = Node(redis.url, f"test-{secrets.token_hex(4)}", slow_close_seconds=0.5, log_level="debug", log_format="text")
    try:
        yield node.start()
    finally:
        node.stop()


class Neighbourhood:
    """A node, and a workspace in it where somebody watches."""

    def __init__(self, node: Node, broker: Broker, neighbour: Client, workspace: str) -> None:
        self.node, self.broker, self.neighbour, self.workspace = node, broker, neighbour, workspace
        self.published = 0

    async def publish(self) -> None:
        """Go on publishing."""
        while True:
            await self.broker.publish(progress(self.workspace, self.published, agent=f"agent-{self.published % 3}"))
            self.published += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def received(self) -> list[int]:
        """The steps of everything that the neighbour was sent."""
        while not self.neighbour.messages or self.neighbour.messages[-1]["step"] < self.published - 1:
            await self.neighbour.receive()
        await self.neighbour.synchronise()
        pong = self.neighbour.messages.pop()
        assert pong["type"] == "pong"
        return [message.get("step") for message in self.neighbour.messages]


@contextlib.asynccontextmanager
async def neighbourhood(node: Node) -> AsyncIterator[Neighbourhood]:
    """A peaceful place; at the end all of it is looked at."""
    workspace = f"ws-{secrets.token_hex(4)}"
    told, connected = len(node.output()), node.metric("trunkline_connections")
    async with (
        Broker.connect(node.redis_url, prefix=node.prefix) as broker,
        maxicore(node, token(workspace)) as neighbour,
    ):
        await neighbour.subscribe()
        assert await neighbour.synchronise() == []
        neighbour.messages.clear()
        place = Neighbourhood(node, broker, neighbour, workspace)
        publishing = asyncio.create_task(place.publish())
        try:
            yield place
            before = place.published
            await until(lambda: place.published > before + 2)
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        place.published = (await broker.log.page(workspace, "0-0", 100_000)).events[-1].event().data["step"] + 1
        assert await place.received() == list(range(place.published))
    await until(lambda: node.metric("trunkline_connections") == connected, what="all connections are gone")
    assert http(node.http("/ready"))[0] == 200
    said = node.output()[told:]
    for word in ("Traceback", "a bug ended", "Task exception was never retrieved", "Fatal error", " critical "):
        assert word not in said, said[max(0, said.index(word) - 500) : said.index(word) + 3000]


@pytest.fixture
async def place(patient_node: Node) -> AsyncIterator[Neighbourhood]:
    async with neighbourhood(patient_node) as place:
        yield place


Job = Callable[[], Awaitable[Any]]


async def all_of(jobs: Iterable[Job]) -> list[Any]:
    """Do it all, some at a time; what failed is raised together."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(job: Job) -> Any:
        async with turn, asyncio.timeout(20):
            return await job()

    results = await asyncio.gather(*map(one, jobs), return_exceptions=True)
    if failed := [result for result in results if isinstance(result, Exception)]:
        raise ExceptionGroup(f"{len(failed)} of {len(results)}", failed)
    return results


# -- raw sockets


def handshake(path: str = "/v2/ws", *headers: str, without: tuple[str, ...] = (), line: str = "") -> bytes:
    """The request of a WebSocket client, with headers added, replaced or left out."""
    lines = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    kept = [f"{name}: {value}" for name, value in lines.items() if name not in without]
    return "\r\n".join([line or f"GET {path} HTTP/1.1", *kept, *headers, "", ""]).encode("latin-1")


class Raw:
    """A TCP connection to the node, of somebody who may say anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> bytes:
        """The head of an HTTP answer; empty when the node says nothing and ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            return await self.reader.readuntil(b"\r\n\r\n")
        return b""

    async def rest(self) -> bytes:
        """All that comes until the node ends the connection."""
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(65536):
                self.received += data
        return self.received

    async def until_close(self) -> int | None:
        """The code of the close frame that the node sends, if it does before it ends."""
        client = Protocol(Side.CLIENT, state=OPEN, max_size=None)
        with contextlib.suppress(ConnectionError):
            while client.close_rcvd is None and (data := await self.reader.read(65536)):
                client.receive_data(data)
        assert client.parser_exc is None, "the node itself sends what is no frame"
        return int(client.close_rcvd.code) if client.close_rcvd is not None else None

    def reset(self) -> None:
        """End without a word, as a process that is killed on another machine."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def raw(node: Node, *, path: str | None = None) -> AsyncIterator[Raw]:
    """A connection; with `path` after a good handshake there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    connection = Raw(reader, writer)
    try:
        if path is not None:
            connection.send(handshake(path))
            assert (await connection.answer()).startswith(b"HTTP/1.1 101 ")
        yield connection
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def with_token() -> str:
    return f"/v2/ws?token={token()}"


# -- frames


async def test_frames_that_are_none_end_their_own_connection_with_its_code(place: Neighbourhood) -> None:
    async def violate(name: str, stream: bytes, path: str) -> None:
        _, outcomes = both(stream)
        assert is_violated(outcomes)
        async with raw(place.node, path=path) as connection:
            connection.send(stream)
            code = await connection.until_close()
            # Without a token the first message ends it, if there is a whole one before the violation.
            assert code in ((outcomes[-1][1],) if path != "/v2/ws" else (outcomes[-1][1], 1008)), name

    paths = (with_token(), "/v2/ws")
    await all_of(partial(violate, name, stream, path) for name, stream in VIOLATIONS.items() for path in paths)


async def test_frames_that_come_in_single_bytes_are_frames_all_the_same(place: Neighbourhood) -> None:
    async def trickle(stream: bytes) -> int | None:
        async with raw(place.node, path=with_token()) as connection:
            for at in range(len(stream)):
                connection.send(stream[at : at + 1])
                await asyncio.sleep(0)
            return await connection.until_close()

    streams = [stream for stream in VIOLATIONS.values() if len(stream) < 300]
    codes = await all_of(partial(trickle, stream) for stream in streams)
    assert codes == [both(stream)[1][-1][1] for stream in streams]


def random_streams(count: int) -> Iterator[bytes]:
    """Conversations with bytes changed, lost and added; the same each time."""
    dice = random.Random(20260327)
    words = [
        b'{"type":"ping"}',
        b'{"type":"subscribe","filters":{"agent_id":["agent-1"]},"since":"0-0"}',
        b'{"type":"unsubscribe"}',
        "grüße".encode(),
        b"",
    ]
    for _ in range(count):
        stream = bytearray()
        for _ in range(dice.randint(1, 8)):
            opcode = dice.choice([TEXT, TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE, dice.randint(0, 15)])
            fin, rsv = dice.random() < 0.9, dice.choice([0] * 20 + [1, 2, 4])
            stream += frame(opcode, dice.choice(words), fin=fin, rsv=rsv, mask=dice.randbytes(4))
        for _ in range(dice.randint(0, 4)):
            at = dice.randrange(len(stream))
            stream[at : at + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
        yield bytes(stream) if dice.random() < 0.9 else dice.randbytes(dice.randint(1, 400))


async def test_streams_of_anything_are_borne_however_they_end(place: Neighbourhood) -> None:
    async def bother(number: int, stream: bytes) -> None:
        async with raw(place.node, path=with_token() if number % 3 else "/v2/ws") as connection:
            middle = number * 7 % (len(stream) + 1)
            connection.send(stream[:middle])
            await asyncio.sleep(0)
            connection.send(stream[middle:])
            match number % 4:
                case 0:
                    connection.reset()
                case 1:
                    connection.writer.write_eof()
                    await connection.rest()
                case 2:
                    connection.send(frame(CLOSE, b"\x03\xe8"))
                    connection.writer.write_eof()
                    await connection.rest()
                case _:
                    await asyncio.sleep(0.01)

    await all_of(partial(bother, number, stream) for number, stream in enumerate(random_streams(200)))


async def test_who_never_answers_a_close_is_cut_off(place: Neighbourhood) -> None:
    """And whatever it says meanwhile is not taken."""

    async def linger() -> None:
        async with raw(place.node, path=with_token()) as connection:
            connection.send(frame(BINARY, b"no text"))
            assert await connection.until_close() == 1003
            for _ in range(5):
                connection.send(frame(TEXT, b'{"type":"subscribe"}') + frame(PING, b"still here"))
                await asyncio.sleep(0.01)
            assert await connection.rest() == b""

    await all_of(linger for _ in range(10))


async def test_half_a_frame_that_never_ends_is_no_burden(place: Neighbourhood) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for begun in (b"\x81", b"\x81\xfe", head(TEXT, 60_000), head(TEXT, 5)[:4], frame(TEXT, b"half", fin=False)):
            connection = await stack.enter_async_context(raw(place.node, path=with_token()))
            connection.send(begun)
        before = place.published
        await until(lambda: place.published > before + 20)


# -- handshakes and HTTP

KEY, VERSION = "Sec-WebSocket-Key", "Sec-WebSocket-Version"
LONG = "x" * 100_000

REQUESTS: dict[str, bytes] = {
    "nothing": b"",
    "an empty line": b"\r\n\r\n",
    "a word": b"hello\r\n\r\n",
    "bytes": bytes(range(256)),
    "a frame before any handshake": frame(TEXT, b'{"type":"ping"}'),
    "TLS": bytes.fromhex("16030100f8010000f40303") + bytes(range(200)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "half a request line": b"GET /v2/ws HT",
    "half a handshake": handshake()[:-10],
    "no version of HTTP": handshake(line="GET /v2/ws"),
    "HTTP/1.0": handshake(line="GET /v2/ws HTTP/1.0"),
    "HTTP/3.7": handshake(line="GET /v2/ws HTTP/3.7"),
    "another method": handshake(line="POST /v2/ws HTTP/1.1"),
    "a method in lower case": handshake(line="get /v2/ws HTTP/1.1"),
    "a method that is none": handshake(line="BREW /v2/ws HTTP/1.1"),
    "no upgrade": handshake(without=("Upgrade",)),
    "another upgrade": handshake("/v2/ws", "Upgrade: h2c", without=("Upgrade",)),
    "two upgrades": handshake("/v2/ws", "Upgrade: h2c"),
    "no connection": handshake(without=("Connection",)),
    "another connection": handshake("/v2/ws", "Connection: keep-alive", without=("Connection",)),
    "no key": handshake(without=(KEY,)),
    "an empty key": handshake("/v2/ws", f"{KEY}:", without=(KEY,)),
    "a short key": handshake("/v2/ws", f"{KEY}: YWJj", without=(KEY,)),
    "a key that is no Base64": handshake("/v2/ws", f"{KEY}: !!!!", without=(KEY,)),
    "two keys": handshake("/v2/ws", f"{KEY}: dGhlIHNhbXBsZSBub25jZQ=="),
    "no protocol version": handshake(without=(VERSION,)),
    "an old protocol version": handshake("/v2/ws", f"{VERSION}: 8", without=(VERSION,)),
    "a protocol version that is none": handshake("/v2/ws", f"{VERSION}: new", without=(VERSION,)),
    "two protocol versions": handshake("/v2/ws", f"{VERSION}: 13"),
    "no host": handshake(without=("Host",)),
    "two hosts": handshake("/v2/ws", "Host: elsewhere"),
    "another path": handshake("/v3/ws"),
    "a path above": handshake("/../../v2/ws"),
    "an empty path": handshake(line="GET  HTTP/1.1"),
    "a star": handshake("*"),
    "a path without a slash": handshake("v2/ws"),
    "a path that is no address": handshake("//[::1/v2/ws"),
    "an absolute address that is none": handshake("http://[::1/v2/ws"),
    "an absolute address of nobody": handshake("http://[v1.x]:port/v2/ws?token=x"),
    "a path with two slashes": handshake("//v2/ws"),
    "a path in escapes": handshake("/%76%32/%77%73"),
    "a path beyond ASCII": handshake("/v2/wß"),
    "an envelope that is none": handshake("/v2/ws?envelope=round"),
    "two envelopes": handshake("/v2/ws?envelope=flat&envelope=round"),
    "an envelope that is empty": handshake("/v2/ws?envelope="),
    "an origin beyond ASCII": handshake("/v2/ws?envelope=x", "Origin: http://ö"),
    "two origins": handshake("/v2/ws?envelope=x", "Origin: http://a.example", "Origin: http://b.example"),
    "a header without a colon": handshake("/v2/ws", "what is this"),
    "a header without a name": handshake("/v2/ws", ": x"),
    "a header with a space in its name": handshake("/v2/ws", "X Y: z"),
    "a header with a space before its colon": handshake("/v2/ws", "X : z"),
    "a header on two lines": handshake("/v2/ws?envelope=x", "X: a", " b"),
    "a header with a null": handshake("/v2/ws", "X: a\x00b"),
    "a header with a bare line break": handshake("/v2/ws?envelope=x", "X: a\nY: b"),
    "very many headers": handshake("/v2/ws", *(f"X-{number}: y" for number in range(2000))),
    "a very long header": handshake("/v2/ws", f"X: {LONG}"),
    "a very long path": handshake(f"/v2/{LONG}"),
    "a very long query": handshake(f"/v2/ws?envelope=x&x={LONG}"),
    "a query of many": handshake("/v2/ws?envelope=x&" + "&".join(f"a{number}=b" for number in range(5000))),
    "a body": handshake("/v2/ws?envelope=x", "Content-Length: 5") + b"hello",
    "a body in chunks": handshake("/v2/ws?envelope=x", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "a chunk that is none": handshake(line="POST /live HTTP/1.1", without=("Upgrade",))[:-2]
    + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a negative length": handshake("/v2/ws", "Content-Length: -5"),
    "two lengths": handshake("/v2/ws", "Content-Length: 5", "Content-Length: 6"),
    "a length and chunks": handshake("/v2/ws", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "an extension that is none": handshake("/v2/ws", "Sec-WebSocket-Extensions: ;;=,"),
    "a subprotocol that is none": handshake("/v2/ws", "Sec-WebSocket-Protocol: ((,"),
    "an expectation": handshake("/v2/ws?envelope=x", "Expect: miracles"),
    "another method elsewhere": b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path nobody serves": b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n",
    "a form that nobody speaks": b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
    b"Accept: application/openmetrics-text;version=x;q=y;escaping=z,;;\r\n\r\n",
    "a form in bytes": b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: \xff\xfe\r\n\r\n",
    "no upgrade at all": b"GET /v2/ws HTTP/1.1\r\nHost: x\r\n\r\n",
}  # fmt: skip

# These may be taken for good: they are answered with a WebSocket, or with what an operator asks for.
BEARABLE = {
    "no version of HTTP",
    "HTTP/1.0",
    "an absolute address of nobody",
    "an extension that is none",
    "two hosts",
    "no host",
    "two upgrades",
    "a form that nobody speaks",
    "a form in bytes",
    "a path in escapes",
    "very many headers",
    "a very long header",
    "a body",
    "a body in chunks",
}


async def test_requests_that_are_none_are_refused_and_never_an_error_of_ours(place: Neighbourhood) -> None:
    async def request(name: str, data: bytes) -> None:
        for ends in (True, False):
            async with raw(place.node) as connection:
                connection.send(data)
                if ends:
                    connection.writer.write_eof()
                elif not data.strip() or not data.endswith(b"\r\n\r\n"):
                    return  # more could come
                answer = await connection.answer()
            status = int(answer.split()[1]) if answer else 0
            assert status != 500, (name, answer)
            if name not in BEARABLE:
                assert status == 0 or 400 <= status < 600, (name, answer)

    await all_of(partial(request, name, data) for name, data in REQUESTS.items())


async def test_a_header_that_stands_twice_is_refused_or_taken_and_never_an_error_of_ours(place: Neighbourhood) -> None:
    bearer = f"Authorization: Bearer {token()}"
    for headers in ([bearer, bearer], [bearer, "Authorization: Basic x"], ["Origin: http://a", "Origin: http://b"]):
        async with raw(place.node) as connection:
            connection.send(handshake("/v2/ws", *headers))
            answer = await connection.answer()
            assert answer.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), headers


async def test_a_handshake_may_come_in_single_bytes_or_not_to_an_end(place: Neighbourhood) -> None:
    async with raw(place.node) as connection:
        for byte in handshake(with_token()):
            connection.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await connection.answer()).startswith(b"HTTP/1.1 101 ")
    for length in range(1, len(handshake()), 10):
        async with raw(place.node) as connection:
            connection.send(handshake()[:length])
            if length % 20 > 10:
                connection.reset()


async def test_frames_right_behind_the_handshake_disturb_nobody(place: Neighbourhood) -> None:
    """A client must wait for the answer; one that does not may lose what it said, and nothing else."""
    for behind in (
        frame(TEXT, b'{"type":"ping"}'),
        frame(CLOSE),
        b"\xff" * 10,
        handshake(),
        b"GET /live HTTP/1.1\r\n\r\n",
    ):
        async with raw(place.node) as connection:
            connection.send(handshake(with_token()) + behind)
            assert (await connection.answer()).startswith(b"HTTP/1.1 101 ")
            connection.send(frame(CLOSE, b"\x03\xe8"))
            await connection.rest()


async def test_a_handshake_behind_other_requests_disturbs_nobody(place: Neighbourhood) -> None:
    for before in (b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5):
        async with raw(place.node) as connection:
            connection.send(before + handshake(with_token()) + frame(TEXT, b'{"type":"ping"}'))
            assert (await connection.answer()).startswith(b"HTTP/1.1 ")
            connection.send(frame(CLOSE, b"\x03\xe8"))
            connection.writer.write_eof()
            await connection.rest()


# -- tokens

# Signed by whom we trust, and still not what they should be.
SIGNED: list[dict[str, Any]] = [
    *WRONG_CLAIMS.values(),
    {"workspaces": ["\ud800"]},
    {"workspaces": ["a\nb", "{a}", "}", "*", " ", "\x00"]},
    {"workspaces": ["x" * 5000]},
    {"workspaces": [f"ws-{number}" for number in range(500)]},
    {"exp": 10**15},
    {"exp": 1e300},
    {"sub": "\ud800", "scope": "\ud800", "agent_id": "\ud800"},
]


async def test_tokens_that_are_none_are_refused_wherever_they_stand(place: Neighbourhood) -> None:
    async def converse(client: Client) -> list[str]:
        try:
            await client.subscribe()
            await client.synchronise()
        except websockets.ConnectionClosed:
            await client.closed()  # and what came before it
        return errors([message for message in client.messages if message["type"] != "pong"])

    async def in_query(text: str) -> list[str]:
        async with maxicore(place.node, quote(text, errors="replace")) as client:
            return await converse(client)

    async def in_header(text: str) -> list[str]:
        async with raw(place.node) as connection:
            value = text.encode("latin-1", errors="replace").replace(b"\n", b" ").replace(b"\x00", b"?")
            connection.send(
                handshake("/v2/ws").replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer " + value + b"\r\n\r\n")
            )
            assert (await connection.answer()).startswith(b"HTTP/1.1 101 ")
            assert await connection.until_close() == 1008
        return ["INVALID_TOKEN"]

    async def in_message(text: str) -> list[str]:
        async with maxicore(place.node, "") as client:
            with contextlib.suppress(websockets.ConnectionClosed):
                await client.send(json.dumps({"type": "auth", "token": text}))
            return await converse(client)

    garbage = [text for text in GARBAGE_TOKENS.values() if len(text) < 60_000]
    headers = [text for text in garbage if 0 < len(text) < 30_000]
    jobs = [partial(in_query, text) for text in headers]
    jobs += [partial(in_header, text) for text in headers]
    jobs += [partial(in_message, text) for text in garbage]
    answers = await all_of(jobs)
    assert {tuple(answer) for answer in answers} == {("INVALID_TOKEN",)}
    signed = [forged({"alg": "HS256"}, good(**claims), SECRET.encode()) for claims in SIGNED]
    await all_of(partial(work, text) for text in signed for work in (in_query, in_message))


# -- messages

WRONG_VALUES: list[Any] = [
    None,
    True,
    5,
    1.5,
    "",
    "\x00",
    "\ud800",
    "x" * 300,
    [],
    {},
    [None],
    [[]],
    ["", "a"],
    {"a": 1},
]
WRONG_SINCE = ["", "soon", "5", "-5-1", "5-0-0", f"{2**64}-0", "+", "-", "$", "(0-0", "\x00", "\ud800", "5-0" * 100]
VALID_SINCE = ["0-0", "1-1", "99999999999999-0", f"{2**64 - 1}-{2**64 - 1}", "00000-00000"]


def wrong_messages() -> Iterator[str]:
    yield from GARBAGE_MESSAGES
    for value in WRONG_VALUES:
        yield json.dumps(value)
        yield json.dumps({"type": value})
        for kind in ("subscribe", "unsubscribe"):
            yield json.dumps({"type": kind, "filters": value})
            for name in ("agent_id", "task_id", "workspace_id", "event_types", "token"):
                yield json.dumps({"type": kind, "filters": {name: value}})
        yield json.dumps({"type": "subscribe", "since": value})
    for since in (*WRONG_SINCE, *VALID_SINCE):
        yield json.dumps({"type": "subscribe", "since": since})
        yield json.dumps({"type": "subscribe", "since": {"ws-456": since}})
        yield json.dumps({"type": "subscribe", "filters": {"agent_id": ["a", "b"], "task_id": "t"}, "since": since})
    yield json.dumps({"type": "subscribe", "filters": {"agent_id": [f"agent-{number}" for number in range(1000)]}})
    yield json.dumps({"type": "subscribe", "filters": {"agent_id": [f"agent-{number}" for number in range(1001)]}})
    yield json.dumps({"type": "subscribe", "filters": {"agent_id": "x" * 60_000}})
    yield json.dumps({"type": "ping", "more": "x" * 60_000})
    yield '{"type":"ping","type":"pong","type":"subscribe","filters":{"agent_id":"a","agent_id":"b"}}'
    yield '{"type":"subscribe","filters":' + '{"agent_id":' * 5000


async def test_messages_that_are_none_are_told_and_the_connection_stays(place: Neighbourhood) -> None:
    """A good message between them: ten wrong ones in a row would end it."""
    texts = [text.encode(errors="replace").decode() for text in wrong_messages()]

    async def say(some: list[str]) -> None:
        async with maxicore(place.node, token("ws-456", "ws-457")) as client:
            for text in some:
                await client.send(text)
                await client.send({"type": "unsubscribe"})
                answers = await client.synchronise()
                kinds = {answer["type"] for answer in answers}
                assert kinds <= {"error", "pong", "resume.gap"}, (text, answers)
                codes = set(errors(answers))
                assert codes <= {"INVALID_MESSAGE", "FORBIDDEN"}, (text, answers)

    await all_of(partial(say, texts[start::AT_ONCE]) for start in range(AT_ONCE))


async def test_ten_messages_in_a_row_that_are_none_end_their_own_connection(place: Neighbourhood) -> None:
    async def say(some: list[str]) -> None:
        async with maxicore(place.node) as client:
            with contextlib.suppress(websockets.ConnectionClosed):
                for text in some:
                    await client.send(text)
            code, _ = await client.closed()
            assert code == 1008
            assert errors(client.messages) == 10 * ["INVALID_MESSAGE"]

    wrong = [text for text in GARBAGE_MESSAGES if text.isascii()]
    await all_of(partial(say, wrong[start:] + wrong[:start]) for start in range(len(wrong)))


async def test_messages_without_end_are_taken_one_after_another(place: Neighbourhood) -> None:
    """Floods of them, sent before any answer is read: in order, each answered, none of them skipped."""

    async def flood() -> None:
        async with maxicore(place.node) as client:
            for number in range(200):
                await client.subscribe(agent_id=f"agent-{number % 50}", since=VALID_SINCE[number % 2])
                await client.send({"type": "ping"})
                await client.send({"type": "unsubscribe"})
            pongs = 0
            while pongs < 200:
                message = await client.receive()
                pongs += message["type"] == "pong"
                assert message["type"] in ("pong", "resume.gap"), message

    await all_of([flood, flood, flood])


# -- Redis


def is_event(text: bytes, workspace: str, agent: str | None = None) -> bool:
    try:
        unpack(text, workspace, agent)
    except Invalid:
        return False
    return True


async def test_messages_on_our_channels_that_are_no_events_are_dropped(place: Neighbourhood) -> None:
    """On the very channels that the neighbour is served from, while its events go through them."""
    keys = Keyspace(place.node.prefix)
    dice = random.Random(20260327)
    good_one = published(data={"step": 10**6, "x": [1, "ü"]})
    wrong = [text for _, _, text in WRONG_MESSAGES]
    wrong += [dice.randbytes(dice.randint(1, 200)) for _ in range(100)]
    wrong += [good_one[: dice.randrange(len(good_one))] for _ in range(30)]
    wrong += [good_one.replace(b'"task_id": "t", ', b""), b"{" * 50_000, DEEP.encode(), b"\x00", b'"', b"\xed\xa0\x80"]
    wrong += [b'{"id":"5-0",' + text[1:] for text in wrong] + [b'{"prev":"0-0",' + text[1:] for text in wrong]
    rejected = place.node.metric("trunkline_events_rejected_total")
    async with (
        maxicore(place.node, token(place.workspace)) as of_agents,
        redis.asyncio.from_url(place.node.redis_url) as plain,
    ):
        await of_agents.subscribe(agent_id=["agent-0", "agent-1", "agent-2", "nobody"])
        await of_agents.synchronise()
        for text in wrong:
            for agent in (None, "nobody", "agent-1"):
                if not is_event(text, place.workspace, agent):
                    await plain.publish(keys.channel(place.workspace, agent), text)
        await until(
            lambda: place.node.metric("trunkline_events_rejected_total") >= rejected + len(wrong),
            what="every wrong message was counted",
        )
        steps = [message["step"] for message in await of_agents.synchronise()]
        assert steps == sorted(set(steps))
        assert not steps or max(steps) < 10**6


NO_POSITIONS = ["soon", "", "5", "-5-1", "5-0-0", "0", "+", f"{2**64}-0", "\n", "9" * 5000]
PAST, FUTURE = ["0-0", "1-1"], ["99999999999999-5", f"{2**64 - 1}-{2**64 - 1}"]


class Forgery:
    """A client of empty workspaces of its own, in each of which somebody publishes with a position of their making."""

    def __init__(self, place: Neighbourhood, client: Client, names: list[str]) -> None:
        self.place, self.client, self.names = place, client, names
        self.told: dict[str, list[int]] = {name: [] for name in names}

    async def publish(self, steps: Iterable[int]) -> None:
        for name, step in itertools.product(self.names, steps):
            await self.place.broker.publish(progress(name, step))

    async def receive(self) -> list[list[int]]:
        """The steps that have come in each workspace, but for what was made up."""
        for message in await self.client.synchronise():
            if message["type"] == "task.progress" and message["step"] != -1:
                self.told[message["workspace_id"]].append(message["step"])
        return list(self.told.values())


@contextlib.asynccontextmanager
async def forgery(place: Neighbourhood, positions: list[str], prev: str) -> AsyncIterator[Forgery]:
    keys = Keyspace(place.node.prefix)
    names = [f"ws-{secrets.token_hex(4)}" for _ in positions]
    async with (
        redis.asyncio.from_url(place.node.redis_url) as plain,
        maxicore(place.node, token(*names)) as client,
    ):
        await client.subscribe()
        await client.synchronise()
        for name, position in zip(names, positions, strict=True):
            made_up = published(id=position, prev=prev, agent_prev=prev, data={"step": -1})
            await plain.publish(keys.channel(name), made_up)
            # As the script writes it, too: no space anywhere.
            await plain.publish(keys.channel(name), json.dumps(json.loads(made_up), separators=(",", ":")))
            await plain.publish(keys.channel(place.workspace), made_up.replace(prev.encode(), b"1-1"))
        yield Forgery(place, client, names)


@pytest.mark.parametrize("prev", ["0-0", "1-0", "", "soon"])
async def test_positions_that_somebody_made_up_lose_nobodys_events(place: Neighbourhood, prev: str) -> None:
    """Those that are none, and those of the past; the position before it guessed right (the start) and wrong."""
    async with forgery(place, NO_POSITIONS + PAST + (FUTURE if prev != "0-0" else []), prev) as forged_ones:
        await forged_ones.publish(range(3))

        async def everything_has_come() -> bool:
            return all(len(steps) >= 3 for steps in await forged_ones.receive())

        await until(everything_has_come, 5)
        assert list(map(tuple, forged_ones.told.values())) == len(forged_ones.names) * [(0, 1, 2)]


async def test_a_position_of_the_future_deafens_nobody_for_long(place: Neighbourhood) -> None:
    """With the right position before it, it is what Redis itself might have said; what follows shows that it is not."""
    async with forgery(place, FUTURE, "0-0") as forged_ones:
        numbers = itertools.count()

        async def a_late_one_has_come() -> bool:
            await forged_ones.publish([next(numbers)])
            return all(await forged_ones.receive())

        await until(a_late_one_has_come, 5)


async def test_entries_of_the_log_that_are_no_events_are_passed_over(place: Neighbourhood) -> None:
    """A client that resumes reads the log: what stands there between the events may be anything."""
    keys = Keyspace(place.node.prefix)
    name = f"ws-{secrets.token_hex(4)}"
    async with (
        redis.asyncio.from_url(place.node.redis_url) as plain,
        Broker.connect(place.node.redis_url, prefix=place.node.prefix) as broker,
    ):
        first = await broker.publish(progress(name, 0))
        for _, _, text in WRONG_MESSAGES[:30]:
            await plain.xadd(keys.log(name), {"e": text[1:]})
        await plain.xadd(keys.log(name), {"f": "no such field"})
        await plain.xadd(keys.log(name), {"e": b"\xff\xfe"})
        await broker.publish(progress(name, 1))
        async with maxicore(place.node, token(name)) as client:
            await client.subscribe(since=str(first))
            messages = await client.synchronise()
            assert [message["step"] for message in messages if message["type"] == "task.progress"] == [1]


# -- everything at once


async def test_all_of_it_at_the_same_time_is_borne_too(place: Neighbourhood) -> None:
    keys = Keyspace(place.node.prefix)

    async def request(data: bytes) -> None:
        async with raw(place.node) as connection:
            connection.send(data)
            connection.writer.write_eof()
            await connection.rest()

    async def stream(data: bytes) -> None:
        async with raw(place.node, path=with_token()) as connection:
            connection.send(data)
            connection.reset()

    async def message(plain: Any, text: bytes) -> None:
        await plain.publish(keys.channel(place.workspace), text)

    async def authenticate(text: str) -> None:
        async with maxicore(place.node, base64.urlsafe_b64encode(text.encode(errors="replace")).decode()) as client:
            assert (await client.closed())[0] == 1008

    async with redis.asyncio.from_url(place.node.redis_url) as plain:
        work = [partial(request, data) for data in REQUESTS.values()]
        work += [partial(stream, data) for data in VIOLATIONS.values()]
        work += [partial(message, plain, text) for _, _, text in WRONG_MESSAGES]
        work += [partial(authenticate, text) for text in GARBAGE_TOKENS.values() if 0 < len(text) < 10_000]
        random.Random(1).shuffle(work)
        await all_of(work)
