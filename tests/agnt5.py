"""AGNT5 clients over a real socket, the endpoints they connect to, and a worker that does what a test wants it to."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import websockets.asyncio.client
from websockets.exceptions import InvalidStatus

from broker import Broker, Run, Worker
from broker.catalog import CATALOG
from broker.credentials import Created, Credentials
from broker.positions import START
from broker.runs import queue

from .support import Client, Node, until

TYPES = {name for name, kind in CATALOG.items() if kind.dialect == "agnt5"}
ENDS = {"execution_completed", "execution_failed", "execution_cancelled"}
GONE = "exec_000000000000000000000000"  # no run has this id

Message = dict[str, Any]


class Agnt5(Client):
    """An AGNT5 client that keeps all it was sent."""

    async def run(self, name: str, parameters: Message | None = None, **fields: Any) -> None:
        """Send a run message with these `fields` and no others."""
        await self.send({"name": name} | ({} if parameters is None else {"parameters": parameters}) | fields)

    async def start(self, name: str, parameters: Message | None = None, **fields: Any) -> str:
        """Run, and read until it has begun; answers its execution."""
        await self.run(name, parameters, **fields)
        begun = await self.until("execution_started")
        return str(begun["data"]["execution_id"])

    async def cancel(self, execution: str) -> None:
        await self.send({"type": "cancel", "execution_id": execution})

    async def resume(self, connection: str, since: Any = None) -> None:
        await self.send({"type": "resume", "connection_id": connection} | ({"since": since} if since else {}))

    async def until(self, *types: str, execution: str | None = None, seconds: float = 10.0) -> Message:
        """The next message of one of `types`, and of this execution; others before it are kept in `messages` alone."""
        while True:
            message = await self.receive(seconds)
            if message["type"] in types and execution in (None, message["data"]["execution_id"]):
                return message

    async def end(self, execution: str | None = None, seconds: float = 10.0) -> Message:
        """How it ended: the next end event."""
        return await self.until(*ENDS, execution=execution, seconds=seconds)

    async def ask(self, message: Any) -> list[Message]:
        """Everything that came in answer to `message`."""
        await self.send(message)
        return await self.synchronise()

    def of(self, execution: str) -> list[Message]:
        """All that was received of one execution."""
        return [message for message in self.messages if execution_of(message) == execution]

    def vanish(self) -> None:
        """Be gone without a farewell, as somebody in a tunnel is."""
        self.socket.transport.abort()


def execution_of(message: Message) -> str | None:
    found: str | None = message.get("data", {}).get("execution_id")
    return found


def types(messages: list[Message]) -> list[str]:
    return [message["type"] for message in messages]


def error(message: Message) -> Message:
    """The error inside a message; it is complete."""
    found: Message = message["data"]["details"]["error"]
    assert found.keys() == {"code", "message"}
    assert found["message"]
    assert isinstance(found["message"], str)
    return found


def refused(messages: list[Message]) -> list[str]:
    """The codes of `messages`, all of which say that no run came about."""
    for message in messages:
        assert message.keys() == {"type", "data"}
        assert message["type"] == "execution_failed"
        assert message["data"].keys() == {"timestamp", "details", "execution_id"}
        assert message["data"]["execution_id"] is None
    return [error(message)["code"] for message in messages]


@contextlib.asynccontextmanager
async def agnt5(
    node: Node, endpoint: str | None, key: str | None = None, offered: Sequence[str] | None = None, **options: Any
) -> AsyncIterator[Agnt5]:
    """A client of this endpoint that shows its key in the only subprotocol it offers, unless others are `offered`."""
    path = "/ws" if endpoint is None else f"/ws?x-wf-endpoint={endpoint}"
    if offered is None:
        offered = [] if key is None else [f"x-api-key.{key}"]
    options = {"ping_interval": None, "max_size": None, "max_queue": None, "compression": None, "proxy": None} | options
    options["subprotocols"] = offered or None
    async with websockets.asyncio.client.connect(node.ws(path), **options) as socket:
        yield Agnt5(socket)


class Refusal(NamedTuple):
    """The answer to a handshake that came to nothing."""

    status: int
    headers: Any
    body: bytes


async def refusal(node: Node, endpoint: str | None, key: str | None = None, **options: Any) -> Refusal:
    """Why this client may not come in."""
    try:
        async with agnt5(node, endpoint, key, **options):
            raise AssertionError("it was let in")
    except InvalidStatus as refused:
        response = refused.response
    assert key is None or key not in f"{response.headers}{bytes(response.body)!r}"
    return Refusal(response.status_code, response.headers, bytes(response.body))


class Crew:
    """A worker in this process, with three workflows.

    `noop` ends at once, `echo` answers what it was given. `wait` has a task, waits until `go` is set, has another one,
    and takes its leave in a `finally`. `begun`, `passed` and `left` are the executions of `wait` that came so far.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.go = asyncio.Event()
        self.begun: list[str] = []
        self.passed: list[str] = []
        self.left: list[str] = []
        for function in (self.noop, self.echo, self.wait):
            worker.workflow(function.__name__)(function)

    async def noop(self, run: Run) -> None: ...

    async def echo(self, run: Run, **given: Any) -> Any:
        return {"parameters": given, "metadata": run.metadata, "connection_id": run.connection_id}

    async def wait(self, run: Run) -> str:
        self.begun.append(run.id)
        try:
            async with run.task("before"):
                pass
            await self.go.wait()
            async with run.task("after"):
                pass
            self.passed.append(run.id)
        finally:
            self.left.append(run.id)
        return "waited"


