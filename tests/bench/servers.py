"""What is measured: a Trunkline node and the baseline, each a process on the server's core."""

import asyncio
import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from redis import Redis

from broker import Broker
from broker.credentials import Credentials
from broker.keyspace import Keyspace
from broker.local import LocalRedis, find_redis_server

from ..support import SECRET, free_port, http
from . import payload, registry
from .machine import Cores

PREFIX = "bench"
ENDPOINT = "coffee-shop-e66b8d23"
UNLIMITED = -1
_PATHS = {
    "maxicore": "/v2/ws?token={token}&envelope=flat",
    "freeagentics": "/api/v1/ws?token={token}",
    "agnt5": f"/ws?x-wf-endpoint={ENDPOINT}",
}
_START_SECONDS = 20.0


class BenchError(Exception):
    """A process of the benchmark failed; the text ends with its last words."""


class DidNotStartError(BenchError):
    """A server does not get ready: there is nothing to measure."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server, and how a load speaks to it. One that only speaks HTTP has no paths and no ways."""

    pid: int
    port: int
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Where clients of each dialect connect, with what `clients.connect` replaces."""
    broadcast_way: str = ""
    unicast_way: str = ""
    """How events get to it: see `publisher`."""


@contextlib.contextmanager
def fresh_redis() -> Iterator[LocalRedis]:
    """A Redis on the load's core: it inherits the placement of this process."""
    with LocalRedis(find_redis_server()) as redis:
        yield redis


@contextlib.contextmanager
def trunkline(
    redis: LocalRedis, cores: Cores, messages: int = UNLIMITED, profile: Path | None = None
) -> Iterator[Server]:
    """`trunkline serve`; with `profile`, under the sampler of `profiled`, which writes there.

    A connection may send so many `messages` a minute, and so may all of its user's together; so many requests a token.
    There may be any number of connections; those of users are counted all the same.
    """
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    environment |= {
        "TRUNKLINE_JWT_SECRET": SECRET,
        "TRUNKLINE_PREFIX": PREFIX,
        "TRUNKLINE_DRAIN_WAIT_SECONDS": "0",
        "TRUNKLINE_DRAIN_SECONDS": "0",
        "TRUNKLINE_MAX_CONNECTIONS_PER_USER": str(UNLIMITED),
        "TRUNKLINE_MAX_CONNECTIONS_PER_ADDRESS": str(UNLIMITED),
        "TRUNKLINE_MAX_CONNECTIONS_PER_ENDPOINT": str(UNLIMITED),
        "TRUNKLINE_MAX_CONNECTS_PER_MINUTE": str(UNLIMITED),
        "TRUNKLINE_MAX_MESSAGES_PER_MINUTE": str(messages),
        "TRUNKLINE_MAX_USER_MESSAGES_PER_MINUTE": str(messages),
        "TRUNKLINE_MAX_MESSAGES_PER_SECOND": str(UNLIMITED),
        "TRUNKLINE_MAX_REQUESTS_PER_MINUTE": str(messages),
    }
    command = [*_program(profile), "serve", "--host", "127.0.0.1", "--port", str(port), "--redis-url", redis.url]

    def is_ready() -> bool:
        return http(f"http://127.0.0.1:{port}/ready")[0] == 200

    with process("trunkline", command, cores.server, is_ready, environment) as pid:
        yield Server(pid, port, _PATHS, "log", "live")


@contextlib.contextmanager
def baseline(
    redis: LocalRedis, cores: Cores, messages: int = UNLIMITED, profile: Path | None = None
) -> Iterator[Server]:
    """The bare loop of `baseline`. It has no limits, and is not profiled: nearly all of it is one system call."""
    port = free_port()
    command = ["tests.bench.baseline", str(port), str(redis.port)]
    with process("baseline", command, cores.server, lambda: _listens(port), dict(os.environ)) as pid:
        yield Server(pid, port, dict.fromkeys(_PATHS, "/{agent}"), "ready-log", "ready")


