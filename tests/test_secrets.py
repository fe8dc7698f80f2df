"""No token, key or password is in anything a node says, wherever clients put them.

Not in its log at debug level, not in its metrics, not in what it answers.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import websockets
from websockets.asyncio.client import connect

from .support import SECRET, Client, Node, free_port, http, maxicore, private_redis, token, until
from .wire.helpers import producer, progress

pytestmark = pytest.mark.anyio

PASSWORD = f"password-{secrets.token_hex(8)}"
ANOTHER_SECRET = "another-secret-of-at-least-32-bytes!"


def with_password(url: str, password: str = PASSWORD) -> str:
    return url.replace("redis://", f"redis://:{password}@")


def needles(credential: str) -> set[str]:
    """What would give `credential` away: half of it, or of a part of a token that is not its header; in a URL, too."""
    parts = [part[: len(part) // 2] for part in credential.split(".")[-2:] if part]
    return {*parts, *("".join(f"%{byte:02x}" for byte in part.encode()) for part in parts)}


@dataclass
class Leaks:
    """Credentials, by the place they were put in, and everything that was answered to whoever put them there."""

    node: Node
    credentials: dict[str, str] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)

    def good(self, place: str, **claims: Any) -> str:
        """A token of this place alone, which the node accepts unless `claims` say otherwise."""
        return self._keep(place, token(sub=secrets.token_hex(16), **claims))

    def bad(self, place: str) -> str:
        """One that it does not."""
        return self.good(f"{place}, wrong secret", secret=ANOTHER_SECRET)

    def expired(self, place: str) -> str:
        return self.good(f"{place}, expired", ttl=-3600)

    def rubbish(self, place: str) -> str:
        """What is no token at all, but may be somebody's key."""
        return self._keep(f"{place}, no token", f"rubbish-{secrets.token_hex(16)}")

    def any_of(self, place: str) -> list[str]:
        return [self.good(place), self.bad(place), self.expired(place), self.rubbish(place)]

    def _keep(self, place: str, credential: str) -> str:
        self.credentials[place] = credential
        return credential

    def get(self, path: str, **headers: str) -> None:
        self.answers.append(repr(http(self.node.http(path), headers)))

    async def talk(self, *messages: Any, credentials: str = "", query: str = "", **options: Any) -> None:
        """Connect, say all this, ping, and keep what comes back, whether it goes well or not."""
        try:
            async with maxicore(self.node, credentials, query, **options) as client:
                with contextlib.suppress(websockets.ConnectionClosed):
                    for message in (*messages, {"type": "ping"}):
                        await client.send(message)
                with contextlib.suppress(websockets.ConnectionClosed):
                    while (await client.receive())["type"] != "pong":
                        pass
                await client.socket.close()
        except websockets.InvalidHandshake as refusal:
            self.answers.append(repr(refusal) + str(getattr(refusal, "response", "")))
        else:
            socket = client.socket
            self.answers.append(json.dumps(client.messages) + f"{socket.close_reason} {socket.response}")

    def found_in(self, text: str) -> list[str]:
        """The places whose credential `text` gives away."""
        return [place for place, value in self.credentials.items() if any(needle in text for needle in needles(value))]


Leak = Callable[[Leaks], Awaitable[None]]


async def in_the_query(leaks: Leaks) -> None:
    for credential in leaks.any_of("query"):
        await leaks.talk(credentials=credential)
    for credential in leaks.any_of("query with Bearer"):
        await leaks.talk(credentials=f"Bearer%20{credential}")
    for credential in leaks.any_of("query, every character escaped"):
        await leaks.talk(credentials="".join(f"%{byte:02x}" for byte in credential.encode()))
    for credential in leaks.any_of("query under another name"):
        await leaks.talk(query=f"access_token={credential}&envelope={credential}&Token={credential}")
    for credential in leaks.any_of("query twice"):
        await leaks.talk(credentials=f"x&token={credential}")


async def in_headers(leaks: Leaks) -> None:
    for name, scheme in (
        ("Authorization", "Bearer "),
        ("Authorization", "Basic "),
        ("Authorization", ""),
        ("Cookie", "token="),
    ):
        for credential in leaks.any_of(f"header {name} {scheme}"):
            await leaks.talk(additional_headers={name: scheme + credential})
    for credential in leaks.any_of("header of no use"):
        await leaks.talk(additional_headers={"X-Api-Key": credential, "Origin": f"https://{credential[:40]}.example"})
    for credential in leaks.any_of("subprotocol"):
        await leaks.talk(subprotocols=[f"x-api-key.{credential}", credential])