HALF = ["execution_started", "workflow_start", "task_start", "task_end"]
WHOLE = [*HALF, "task_start", "task_end", "workflow_end", "execution_completed"]


class Shop:
    """An endpoint in a workspace, both nobody else's, and its key. Clients of it connect to `nodes`."""

    def __init__(
        self, nodes: list[Node], broker: Broker, *, redis_url: str, endpoint: str, workspace: str, made: Created
    ) -> None:
        self.nodes, self.broker, self._redis_url = nodes, broker, redis_url
        self.endpoint, self.workspace, self.made = endpoint, workspace, made
        self.credentials = Credentials(broker.redis, broker.keys)

    @property
    def key(self) -> str:
        return self.made.key

    def client(self, node: int = 0, **options: Any) -> contextlib.AbstractAsyncContextManager[Agnt5]:
        """A client on the node of this number."""
        return agnt5(self.nodes[node], self.endpoint, self.key, **options)

    def worker(self) -> Worker:
        return Worker(self._redis_url, endpoint=self.endpoint, prefix=self.nodes[0].prefix)

    @contextlib.asynccontextmanager
    async def crew(self) -> AsyncIterator[Crew]:
        """Somebody at work."""
        crew = Crew(self.worker())
        async with self.working(crew.worker):
            yield crew

    @contextlib.asynccontextmanager
    async def working(self, worker: Worker) -> AsyncIterator[None]:
        """`worker` at work; its workflows are known when this begins."""
        served = self.broker.keys.served(self.workspace, self.endpoint)
        with mock.patch.object(queue, "BLOCK_MS", 50):  # it leaves when it has read
            task = asyncio.create_task(worker.run())
            try:
                await until(lambda: self.broker.redis.exists(served))
                yield
            finally:
                task.cancel()
                await asyncio.wait((task,), timeout=15)
                assert task.done(), "the worker does not leave"
                assert task.cancelled() or task.exception() is None, task.exception()

    async def said(self, execution: str) -> list[str]:
        """The types of all that was said of a run so far, whether anybody listened or not."""
        events, end, is_last = [], START, False
        while not is_last:
            page, end, is_last, _ = await self.broker.log.page(self.workspace, end, 1000)
            events += [event.event() for event in page]
        return [event.type for event in events if event.data.get("execution_id") == execution]

    async def has_said(self, execution: str, *kinds: str) -> None:
        """Wait until one of these was said of a run."""

        async def is_said() -> bool:
            return bool({*kinds} & {*await self.said(execution)})

        await until(is_said, what=f"{kinds} to be said")


@contextlib.asynccontextmanager
async def opened(
    nodes: list[Node], endpoint: str | None = None, workspace: str | None = None, redis_url: str | None = None
) -> AsyncIterator[Shop]:
    """A shop on these nodes: under names that nobody else has, unless they are given.

    `redis_url` is where its worker and the test themselves find the Redis of the nodes, if not where these do.
    """
    name = secrets.token_hex(4)
    endpoint, workspace = endpoint or f"shop-{name}", workspace or f"ws-{name}"
    redis_url = redis_url or nodes[0].redis_url
    async with Broker.connect(redis_url, prefix=nodes[0].prefix) as broker:
        made = await Credentials(broker.redis, broker.keys).create(endpoint, workspace)
        yield Shop(nodes, broker, redis_url=redis_url, endpoint=endpoint, workspace=workspace, made=made)
