"""The Python client against real nodes: what a watcher gets, also when nodes, tokens and history come and go."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker import Broker, Event, Invalid, Unavailable
from broker.client import Denied, Gap, course, watch, watching
from broker.client.course import Course
from broker.client.words import PING

from .proxy import proxy
from .support import Node, free_port, private_redis, token, until
from .wire.helpers import Stage, progress

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

StartNode = Callable[..., Node]


class Watcher:
    """What one watch has brought, and how it ended."""

    def __init__(self, items: AsyncIterator[Event | Gap]) -> None:
        self.items: list[Event | Gap] = []
        self.task = asyncio.create_task(self._run(items))

    async def _run(self, items: Any) -> None:
        async with contextlib.aclosing(items):
            async for item in items:
                self.items.append(item)

    @property
    def ids(self) -> list[str | None]:
        return [item.id for item in self.items if isinstance(item, Event)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    async def has(self, count: int) -> list[Event | Gap]:
        await until(lambda: len(self.items) >= count or self.task.done(), 20, f"{count} items")
        if self.task.done():
            self.task.result()
        return self.items


@contextlib.asynccontextmanager
async def watching_(url: str, **asked: Any) -> AsyncIterator[Watcher]:
    watcher = Watcher(watch(url, **asked))
    try:
        yield watcher
    finally:
        watcher.task.cancel()
        await asyncio.gather(watcher.task, return_exceptions=True)


def connections(node: Node) -> float:
    return node.metric("trunkline_connections", dialect="maxicore")


# -- what is watched


async def test_it_brings_what_a_watcher_beside_redis_gets(stage: Stage) -> None:
    said = progress(stage.workspace, timestamp="2026-03-27T10:30:45Z")
    async with watching_(stage.node.ws("/v2/ws"), token=token(stage.workspace), since="0-0") as watcher:
        (position,) = await stage.publish(said)
        (item,) = await watcher.has(1)
    beside = [event.event() for event in (await stage.broker.log.page(stage.workspace, "0-0")).events]
    assert [item] == beside
    assert isinstance(item, Event)
    assert (item.id, item.timestamp, item.data) == (position, said.timestamp, said.data)


async def test_every_filter_narrows_it(stage: Stage) -> None:
    both = token(stage.workspace, stage.other)
    url = stage.node.ws("/v2/ws")
    start = {"since": dict.fromkeys(stage.workspaces, "0-0")}
    async with (
        watching_(url, token=both, agent_id="a-1", **start) as one_agent,
        watching_(url, token=both, task_id=["t-1", "t-2"], **start) as tasks,
        watching_(url, token=both, event_types=["task.completed"], **start) as types,
        watching_(url, token=both, workspace_id=stage.other, since="0-0") as workspace,
    ):
        a, b, c = await stage.publish(
            progress(stage.workspace, agent="a-1", task="t-1"),
            progress(stage.workspace, agent="a-2", task="t-2"),
            progress(stage.other, agent="a-3", task="t-3"),
        )
        completed = Event(
            type="task.completed", workspace_id=stage.other, agent_id="a-1", data={"task_id": "t-3", "result": {}}
        )
        (d,) = await stage.publish(completed)
        for watcher, wanted in ((one_agent, [a, d]), (tasks, [a, b]), (types, [d]), (workspace, [c, d])):
            await watcher.has(len(wanted))
            assert sorted(watcher.ids) == sorted(wanted)


async def test_a_watch_without_a_position_begins_now_and_has_live_only_events_too(stage: Stage) -> None:
    await stage.publish(progress(stage.workspace, 1))
    async with watching_(stage.node.ws("/v2/ws"), token=token(stage.workspace)) as watcher:

        async def is_live() -> bool:
            await stage.broker.publish(progress(stage.workspace, 2, ephemeral=True))
            return bool(watcher.items)

        await until(is_live)
        (position,) = await stage.publish(progress(stage.workspace, 3))
        await until(lambda: position in watcher.ids)
    assert watcher.ids == [None] * (len(watcher.ids) - 1) + [position]


async def test_its_connection_ends_with_the_iterator(start_node: StartNode) -> None:
    node = start_node()
    async with Broker.connect(node.redis_url, prefix=node.prefix) as broker:
        async with contextlib.aclosing(watch(node.ws("/v2/ws"), token=token("ws-1"), since="0-0")) as items:
            await broker.publish(progress("ws-1"))
            assert isinstance(await anext(items), Event)
            assert await until(lambda: connections(node) == 1)
        await until(lambda: connections(node) == 0)


# -- what cannot be


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:1/v2/ws",
        "ws://",
        "ws://127.0.0.1:port/v2/ws",
        "ws://[::1/",
        "ws://a..b/",
        "ws://me@127.0.0.1/",
    ],
)
async def test_a_url_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(Invalid, match=r"^url: expected ws"):
        await anext(watch(url, token="t"))


async def test_what_a_token_s_maker_raises_ends_the_watch() -> None:
    def make() -> str:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        await anext(watch("ws://127.0.0.1:1/v2/ws", token=make))


async def ended(node: Node, path: str = "/v2/ws", **asked: Any) -> Exception:
    """How a watch ends that cannot be."""
    asked = {"token": token()} | asked
    with pytest.raises((Invalid, Denied, Unavailable)) as caught:
        async with asyncio.timeout(20):
            await anext(watch(node.ws(path), **asked))
    return caught.value


async def test_what_does_not_pass_is_said(shared_node: Node) -> None:
    bad = token(secret="another secret of at least thirty-two bytes")
    denied = await ended(shared_node, token=bad)
    assert isinstance(denied, Denied)
    assert bad not in str(denied)
    foreign = await ended(shared_node, workspace_id="ws-other")
    assert isinstance(foreign, Denied)
    assert "workspace" in str(foreign)
    unknown = await ended(shared_node, event_types="task.dreamt")
    assert isinstance(unknown, Invalid)
    assert "event_types" in str(unknown)
    elsewhere = await ended(shared_node, "/v3/ws")
    assert isinstance(elsewhere, Invalid)
    assert "/v2/ws" in str(elsewhere)
    many = await ended(shared_node, token=token("ws-1", "ws-2"), since="0-0")
    assert isinstance(many, Invalid)
    assert "$.since" in str(many)
    long = await ended(shared_node, agent_id=[f"{number:0200}" for number in range(400)])
    assert isinstance(long, Invalid)


async def test_patience_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable, match=r"no gateway for 0\.5 s"):
        await anext(watch(f"ws://127.0.0.1:{free_port()}/v2/ws", token="secret-token", patience_seconds=0.5))
    assert [record.levelname for record in caplog.records if record.name == "trunkline.client"][:1] == ["WARNING"]
    assert "secret-token" not in caplog.text


# -- tokens


async def test_a_token_that_expires_is_made_anew_and_nothing_is_missed(stage: Stage) -> None:
    made: list[str] = []

    async def make() -> str:
        made.append(token(stage.workspace, ttl=1.5 if not made else 3600, jti=str(len(made))))
        return made[-1]

    async with watching_(stage.node.ws("/v2/ws"), token=make, since="0-0") as watcher:
        first = await stage.publish(progress(stage.workspace, 1))
        await watcher.has(1)
        await until(lambda: len(made) == 2)
        second = await stage.publish(progress(stage.workspace, 2))
        await watcher.has(2)
    assert watcher.ids == first + second


async def test_a_token_that_expires_and_is_all_there_is_ends_the_watch(stage: Stage) -> None:
    async with watching_(stage.node.ws("/v2/ws"), token=token(stage.workspace, ttl=1.5), since="0-0") as watcher:
        await stage.publish(progress(stage.workspace))
        await watcher.has(1)
        await until(watcher.task.done)
        assert isinstance(watcher.task.exception(), Denied)


# -- what comes and goes


async def test_a_node_that_leaves_or_is_killed_costs_nothing(
    start_node: StartNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "LONGEST_PAUSE_SECONDS", 0.2)
    node = start_node(drain_seconds=0)
    tokens = token("ws-1"), token("ws-1", "ws-2")
    async with (
        Broker.connect(node.redis_url, prefix=node.prefix) as broker,
        watching_(node.ws("/v2/ws"), token=tokens[0], since="0-0") as single,
        watching_(node.ws("/v2/ws"), token=tokens[1]) as several,
    ):
        # Nothing of ws-1 is published until both begin: where that is only a pong can tell.
        await until(lambda: connections(node) == 2)
        await until(lambda: node.metric("trunkline_resumes_total") == 2)
        positions: list[str] = []
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            node.signal(number)
            positions.append(str(await broker.publish(progress("ws-1"))))
            await asyncio.to_thread(node.wait)
            positions.append(str(await broker.publish(progress("ws-1"))))
            await asyncio.to_thread(node.start)
            positions.append(str(await broker.publish(progress("ws-1"))))
            for watcher in (single, several):
                await watcher.has(len(positions))
        assert single.ids == several.ids == positions
    assert not [one for one in tokens if one in caplog.text]


async def test_a_gap_is_said_and_the_watch_goes_on_behind_it(start_node: StartNode) -> None:
    node = start_node(log_events=3)
    async with (
        Broker.connect(node.redis_url, prefix=node.prefix, log_events=3) as broker,
        watching_(node.ws("/v2/ws"), token=token("ws-1"), agent_id="agent-123", since="0-0") as watcher,
    ):
        first = str(await broker.publish(progress("ws-1")))
        await watcher.has(1)
        node.signal(signal.SIGKILL)
        await asyncio.to_thread(node.wait)
        for step in range(8):
            await broker.publish(progress("ws-1", step))
        await asyncio.to_thread(node.start)
        await watcher.has(2)

        async def goes_on() -> bool:
            await broker.publish(progress("ws-1"))
            return len(watcher.items) > 2

        await until(goes_on)
        gap = watcher.gaps[0]
        assert (gap.workspace, gap.agents, gap.since) == ("ws-1", frozenset(("agent-123",)), first)
        assert len(watcher.gaps) == 1


async def test_who_takes_too_slowly_is_cut_off_and_misses_nothing(start_node: StartNode) -> None:
    node = start_node(max_backlog_bytes=64 * 1024, slow_close_seconds=0.5, log_events=100_000)
    async with (
        Broker.connect(node.redis_url, prefix=node.prefix, log_events=100_000) as broker,
        contextlib.aclosing(watch(node.ws("/v2/ws"), token=token("ws-1"), since="0-0")) as items,
    ):
        positions = [str(await broker.publish(progress("ws-1")))]
        taken = [await anext(items)]
        while not node.metric("trunkline_slow_consumers_total"):
            wide = Event(
                type="task.progress",
                workspace_id="ws-1",
                agent_id="a",
                data={"task_id": "t", "step": 1, "output": "x" * 30_000},
            )
            positions += [str(position) for position in await broker.publish_many([wide] * 50)]
        async with asyncio.timeout(20):
            while len(taken) < len(positions):
                taken.append(await anext(items))
    assert [item.id for item in taken if isinstance(item, Event)] == positions


async def test_a_gateway_that_says_nothing_any_more_is_left(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_SECONDS", 0.2)
    async with proxy(stage.node.port) as middle:
        url = f"ws://127.0.0.1:{middle.port}/v2/ws"
        async with watching_(url, token=token(stage.workspace), since="0-0") as watcher:
            first = await stage.publish(progress(stage.workspace, 1))
            await watcher.has(1)
            middle.pause()
            second = await stage.publish(progress(stage.workspace, 2))
            before = len(middle._writers)
            await until(lambda: len(middle._writers) > before or not middle._writers, what="a new connection")
            middle.go_on()
            await watcher.has(2)
        assert watcher.ids == first + second


async def test_a_silent_gateway_that_answers_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own pings are what a quiet connection lives by: without them it would be closed as idle."""
    monkeypatch.setattr(watching, "QUIET_SECONDS", 0.05)
    quiet, asked = Course.quiet, []

    def count(self: Course) -> str | None:
        asked.append(quiet(self))
        return asked[-1]

    monkeypatch.setattr(Course, "quiet", count)
    async with watching_(stage.node.ws("/v2/ws"), token=token(stage.workspace), since="0-0") as watcher:
        await stage.publish(progress(stage.workspace, 1))
        await watcher.has(1)
        opened = stage.node.metric("trunkline_connections_opened_total")
        await until(lambda: len(asked) > 5)
        assert stage.node.metric("trunkline_connections_opened_total") == opened
    assert set(asked) == {PING}