async def in_messages(leaks: Leaks) -> None:
    for credential in leaks.any_of("first message"):
        await leaks.talk({"type": "auth", "token": f"Bearer {credential}"})
    for credential in leaks.any_of("first message of another kind"):
        await leaks.talk({"type": "subscribe", "token": credential})
    for credential in leaks.any_of("first message that is no JSON"):
        await leaks.talk(f'{{"type":"auth","token":"{credential}')
    for credential in leaks.any_of("renewal"):
        await leaks.talk({"type": "auth", "token": f"Bearer {credential}"}, credentials=leaks.good("before renewal"))
    for number, wrap in enumerate(WRONG_MESSAGES):
        for credential in leaks.any_of(f"wrong message {number}"):
            await leaks.talk(wrap(credential), credentials=token())


WRONG_MESSAGES: list[Callable[[str], Any]] = [
    lambda secret: secret,
    lambda secret: {"type": secret},
    lambda secret: {"type": "ping", "token": secret, secret: secret},
    lambda secret: {"type": "auth", "token": [secret]},
    lambda secret: {"type": "auth", "token": {"Bearer": secret}},
    lambda secret: {"type": "subscribe", "filters": {"token": secret, secret: 1}},
    lambda secret: {"type": "subscribe", "filters": {"agent_id": {secret: secret}}},
    lambda secret: {"type": "subscribe", "filters": secret},
    lambda secret: {"type": "subscribe", "filters": {"event_types": [secret]}},
    lambda secret: {"type": "subscribe", "filters": {"workspace_id": secret}},
    lambda secret: f'{{"type":"subscribe","filters":{{"agent_id":"{secret}"',
]


async def in_frames_that_are_none(leaks: Leaks) -> None:
    """Whatever a frame breaks, it has a token in it."""
    for number, frame in enumerate(BROKEN_FRAMES):
        for credential in (leaks.good(f"broken frame {number}"), leaks.rubbish(f"broken frame {number}")):
            async with maxicore(leaks.node, token()) as client:
                client.socket.transport.write(frame(credential.encode()))
                # The reserved opcode ends every connection that this frame has left open.
                client.socket.transport.write(masked(0x83, b""))
                leaks.answers.append(repr(await ended(client)))


async def ended(client: Client) -> Any:
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await client.receive()
    return client.socket.close_code, client.socket.close_reason, client.messages


def masked(first: int, payload: bytes, *, mask: int = 0x80, length: int | None = None) -> bytes:
    """A client's frame, masked with zeros: the token stands in it as it is."""
    size = len(payload) if length is None else length
    return bytes([first, mask | 126]) + size.to_bytes(2) + (b"\0\0\0\0" if mask else b"") + payload


BROKEN_FRAMES: list[Callable[[bytes], bytes]] = [
    lambda secret: masked(0x81, secret, mask=0),
    lambda secret: masked(0x82, secret),
    lambda secret: masked(0x83, secret),
    lambda secret: masked(0xC1, secret),
    lambda secret: masked(0x80, secret),
    lambda secret: masked(0x81, secret + b"\xff"),
    lambda secret: masked(0x89, secret),
    lambda secret: masked(0x01, secret) + masked(0x81, secret),
    lambda secret: masked(0x88, b"\x03\xe8" + secret),
    lambda secret: b"\x88" + bytes([0x80 | 100]) + b"\0\0\0\0" + b"\x0b\xb8" + (secret * 10)[:98],
    lambda secret: b"\x89" + bytes([0x80 | 100]) + b"\0\0\0\0" + (secret * 10)[:100],
    lambda secret: bytes([0x81, 0x80 | 127]) + (2**20).to_bytes(8) + b"\0\0\0\0" + secret,
]


async def in_http(leaks: Leaks) -> None:
    for path in ("/live", "/ready", "/metrics", "/v2/ws", "/v2/nothing", "/"):
        for credential in leaks.any_of(f"GET {path}"):
            leaks.get(f"{path}?token={credential}")
            leaks.get(f"{path}?token=Bearer%20{credential}", Authorization=f"Bearer {credential}")
    for credential in leaks.any_of("path"):
        leaks.get(f"/{credential}")
        leaks.get(f"/v2/ws/{quote(credential)}?x={credential}")
        for path in (f"/{credential}", f"/v2/ws/{credential}"):
            try:
                async with connect(leaks.node.ws(path), proxy=None):
                    pass
            except websockets.InvalidHandshake as refusal:
                leaks.answers.append(str(refusal) + str(getattr(refusal, "response", "")))


