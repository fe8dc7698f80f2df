"""Watching from Python: one filter's events as an async iterator, straight from Redis."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from .broker import Broker
from .errors import Unavailable
from .events import Carried, Event
from .feed import Feed
from .filters import Filter
from .lines import Gap, Taker
from .log import FIRST_PAGE_EVENTS
from .positions import START, Position, is_after

MAX_WAITING = 100_000


class _Queue(Taker):
    """What the feed brought, until it is taken."""

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.items: deque[Carried | Gap] = deque()
        self.stirred = asyncio.Event()

    def on_events(self, events: list[Carried]) -> None:
        self.items.extend(event for event in events if self.wanted.matches(event))
        if len(self.items) > MAX_WAITING:
            # Whoever takes them is too slow for what flows: no memory is large enough.
            first = next((item for item in self.items if isinstance(item, Carried)), None)
            self.items.clear()
            self.items.append(Gap(first.workspace_id if first else "", self.wanted.agents, START))
        self.stirred.set()

    def on_gap(self, gap: Gap) -> None:
        self.items.append(gap)
        self.stirred.set()


async def watch(broker: Broker, wanted: Filter, since: Position | None = None) -> AsyncIterator[Event | Gap]:
    """The events that `wanted` matches, in order per workspace, each once: from now, or first those after `since`.

    `since` needs a filter of one workspace. A `Gap` stands where events are lost for good.
    Raises `Unavailable` when the log cannot be read; a lost subscription is healed meanwhile without a word.
    """
    queue = _Queue(wanted)
    feed = Feed(broker.address, broker.keys, broker.log, queue, publisher=broker.redis)
    task = asyncio.create_task(feed.run())
    try:
        agents: set[str | None] = {None} if wanted.agents is None else set(wanted.agents)
        joined = feed.want([(workspace, agent) for workspace in wanted.workspaces for agent in agents])
        if joined is not None:
            await joined
        if since is not None:
            (workspace,) = wanted.workspaces
            bounds = await broker.log.bounds(workspace, since, wanted.agents or ())
            if not bounds.is_valid:
                yield Gap(workspace, wanted.agents, since, bounds.oldest)
                since = None
            else:
                is_entry, is_last, limit = bounds.is_entry, False, FIRST_PAGE_EVENTS
                while not is_last:
                    before = since
                    events, since, is_last, limit = await broker.log.page(workspace, before, limit)
                    if is_entry and events and is_after(events[0].prev or START, before):
                        yield Gap(workspace, wanted.agents, before, Position(events[0].id or START))
                    is_entry = True
                    for event in events:
                        if wanted.matches(event):
                            yield event.event()
        while not task.done():
            while queue.items:
                item = queue.items.popleft()
                if isinstance(item, Gap):
                    yield item
                elif since is None or item.id is None or is_after(item.id, since):
                    yield item.event()
            queue.stirred.clear()
            await queue.stirred.wait()
        raise Unavailable("the subscription has ended")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