@contextlib.asynccontextmanager
async def answering(*head: str) -> AsyncIterator[tuple[str, list[float]]]:
    """Something that answers each handshake so: its URL, and when it was asked."""
    asked: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(time.monotonic())
        writer.write("\r\n".join([*head, "Content-Length: 8", "", "leaving\n"]).encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2/ws", asked


async def test_a_refusal_with_retry_after_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "FIRST_PAUSE_SECONDS", 0.0)
    async with answering("HTTP/1.1 503 Service Unavailable", "Retry-After: 1") as (url, asked):
        with pytest.raises(Unavailable, match="503 leaving"):
            await anext(watch(url, token="t", patience_seconds=1.5))
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1.0


async def test_a_balancer_that_wants_tls_is_no_gateway() -> None:
    async with answering("HTTP/1.1 301 Moved", "Location: https://127.0.0.1/v2/ws") as (url, asked):
        with pytest.raises(Invalid, match="no ws://"):
            await anext(watch(url, token="t"))
    assert len(asked) == 1


async def test_a_redis_that_forgets_everything_is_a_gap_and_not_silence(start_node: StartNode) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url)
        async with (
            Broker.connect(redis.url, prefix=node.prefix) as broker,
            watching_(node.ws("/v2/ws"), token=token("ws-1")) as watcher,
        ):
            await until(lambda: node.metric("trunkline_resumes_total") == 1)
            first = str(await broker.publish(progress("ws-1", 1)))
            await watcher.has(1)
            redis.stop()
            redis.start()
            await until(lambda: broker.publish(progress("ws-1", 2)))
            await until(lambda: watcher.gaps, 20)
            assert watcher.gaps[0].since == first
            last = str(await broker.publish(progress("ws-1", 3)))
            await until(lambda: last in watcher.ids)
