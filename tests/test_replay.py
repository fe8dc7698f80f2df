"""Replays under pressure: what is held overflows, and nobody is told a position that they do not have."""

import asyncio
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker import Broker, Event
from broker.events import Carried
from broker.filters import Filter
from broker.lines import Gap
from broker.local import LocalRedis
from broker.log import Log, Page
from broker.positions import START, Position, is_after
from gateway.dialects.maxicore import VARIANTS
from gateway.groups import frame_of
from gateway.hub import Hub
from gateway.messages import Follow, GapSaid
from gateway.metrics import Metrics
from gateway.replay import Replays, Resume, Walk

from .lean import LeanClient
from .support import Node, private_redis, token

pytestmark = pytest.mark.anyio


def progress(workspace: str, step: int, size: int = 0) -> Event:
    data = {"task_id": "t", "step": step, "output": "x" * size}
    return Event(type="task.progress", workspace_id=workspace, agent_id="agent-1", data=data)


async def test_a_hold_that_overflows_during_a_replay_loses_nothing_of_any_workspace(
    redis_url: str, prefix: str, node: Node
) -> None:
    """One workspace is live while the history of another is replayed, and more comes there than is held."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (since, *_) = await broker.publish_many([progress("ws-b", step, 2000) for step in range(3000)])
        client = await LeanClient.connect(node, token("ws-a", "ws-b"), "envelope=flat")
        client.subscribe(workspace_id="ws-a")
        await client.synchronise()
        client.subscribe(workspace_id="ws-b", since={"ws-b": since})
        flood = asyncio.create_task(broker.publish_many([progress("ws-a", step, 8000) for step in range(800)]))
        await client.synchronise(60)
        await flood
        await client.synchronise(60)
        steps: dict[str, list[int]] = {"ws-a": [], "ws-b": []}
        for message in client.events():
            assert message["type"] == "task.progress"
            steps[message["workspace_id"]].append(message["step"])
        assert client.code is None
        assert steps["ws-b"] == list(range(1, 3000))
        assert steps["ws-a"] == list(range(800))
        client.close()


class Walker:
    """Somebody who resumes at a log's beginning. `fails_at` is the page, from 1, that a bug keeps it from taking."""

    def __init__(self, fails_at: int = 0, workspace: str = "ws-456") -> None:
        self.cursors = {workspace: Position(START)}
        self.connection = SimpleNamespace(is_gone=False, is_full=False, drained=self._drained)
        self.pages = 0
        self.taken: list[str | None] = []
        self._fails_at = fails_at

    def take(self, workspace: str, page: Page, places: list[Any], purged: Position) -> None:
        self.pages += 1
        if self.pages == self._fails_at:
            raise RuntimeError("its socket is closed")
        self.taken += [event.id for event in page.events]
        self.cursors[workspace] = page.end

    async def _drained(self) -> bool:
        return True