@contextlib.contextmanager
def plain(answer: str, cores: Cores) -> Iterator[Server]:
    """The bare route of `plain`, which answers `answer`: a node's, head and body."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as file:
        file.write(answer.encode())
        file.flush()
        command = ["tests.bench.plain", str(port), file.name]
        with process("plain", command, cores.server, lambda: _listens(port), dict(os.environ)) as pid:
            yield Server(pid, port)


@contextlib.contextmanager
def filled_redis(cores: Cores, agents: int) -> Iterator[LocalRedis]:
    """A Redis with so many agents in the one workspace, every second one of them online as long as the block runs."""
    with fresh_redis() as redis, Redis.from_url(redis.url) as client:
        registry.fill(redis.port, PREFIX, agents)
        presence = Keyspace(PREFIX).presence(payload.WORKSPACE)

        def is_ready() -> bool:
            return bool(client.zcard(presence) == (agents + 1) // 2)

        command = ["tests.bench.registry", str(redis.port), PREFIX]
        with process("registry", command, cores.load, is_ready, dict(os.environ)):
            yield redis


@contextlib.contextmanager
def worker(redis: LocalRedis, cores: Cores, profile: Path | None = None) -> Iterator[int]:
    """`trunkline worker` with `noop`, on whatever core has time: neither the node nor the load should have to wait."""
    environment = os.environ | {"REDIS_URL": redis.url}
    command = [*_program(profile), "worker", "tests.bench.noop:worker"]
    served = Keyspace(PREFIX).served(payload.WORKSPACE, ENDPOINT)
    with Redis.from_url(redis.url) as client:

        def is_ready() -> bool:
            return bool(client.exists(served))  # it says what it serves as soon as it works

        with process("worker", command, cores.server | cores.load, is_ready, environment) as pid:
            yield pid


def make_key(redis: LocalRedis) -> str:
    """An API key of the workers' endpoint."""

    async def make() -> str:
        async with Broker.connect(redis.url, prefix=PREFIX) as broker:
            return (await Credentials(broker.redis, broker.keys).create(ENDPOINT, payload.WORKSPACE)).key

    return asyncio.run(make())


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _program(profile: Path | None) -> list[str]:
    return ["gateway"] if profile is None else ["tests.bench.profiled", str(profile), "gateway"]


@contextlib.contextmanager
def process(
    name: str, module: list[str], cores: frozenset[int], is_ready: Callable[[], bool], environment: dict[str, str]
) -> Iterator[int]:
    """Run `python -m` `module` on these cores until the block ends.

    Raises `DidNotStartError` when it does not get ready, `BenchError` when it does not live through the block.
    """
    with tempfile.TemporaryFile() as words:
        running = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
        )
        os.sched_setaffinity(running.pid, cores)  # before it has threads: they inherit it

        def last_words() -> str:
            words.seek(0)
            return words.read().decode(errors="replace").strip()[-1500:]

        try:
            deadline = time.monotonic() + _START_SECONDS
            while not is_ready():
                if running.poll() is not None or time.monotonic() > deadline:
                    raise DidNotStartError(f"{name} did not get ready: {last_words()}")
                time.sleep(0.05)
            yield running.pid
            if running.poll() is not None:
                raise BenchError(f"{name} ended with status {running.returncode} under load: {last_words()}")
        finally:
            end(running)


def end(running: subprocess.Popen[bytes]) -> None:
    """Ask a process of ours to end, and make sure that it does."""
    running.terminate()
    try:
        running.wait(5)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait(5)


def run_module(module: list[str], seconds: float, core: frozenset[int] | None = None) -> str:
    """Run `python -m` `module` to its end, at most so long; answers what it printed.

    It stays on this process's core unless another is given.
    """
    with subprocess.Popen(
        [sys.executable, "-m", *module],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        if core is not None:
            os.sched_setaffinity(running.pid, core)
        try:
            printed, words = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{module[0]} did not end within {seconds:.0f} s") from error
        finally:
            running.kill()  # only matters when it has not ended
    if running.returncode:
        raise BenchError(f"{module[0]} ended with status {running.returncode}: {words.strip()[-1500:]}")
    return printed