async def in_http_that_is_none(leaks: Leaks) -> None:
    for number, request in enumerate(BROKEN_REQUESTS):
        for credential in (leaks.good(f"broken request {number}"), leaks.rubbish(f"broken request {number}")):
            reader, writer = await asyncio.open_connection("127.0.0.1", leaks.node.port)
            writer.write(request.replace("TOKEN", credential).encode())
            writer.write_eof()
            leaks.answers.append((await asyncio.wait_for(reader.read(), 10)).decode("latin-1"))
            writer.close()
            await writer.wait_closed()


UPGRADE = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
BROKEN_REQUESTS = [
    "TOKEN\r\n\r\n",
    "GET /v2/ws?token=TOKEN HTTP/9.9\r\n\r\n",
    "GET /v2/ws?token=TOKEN\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET /v2/ws?token=TOKEN HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: TOKEN\r\n\r\n",
    f"GET /v2/ws?token=TOKEN HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Version: 7\r\n\r\n",
    f"POST /v2/ws?token=TOKEN HTTP/1.1\r\n{UPGRADE}Content-Length: 0\r\n\r\n",
    f"GET /v2/ws?token=TOKEN HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Protocol: ,TOKEN,,\r\nAuthorization: TOKEN\x02\r\n\r\n",
]


async def in_a_token_that_expires(leaks: Leaks) -> None:
    async with maxicore(leaks.node, leaks.good("expires while connected", ttl=1)) as client:
        leaks.answers.append(repr(await ended(client)))


PLACES: list[Leak] = [
    in_the_query,
    in_headers,
    in_messages,
    in_frames_that_are_none,
    in_http,
    in_http_that_is_none,
    in_a_token_that_expires,
]


async def test_no_secret_is_in_any_output_of_a_node_at_debug_level(prefix: str) -> None:
    """Tokens in every place a client can put them; a Redis with a password that goes away and comes back."""
    with private_redis(requirepass=PASSWORD) as redis:
        node = Node(with_password(redis.url), prefix, log_level="debug", slow_close_seconds=0.5).start()
        try:
            leaks = Leaks(node)
            leaks.credentials |= {"Redis' password": PASSWORD, "the key of all tokens": SECRET}
            for leak in PLACES:
                await leak(leaks)
            async with producer(node) as broker, maxicore(node, leaks.good("subscriber")) as client:
                await client.subscribe()
                await client.synchronise()
                await broker.publish(progress("ws-456"))
                await client.receive()
                redis.stop()
                await until(lambda: http(node.http("/ready"))[0] == 503, 20)
                for credential in leaks.any_of("without Redis"):
                    await leaks.talk(credentials=credential)
                leaks.get(f"/ready?token={leaks.good('/ready without Redis')}")
                redis.start()
                await until(lambda: http(node.http("/ready"))[0] == 200, 20)
            leaks.get("/metrics")
            node.signal(signal.SIGTERM)
            node.wait()
            output = node.output()
        finally:
            node.stop()
    assert "debug" in output.lower()
    assert leaks.found_in(output) == []
    assert leaks.found_in("\n".join(leaks.answers)) == []
    assert "Traceback" not in output


def run(*arguments: str, **settings: str) -> str:
    """All that a command that fails has to say."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    command = [sys.executable, "-m", "gateway", *arguments]
    answer = subprocess.run(
        command, env=environment | settings, capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode != 0
    return answer.stdout + answer.stderr


async def test_a_command_that_fails_does_not_say_its_secrets() -> None:
    secret, wrong = f"secret-{secrets.token_hex(16)}", f"wrong-{secrets.token_hex(8)}"

    async def refused_by(url: str) -> list[str]:
        event = ("--workspace", "ws-456", "--agent", "agent-123", "agent.online", "{}")
        return await asyncio.gather(
            asyncio.to_thread(run, "serve", "--port", "0", "--redis-url", url, TRUNKLINE_JWT_SECRET=secret),
            asyncio.to_thread(run, "publish", "--redis-url", url, *event),
            asyncio.to_thread(run, "tail", "--redis-url", url, "--workspace", "ws-456"),
        )

    nowhere = ("nonsense://:{}@localhost:99999", "redis://:{}@localhost:port", f"redis://:{{}}@localhost:{free_port()}")
    with private_redis(requirepass=PASSWORD) as redis:
        urls = [with_password(redis.url, wrong), *(url.format(wrong) for url in nowhere)]
        said = [words for group in await asyncio.gather(*map(refused_by, urls)) for words in group]
    for words in said:
        assert words
        assert "Traceback" not in words
        assert not any(needle in words for needle in (PASSWORD, wrong, secret))
