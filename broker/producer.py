"""The idempotent producer: each event lands once, in order, however often it has to be sent.

A producer has an id and numbers its calls to publish.lua, per workspace. One call is under way per workspace (a lane);
what is published meanwhile waits and goes into the next, so batches form by themselves under load. A call whose answer
is lost is sent again under its own number, and the script answers what it answered then.

A caller whose patience ends hears `Unavailable`. What of its events never left is taken back; the rest is in doubt, and
the lane goes on to settle that before it sends anything newer. A publish of an equal event within `RETRY_SECONDS` is
the retry, and takes over the promise of the first. Events with a timestamp of their own are never equal by chance.

What the holder of a run says of it is *fenced*: refused, alone, when somebody else holds the run or the run has ended.

Whoever wants replicas to have what it published asks for that after the call, away from the lane (replicas.py). What a
failover has taken meanwhile is published again, in its order.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from .errors import Lost, Unavailable, Unreplicated
from .events import Packed
from .keyspace import PRODUCER_SECONDS, STATE_SECONDS, Keyspace
from .patience import pause
from .positions import Position
from .replicas import Call, Replicas
from .script import Script

log = logging.getLogger("trunkline.producer")

MAX_CALL_EVENTS = 100
MAX_CALL_BYTES = 4 * 1024 * 1024
RETRY_SECONDS = 300.0
MAX_IDLE_LANES = 10_000

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_AGAIN_SECONDS = 0.25
_REFUSED = "!"


class Receipt(NamedTuple):
    """Where an event stands, and by which call."""

    position: Position
    call: Call


# An event's receipt to be; None for what has no position. Fails with `Lost` for one that was refused.
Promise = asyncio.Future[Receipt | None]


class Fence(NamedTuple):
    """Lets an event pass only while `holder` holds the run; an event that ends the run says in which `state`.

    `run`, `held` and `end` are the keys of the run, of its endpoint's leases and of the event that ends the run.
    """

    run: str
    held: str
    end: str
    holder: str
    execution: str
    state: str = ""

    def kind(self, index: int) -> str:
        """As publish.lua wants it, `run` being the key of this index."""
        return f"@{index} {self.holder} {self.state} {self.execution}"


# An event in a lane.
Entry = tuple[Packed, Fence | None, Promise]


class Producer:
    """One producer: a lane for each workspace, all over one Redis client whose own retries are off."""

    def __init__(
        self, redis: Redis, keys: Keyspace, replicas: Replicas, *, log_events: int, log_seconds: int, patience: float
    ) -> None:
        self.redis = redis
        self.keys = keys
        self._replicas = replicas
        self.patience = patience
        self._bounds = (log_events, log_seconds, PRODUCER_SECONDS, STATE_SECONDS, keys.publish)
        self._lanes: dict[str, Lane] = {}
        self._script = Script(redis, "publish")

    async def publish(self, events: Sequence[Packed], min_replicas: int = 0) -> list[Position | None]:
        """The positions of `events`, in their order. Raises `Unavailable` when nothing moves for `patience` seconds.

        With `min_replicas` so many replicas have what has a position; `Unreplicated` if not within `patience` seconds.
        """
        sent = [self._put(packed) for packed in events]
        try:
            await self._settled(sent)
            deadline = monotonic() + self.patience
            while min_replicas and (lost := await self._lost(sent, min_replicas, deadline)):
                log.warning("a failover took %d events before replicas had them: publishing them again", len(lost))
                # Whoever was the master may take them once more, while it does not know.
                await pause(_AGAIN_SECONDS)
                for at in lost:
                    sent[at] = self._put(sent[at].packed)
                await self._settled(sent)
        except BaseException:
            for lane in {each.lane for each in sent}:
                lane.give_up([(each.packed, each.promise) for each in sent if each.lane is lane])
            raise
        return [each.position for each in sent]

    def send(self, packed: Packed, fence: Fence) -> Promise:
        """Publish an event of a run after all that was sent before, without waiting.

        The promise is cancelled when Redis took nothing for `RETRY_SECONDS`. Look at it, but do not await it directly:
        the cancellation of whoever does would be its own.
        """
        return self._lane(packed.workspace).put(packed, fence)

    async def call(self, lane: "Lane") -> list[str]:
        """One round trip: the lane's call, as the header of publish.lua says."""
        agents = list(dict.fromkeys(packed.agent for packed, _, _ in lane.call))
        index = {agent: number for number, agent in enumerate(agents, 1)}
        name, workspace = self.keys, lane.workspace
        keys = [name.log(workspace), name.workspace(workspace), name.producer(workspace, lane.id)]
        keys += [name.agent(workspace, agent) for agent in agents]
        runs: dict[str, int] = {}
        arguments: list[Any] = [lane.number, *self._bounds, name.channel(workspace), len(agents)]
        arguments += [name.channel(workspace, agent) for agent in agents]
        for packed, fence, _ in lane.call:
            kind = packed.kind
            if fence is not None:
                if fence.run not in runs:
                    runs[fence.run] = len(keys) + 1
                    keys += (fence.run, fence.held, fence.end)
                kind = fence.kind(runs[fence.run])
            arguments += (index[packed.agent], kind, packed.stamp + packed.rest)
        if name.is_sharded:
            keys += name.registry(workspace)
        return [position.decode() for position in await self._script.run(keys, arguments)]

    def _put(self, packed: Packed) -> "Sent":
        lane = self._lane(packed.workspace)
        return Sent(lane, packed, lane.put(packed))

    async def _settled(self, sent: Sequence["Sent"]) -> None:
        """Wait until all of it has been answered. Raises `Unavailable`."""
        for lane, _, promise in sent:
            if not promise.done():
                await asyncio.wait((promise,), timeout=self.patience)
            if not promise.done() or promise.cancelled():
                raise Unavailable(f"Redis took no publish for {self.patience:g} s: {lane.problem}")

    async def _lost(self, sent: Sequence["Sent"], min_replicas: int, deadline: float) -> list[int]:
        """Which of `sent`, by index, are lost; replicas have the others. Raises `Unreplicated`."""
        receipts = [each.promise.result() for each in sent]
        calls = list(dict.fromkeys(receipt.call for receipt in receipts if receipt is not None))
        verdicts = dict(zip(calls, await self._replicas.have(calls, min_replicas, deadline), strict=True))
        doubt = next((verdict for verdict in verdicts.values() if isinstance(verdict, str)), None)
        if doubt is not None:
            raise Unreplicated(doubt, self.patience, [each.position for each in sent])
        return [at for at, receipt in enumerate(receipts) if receipt is not None and not verdicts[receipt.call]]

    async def close(self) -> None:
        """End what is still under way; its fate is unknown."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _lane(self, workspace: str) -> "Lane":
        lane = self._lanes.get(workspace)
        if lane is None:
            if len(self._lanes) >= MAX_IDLE_LANES:
                # A lane made anew has a new id: nothing is forgotten that still matters.
                self._lanes = {name: kept for name, kept in self._lanes.items() if not kept.is_idle}
            lane = self._lanes[workspace] = Lane(self, workspace)
        return lane


class Sent(NamedTuple):
    """An event under way."""

    lane: "Lane"
    packed: Packed
    promise: Promise

    @property
    def position(self) -> Position | None:
        receipt = self.promise.result()
        return None if receipt is None else receipt.position


class Lane:
    """The publishes of one workspace, one call at a time."""

    def __init__(self, producer: Producer, workspace: str) -> None:
        self.producer = producer
        self.workspace = workspace
        self.id = secrets.token_hex(8)
        self.number = 0  # of the call under way, else of the last one
        self.waiting: dict[Promise, Entry] = {}  # in their order
        self.call: list[Entry] = []
        self.problem: Exception | None = None  # why the call under way is not through
        self.task: asyncio.Task[None] | None = None
        self.asked = asyncio.Event()  # somebody has come since the last attempt
        # Promises whose callers gave up, by what their events say, and until when a retry may take them over.
        self.doubts: dict[bytes, deque[Promise]] = {}
        self.doubts_end = 0.0

    @property
    def is_idle(self) -> bool:
        return self.task is None and monotonic() > self.doubts_end

    def put(self, packed: Packed, fence: Fence | None = None) -> Promise:
        """Queue one event, or find that it is the retry of one in doubt."""
        self.asked.set()
        if fence is None and self.doubts and (promise := self._claim(packed)) is not None:
            return promise
        promise = asyncio.get_running_loop().create_future()
        self.waiting[promise] = (packed, fence, promise)
        if self.task is None:
            self.task = asyncio.create_task(self._run())
        return promise

    def give_up(self, entries: Iterable[tuple[Packed, Promise]]) -> None:
        """Their caller stopped waiting: take back what never left, remember the rest for a retry."""
        for packed, promise in entries:
            if self.waiting.pop(promise, None) is None:
                self.doubts.setdefault(packed.rest, deque()).append(promise)
                self.doubts_end = monotonic() + RETRY_SECONDS

    def _claim(self, packed: Packed) -> Promise | None:
        if monotonic() > self.doubts_end:
            self.doubts.clear()
        promises = self.doubts.get(packed.rest)
        while promises:
            promise = promises.popleft()
            if not promises:
                del self.doubts[packed.rest]
            if not promise.cancelled():
                return promise
        return None

    async def _run(self) -> None:
        """Send until nothing waits. An idle lane has no task."""
        try:
            while self.call or self.waiting:
                if not self.call:
                    self._load()
                await self._settle()
        finally:
            self.task = None

    def _load(self) -> None:
        """Put what waits into the next call, up to its bounds."""
        self.number += 1
        size = 0
        while self.waiting and len(self.call) < MAX_CALL_EVENTS and size < MAX_CALL_BYTES:
            entry = self.waiting.pop(next(iter(self.waiting)))
            size += len(entry[0].rest)
            self.call.append(entry)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, but not long when somebody new waits for it."""
        self.asked.clear()
        await pause(_FIRST_PAUSE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - _FIRST_PAUSE):
                await self.asked.wait()

    async def _settle(self) -> None:
        """Repeat the call, under its number, until Redis has answered it."""
        started = monotonic()
        seconds = _FIRST_PAUSE
        while True:
            try:
                positions = await self.producer.call(self)
            except (RedisError, OSError) as error:
                if isinstance(error, ResponseError) and str(error).startswith("OUT_OF_ORDER"):
                    # What Redis knows of us ends before this call: its history went back, or our record expired. So
                    # the call was not applied in any history that still exists.
                    log.warning("the producer's record of a workspace went back: going on under a new id")
                    self.id, self.number = secrets.token_hex(8), 1
                    continue
                self.problem = error
            else:
                break
            if monotonic() - started > RETRY_SECONDS:
                # Sent any later, it would be old news told as new.
                for _, _, promise in self.call:
                    promise.cancel()
                self.id, self.number, self.call = secrets.token_hex(8), 0, []
                return
            await self._pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)
        call = Call(self.workspace, self.id, self.number)
        for (_, _, promise), position in zip(self.call, positions, strict=True):
            if position == _REFUSED:
                promise.set_exception(Lost("the run is another's, or has ended"))
            else:
                promise.set_result(Receipt(Position(position), call) if position else None)
        self.call, self.problem = [], None
