"""What tests of every kind stand on: a private redis-server, real nodes as processes, and waiting for a condition.

Nothing here is a stand-in: a `Node` is `trunkline serve` in a process of its own, reached over its socket.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import jwt
import websockets.asyncio.client

from broker.local import LocalRedis, find_redis_server, free_port

SECRET = "test-secret-of-at-least-thirty-two-bytes"
SHARED = Path(__file__).resolve().parents[2] / "shared"
IN_CI = os.environ.get("CI") == "true"


def token(*workspaces: str, ttl: float = 3600, secret: str = SECRET, **claims: Any) -> str:
    """A token that nodes of these tests accept."""
    now = int(time.time())
    names = list(workspaces) or ["ws-456"]
    return jwt.encode({"sub": "user-1", "workspaces": names, "iat": now, "exp": now + ttl} | claims, secret, "HS256")


async def until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """Wait for `condition` to be true, with a deadline; answers its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        await asyncio.sleep(0.02)


def http(url: str, headers: dict[str, str] | None = None, timeout: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """GET: status, headers (by lower-case name), body. 0 when nobody answers, or not to the end."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()
    except (OSError, HTTPException):
        return 0, {}, b""


class Node:
    """One `trunkline serve` process.

    `output()` is all it printed so far; `metric(name, **labels)` asks its `/metrics`.
    """

    def __init__(self, redis_url: str, prefix: str, *, port: int | None = None, **settings: Any) -> None:
        self.port = port or free_port()
        self.redis_url, self.prefix, self.settings = redis_url, prefix, settings
        self.log = Path(os.environ.get("TMPDIR", "/tmp")) / f"trunkline-test-{os.getpid()}-{self.port}.log"
        self.environment: dict[str, str] = {}  # beside the settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Node":
        """Start the process and wait until `/ready` answers 200."""
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + 15
        while http(self.http("/ready"))[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the node did not get ready:\n{self.output()}")
            time.sleep(0.02)
        return self

    def launch(self) -> None:
        """Start the process."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        defaults = {"jwt_secret": SECRET, "prefix": self.prefix, "drain_wait_seconds": 0, "drain_seconds": 2}
        for name, value in (defaults | self.settings).items():
            environment[f"TRUNKLINE_{name.upper()}"] = str(value)
        environment |= self.environment
        command = [sys.executable, "-X", "dev", "-m", "gateway", "serve", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--redis-url", self.redis_url]
        if self.settings.get("fast"):
            command.remove("-X")
            command.remove("dev")
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment)

    def http(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def ws(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that carry `labels`."""
        total = 0.0
        for line in http(self.http("/metrics"))[2].decode().splitlines():
            series, _, value = line.rpartition(" ")
            bare, _, rest = series.partition("{")
            if bare == name and all(f'{key}="{wanted}"' in rest for key, wanted in labels.items()):
                total += float(value)
        return total

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 15.0) -> int:
        """The exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> None:
        """End the process, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
        self.log.unlink(missing_ok=True)


@contextlib.contextmanager
def private_redis(**options: Any) -> Iterator[LocalRedis]:
    """A real redis-server of this test's own."""
    with LocalRedis(find_redis_server(), **options) as redis:
        yield redis


class Client:
    """A MaxiCore client over a real socket that keeps all it was sent."""

    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []

    async def send(self, message: Any) -> None:
        await self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def receive(self, seconds: float = 10.0) -> dict[str, Any]:
        """The next message; the connection's `ConnectionClosed` when it ends instead."""
        async with asyncio.timeout(seconds):
            message = json.loads(await self.socket.recv())
        self.messages.append(message)
        return message  # type: ignore[no-any-return]

    async def synchronise(self, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Everything that arrived before the answer to a ping of ours: what was asked before has happened then."""
        await self.send({"type": "ping"})
        before: list[dict[str, Any]] = []
        while (message := await self.receive(seconds))["type"] != "pong":
            before.append(message)
        return before

    async def subscribe(self, since: Any = None, **filters: Any) -> None:
        await self.send({"type": "subscribe", "filters": filters} | ({"since": since} if since is not None else {}))

    async def closed(self, seconds: float = 10.0) -> tuple[int, str]:
        """Close code and reason, once the server has closed."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self.receive(seconds)
        assert self.socket.close_code is not None
        return self.socket.close_code, self.socket.close_reason or ""


@contextlib.asynccontextmanager
async def maxicore(
    node: Node, credentials: str | None = None, query: str = "", **options: Any
) -> AsyncIterator[Client]:
    """A MaxiCore client, connected with `?token=` unless `credentials` is an empty string."""
    credentials = token() if credentials is None else credentials
    path = "/v2/ws?" + "&".join(part for part in (f"token={credentials}" if credentials else "", query) if part)
    options = {"ping_interval": None, "max_size": None, "max_queue": None, "compression": None, "proxy": None} | options
    async with websockets.asyncio.client.connect(node.ws(path), **options) as socket:
        yield Client(socket)
