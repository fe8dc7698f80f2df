"""A client of AGNT5 that gets everything to its end, whatever breaks between it and its runs.

    connected ──▶ ask again for each run of which it has heard nothing ──▶ resume after `since` ──▶ whole: send, cancel
        ▲                               └────────── refused: a pause ◀─────────────────┘              │
        └─────────────────────────────────── the connection breaks, another node ◀────────────────────┘

`since`  The position that came *last*, not the greatest one: a run that was asked for with a key is replayed from its
         beginning, so that positions go back there. It moves only while the connection is whole: before, what came does
         not say that nothing is missing.
Again    What is asked again goes before the resume, and must have been accepted: the resume follows all runs of the
         connection, and what is followed is not replayed when it is asked for again.
Twice    An event that comes again was asked for twice if its run was sent again on this connection, or if it stands
         behind the `since` of the connection's resume. Any other is `doubled`.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from broker.positions import order
from broker.runs.exchange import execution_id

from .agnt5 import ENDS, Agnt5, agnt5
from .agnt5_chaos_worker import ENDPOINT, WORKFLOW, Mood
from .support import Node

# Few enough that asking for all of them again, twice within a second, stays below the limit of messages: a ping that is
# refused has no pong.
MAX_OPEN = 30
PONG_SECONDS = 30.0
AGAIN = {"RATE_LIMITED", "UNAVAILABLE"}


class Wish(NamedTuple):
    """A run that shall be."""

    number: int
    seconds: float
    mood: Mood
    is_cancelled: bool


class Story:
    """What a client was told of one run: its events as they came, each once."""

    def __init__(self, wish: Wish, execution: str) -> None:
        self.wish, self.execution = wish, execution
        self.events: dict[str, dict[str, Any]] = {}  # by event_id

    @property
    def has_ended(self) -> bool:
        return any(event["type"] in ENDS for event in self.events.values())

    @property
    def is_to_be_cancelled(self) -> bool:
        return self.wish.is_cancelled and bool(self.events) and not self.has_ended


class Visit:
    """One connection."""

    def __init__(self, socket: Agnt5, since: str | None) -> None:
        self.socket = socket
        self.since = since
        self.is_whole = False
        self.asked_again: set[str] = set()  # executions
        self.told: set[str] = set()  # event_ids
        self.refusals = 0
        self.pong: asyncio.Future[str | None] | None = None

    def asked_twice(self, execution: str, event_id: str) -> bool:
        """Whether this event, which the client knows, was to come again."""
        if execution in self.asked_again:
            return True
        return event_id not in self.told and (self.since is None or order(event_id) > order(self.since))

    async def is_through(self) -> bool:
        """Wait until all that was asked before has happened. False: something was refused. Raises `TimeoutError`."""
        refusals, position = self.refusals, None
        while position is None:  # while Redis is away, pongs overtake and have no position
            self.pong = asyncio.get_running_loop().create_future()
            await self.socket.send({"type": "ping"})
            position = await asyncio.wait_for(self.pong, PONG_SECONDS)
            if self.refusals > refusals:
                return False
            if position is None:
                await asyncio.sleep(0.05)
        return True


class ChaosClient:
    """One client, with a `connection_id` of its own, that wants `wishes` to happen. `run` returns when they have."""

    def __init__(  # noqa: PLR0917 (made in one place)
        self, name: str, nodes: Sequence[Node], key: str, wishes: Sequence[Wish], chance: random.Random, pace: float
    ) -> None:
        """`pace`: runs that it starts per second, as long as no more than `MAX_OPEN` are under way."""
        self.name = name
        self._nodes, self._key, self._chance, self._pace = nodes, key, chance, pace
        stories = [Story(wish, execution_id(ENDPOINT, name, self._key_of(wish))) for wish in wishes]
        self.stories = {story.execution: story for story in stories}
        self._unsent = stories[::-1]
        self._open: dict[str, Story] = {}
        self._since: str | None = None
        self.told = Counter[str]()  # what happened on the way
        self.diary: list[str] = []  # all that was sent and heard
        self.doubled: list[str] = []
        self.surprises: list[str] = []

    async def run(self) -> None:
        while not self.is_done:
            try:
                await self._visit()
            except InvalidStatus as refused:
                self.told[f"refused {refused.response.status_code}"] += 1
                if refused.response.status_code != 503:
                    self.surprises.append(f"{self.name} was not let in: {refused}")
            except TimeoutError:
                self.surprises.append(f"{self.name} was left without an answer")
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                self.told[type(error).__name__] += 1
            await asyncio.sleep(self._chance.uniform(0.02, 0.2))

    async def recall(self) -> list[str]:
        """All that was ever told to this connection's runs, asked for from the beginning: event_ids as they come."""
        async with agnt5(self._nodes[0], ENDPOINT, self._key) as socket:
            await socket.resume(self.name)
            return [message["event_id"] for message in await socket.synchronise(30)]

    @property
    def is_done(self) -> bool:
        return not self._unsent and not self._open

    @property
    def has_sent_all(self) -> bool:
        return not self._unsent

    # -- a visit

    async def _visit(self) -> None:
        async with agnt5(self._chance.choice(self._nodes), ENDPOINT, self._key) as socket:
            self.told["connected"] += 1
            visit = Visit(socket, self._since)
            self._note(visit, f"connected to {socket.socket.remote_address[1]}")
            talking = asyncio.create_task(self._talk(visit))
            try:
                async for text in socket.socket:
                    self._hear(visit, json.loads(text))
            finally:
                talking.cancel()
                (outcome,) = await asyncio.gather(talking, return_exceptions=True)
            if not isinstance(outcome, asyncio.CancelledError | ConnectionClosed | None):
                raise outcome

    async def _talk(self, visit: Visit) -> None:
        try:
            while not self.is_done:
                visit.is_whole = await self._come_back(visit)
                if visit.is_whole:
                    await self._go_on(visit)
                await asyncio.sleep(self._chance.uniform(1.0, 1.5) if self._open else 0)
            await visit.is_through()  # what comes too often may come now
        finally:
            await visit.socket.socket.close()

    async def _come_back(self, visit: Visit) -> bool:
        """Ask for what may be missing. True when all of it has come."""
        for story in [story for story in self._open.values() if not story.events]:
            visit.asked_again.add(story.execution)
            self.told["asked again"] += 1
            await self._send(visit, story)
        if self._open and not await visit.is_through():
            return False
        visit.since = self._since
        self._note(visit, f"resume {self._since}")
        await visit.socket.resume(self.name, self._since)
        return not self._open or await visit.is_through()

    async def _go_on(self, visit: Visit) -> None:
        """Send what is new, until something is refused or all is done."""
        refusals, cancelled = visit.refusals, set[str]()
        while visit.refusals == refusals and not self.is_done:
            for story in [story for story in self._open.values() if story.is_to_be_cancelled]:
                if story.execution not in cancelled:
                    cancelled.add(story.execution)
                    self._note(visit, f"cancel {story.execution}")
                    await visit.socket.cancel(story.execution)
            if self._unsent and len(self._open) < MAX_OPEN:
                story = self._unsent.pop()
                self._open[story.execution] = story
                await self._send(visit, story)
            await asyncio.sleep(self._chance.expovariate(self._pace))

    async def _send(self, visit: Visit, story: Story) -> None:
        wish = story.wish
        self._note(visit, f"send {story.execution}")
        parameters = {"number": wish.number, "seconds": wish.seconds, "mood": wish.mood}
        metadata = {"idempotency_key": self._key_of(wish)}
        await visit.socket.run(WORKFLOW, parameters, metadata=metadata, connection_id=self.name)

    def _note(self, visit: Visit, words: str) -> None:
        self.diary.append(f"{time.time():.3f} {id(visit):x} {'whole' if visit.is_whole else '     '} {words}")

    @staticmethod
    def _key_of(wish: Wish) -> str:
        return f"run-{wish.number}"

    # -- what comes

    def _hear(self, visit: Visit, message: dict[str, Any]) -> None:
        kind, data = message["type"], message.get("data", {})
        self._note(visit, f"hear {kind} {data.get('execution_id')} {message.get('event_id')}")
        if kind == "pong" and visit.pong is not None and not visit.pong.done():
            visit.pong.set_result(message.get("event_id"))
        elif kind == "execution_failed" and data["execution_id"] is None:
            self._refused(visit, data["details"]["error"])
            return
        elif data.get("execution_id") in self.stories:
            self._told(visit, self.stories[data["execution_id"]], message)
        else:
            self.surprises.append(f"{self.name} was told {message}")
        if visit.is_whole and "event_id" in message:
            self._since = message["event_id"]

    def _told(self, visit: Visit, story: Story, message: dict[str, Any]) -> None:
        event_id = message["event_id"]
        if event_id not in story.events:
            story.events[event_id] = message
            if message["type"] in ENDS:
                self._open.pop(story.execution, None)
        elif visit.asked_twice(story.execution, event_id):
            self.told["told again"] += 1
        else:
            self.doubled.append(f"{event_id} {message['type']} of {story.execution}")
        visit.told.add(event_id)

    def _refused(self, visit: Visit, error: dict[str, str]) -> None:
        visit.refusals += 1
        self.told[error["code"]] += 1
        if error["code"] not in AGAIN:
            self.surprises.append(f"{self.name} was refused: {error}")