async def test_who_cannot_take_a_page_ends_alone(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        ids = await broker.publish_many([progress("ws-456", step) for step in range(200)])
        walk = Walk(broker.log, "ws-456", {}, asyncio.Semaphore(1))
        walkers = [Walker(), Walker(fails_at=1), Walker(fails_at=2), Walker()]
        async with asyncio.timeout(10):
            ends = await asyncio.gather(
                *(walk.join(cast(Resume, walker)) for walker in walkers), return_exceptions=True
            )
        assert [type(end) for end in ends] == [bool, RuntimeError, RuntimeError, bool]
        for walker in (walkers[0], walkers[-1]):
            assert walker.pages > 1
            assert walker.taken == ids


FLAT = VARIANTS["flat"]


class LateFeed:
    """Stands at `at` until it is asked to settle: then it hands on the rest of what Redis has published."""

    def __init__(self, hub: Hub, at: Position, rest: list[Carried]) -> None:
        self.hub, self.at, self.rest = hub, at, rest

    def server(self, workspace: str) -> None:
        return None

    def is_held(self, workspace: str) -> bool:
        return False

    def position(self, workspace: str, agents: Any) -> Position:
        return self.at

    async def settle(self, workspace: str) -> None:
        rest, self.rest = self.rest, []
        self.hub.dispatch(rest, 0.0)
        self.at = Position(rest[-1].id or START) if rest else self.at


class Watching:
    """A client as far as replays know one: keeps what is written to it, what it is told, and its place in the hub."""

    is_gone = is_full = False
    count = watch = None

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.written = b""
        self.told: list[tuple[Any, int]] = []  # each with how much was written before

    def write(self, data: bytes) -> None:
        self.written += data

    def perform(self, actions: list[Any]) -> None:
        self.told += [(action.notice, len(self.written)) for action in actions]

    def may_see(self, workspace: str) -> bool:
        return True

    async def drained(self) -> bool:
        return True

    def gap(self, gap: Gap) -> None:
        self.told.append((gap, len(self.written)))

    def place(self, interest: Any) -> None:
        self.hub.place(cast(Any, self), FLAT, interest, 0.0)


async def test_a_position_that_is_newer_than_the_feed_loses_nothing_of_what_was_followed_before(
    redis_url: str, prefix: str
) -> None:
    """It follows `a` up to where the feed stands, and comes with a position for `b`, from another node perhaps."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        await broker.publish_many(
            Event(type="task.progress", workspace_id="ws-456", agent_id=agent, data={"task_id": "t", "step": step})
            for step, agent in enumerate("abababaab")
        )
        events = (await broker.log.page("ws-456", START)).events
        a, b = (Filter(workspaces=frozenset({"ws-456"}), agents=frozenset({agent})) for agent in "ab")
        for at, since in product(range(9), repeat=2):
            hub = Hub()
            feed = LateFeed(hub, cast(Position, events[at].id), events[at + 1 :])
            client = Watching(hub)
            client.place(frozenset({a}))
            replays = Replays(broker.log, cast(Any, feed), hub, Metrics())
            follow = Follow(frozenset({a, b}), frozenset({b}), frozenset({a}), {"ws-456": str(events[since].id)})
            await replays.resume(cast(Any, client), FLAT, follow, None)
            owed = [e for n, e in enumerate(events) if n > (at if e.agent_id == "a" else since)]
            assert client.written == b"".join(frame_of(event, FLAT) or b"" for event in owed), (at, since)


class Losing(LateFeed):
    """Hears `rest`, of which Redis then loses the first, and tells the gap where it comes."""

    async def settle(self, workspace: str) -> None:
        lost, *rest = self.rest
        self.rest = []
        self.hub.dispatch([lost], 0.0)
        self.hub.lose(Gap(workspace, None, cast(Position, lost.id)))
        self.hub.dispatch(rest, 0.0)
        self.at = cast(Position, rest[-1].id)


async def test_a_gap_during_a_resume_comes_behind_what_was_lost(redis_url: str, prefix: str) -> None:
    async with (
        Broker.connect(redis_url, prefix=prefix) as broker,
        Broker.connect(redis_url, prefix=prefix + "-2") as other,
    ):
        await broker.publish_many([progress("ws-456", step) for step in range(3)])
        await other.publish_many([progress("ws-456", step) for step in range(6)])
        logged = (await broker.log.page("ws-456", START)).events
        lost, *news = (await other.log.page("ws-456", START)).events[3:]
        assert is_after(lost.id or START, logged[-1].id or START)
        hub = Hub()
        client, a = Watching(hub), frozenset({Filter(workspaces=frozenset({"ws-456"}))})
        replays = Replays(broker.log, cast(Any, Losing(hub, START, [lost, *news])), hub, Metrics())
        await replays.resume(cast(Any, client), FLAT, Follow(a, a, frozenset(), {"ws-456": START}), None)
        until_gap, all_of_it = (
            b"".join(frame_of(event, FLAT) or b"" for event in events)
            for events in ([*logged, lost], [*logged, lost, *news])
        )
        assert client.written == all_of_it
        assert client.told == [(Gap("ws-456", None, cast(Position, lost.id)), len(until_gap))]


async def test_who_has_gone_meanwhile_leaves_nothing_in_the_hub(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        hub = Hub()
        client = Watching(hub)
        client.is_gone = True  # redis-py swallowed the cancellation that told it so
        replays = Replays(broker.log, cast(Any, LateFeed(hub, START, [])), hub, Metrics())
        a = frozenset({Filter(workspaces=frozenset({"ws-456"}))})
        await replays.resume(cast(Any, client), FLAT, Follow(a, a, frozenset(), {"ws-456": START}), None)
        assert hub.groups == 0


class Emptied(Log):
    """Redis comes back empty before the third page is read, and goes on."""

    def __init__(self, broker: Broker, redis: LocalRedis, feed: LateFeed) -> None:
        super().__init__(broker.redis, broker.keys)
        self.broker, self.redis, self.feed = broker, redis, feed
        self.pages: list[Page] = []

    async def page(self, workspace: str, after: str, limit: int = 0) -> Page:
        if len(self.pages) == 2:
            await asyncio.to_thread(self.redis.stop)
            await asyncio.to_thread(self.redis.start)
            news = await self.broker.publish_many([progress(workspace, step) for step in range(3)])
            self.feed.at = cast(Position, news[-1])
        self.pages.append(await super().page(workspace, after, limit))
        return self.pages[-1]


async def test_a_history_that_is_lost_during_a_walk_is_a_gap_where_the_client_stands(prefix: str) -> None:
    with private_redis() as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker:
            since, *_, last = await broker.publish_many([progress("ws-456", step, 3000) for step in range(300)])
            hub = Hub()
            feed = LateFeed(hub, cast(Position, last), [])
            log = Emptied(broker, redis, feed)
            client, a = Watching(hub), frozenset({Filter(workspaces=frozenset({"ws-456"}))})
            replays = Replays(log, cast(Any, feed), hub, Metrics())
            await replays.resume(cast(Any, client), FLAT, Follow(a, a, frozenset(), {"ws-456": str(since)}), None)
            before = sum(len(frame_of(event, FLAT) or b"") for page in log.pages[:2] for event in page.events)
            (event, *_) = log.pages[2].events
            assert client.told == [(GapSaid("ws-456", log.pages[1].end, event.id), before)]
