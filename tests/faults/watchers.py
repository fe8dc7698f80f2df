"""Clients of a fault run: they come back whatever happens, and keep all that they were told.

connect ──▶ subscribe, after what was seen last ──▶ listen, ping ──▶ the connection ends ──▶ a pause, again
"""

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from broker.catalog import CATALOG
from broker.positions import is_after, order

from ..support import token
from .clocks import now
from .model import BEGINNING, EVENTS_LOST, Closed, Diary, Entry, GapTold, Interest, Opened, Stood, Told
from .story import Story
from .words import subject

PING_SECONDS = 1.0
PING: dict[str, Any] = {"type": "ping"}
BALANCERS_OWN = {502, 503, 504}

Message = dict[str, Any]
Since = dict[str, str]


class Words(Protocol):
    """What a dialect calls things."""

    path: str
    kinds: frozenset[str]  # of events
    flood: str  # the kind that comes to those who do not read

    def subscribe(self, interest: Interest, since: Since | None) -> Message:
        """The subscription; `since` are positions by workspace."""

    def gap(self, message: Message) -> GapTold | None:
        """The gap that a message tells."""


class MaxiCore:
    path = "/v2/ws?envelope=flat&token="
    kinds = frozenset(name for name, kind in CATALOG.items() if kind.dialect == "maxicore")
    flood = "task.progress"

    def subscribe(self, interest: Interest, since: Since | None) -> Message:
        filters: Message = {"event_types": sorted(interest.kinds)}
        if interest.agents is not None:
            filters["agent_id"] = sorted(interest.agents)
        return {"type": "subscribe", "filters": filters} | _since(since)

    def gap(self, message: Message) -> GapTold | None:
        is_one = message["type"] == "resume.gap"
        return GapTold(message["workspace_id"], message["since"], now()) if is_one else None


class FreeAgentics:
    path = "/api/v1/ws?token="
    kinds = frozenset(("inference_started", "inference_completed"))
    flood = "inference_completed"

    def subscribe(self, interest: Interest, since: Since | None) -> Message:
        data: Message = {"events": sorted(interest.kinds)}
        if interest.agents is not None:
            data["agents"] = sorted(interest.agents)
        return {"type": "subscribe", "data": data | _since(since)}

    def gap(self, message: Message) -> GapTold | None:
        data = message.get("data", {})
        return GapTold(data["workspace_id"], data["since"], now()) if message["type"] == "resume_gap" else None


def old_token(*workspaces: str, **claims: Any) -> str:
    """A token that was valid already by a clock that goes after."""
    return token(*workspaces, iat=int(time.time()) - 3600, **claims)


def _since(since: Since | None) -> Message:
    """One workspace's position as it is, those of several as an object."""
    if since is None:
        return {}
    return {"since": since if len(since) > 1 else next(iter(since.values()))}


class Way(NamedTuple):
    """How a watcher watches."""

    keeps_positions: bool = True
    trusts_pongs: bool = False  # it goes on from the position that a pong tells, not from the last event's
    is_slow: bool = False  # its socket holds little that is not read


class Watcher:
    """One client. `run` it until it is cancelled."""

    def __init__(  # noqa: PLR0917 (made in one place)
        self,
        name: str,
        urls: Sequence[str],
        words: Words,
        interest: Interest,
        way: Way,
        story: Story,
        chance: random.Random,
    ) -> None:
        self.name, self.words, self.interest, self.way = name, words, interest, way
        self._story, self._chance = story, chance
        # A user of its own: limits are counted per user, and this is not about them.
        self.token = old_token(*sorted(interest.workspaces), sub=name)
        self._urls = [f"{url}{words.path}{self.token}" for url in urls]
        self.entries: list[Entry] = []
        self.since = dict.fromkeys(sorted(interest.workspaces), BEGINNING)
        self.last = dict.fromkeys(sorted(interest.workspaces), BEGINNING)  # seen
        self.told = Counter[str]()  # what happened on the way
        self.surprises: list[str] = []
        self.is_open = False  # the subscription stands
        self.reads = asyncio.Event()
        self.reads.set()

    @property
    def diary(self) -> Diary:
        return Diary(self.name, self.interest, self.way.keeps_positions, self.entries)

    async def run(self) -> None:
        while True:
            try:
                await self._visit()
            except InvalidStatus as refused:
                status = refused.response.status_code
                self.told[f"refused {status}"] += 1
                if status not in BALANCERS_OWN:
                    self.surprises.append(f"was not let in: {status}")
            except (OSError, InvalidHandshake, ConnectionClosed) as error:  # TimeoutError is an OSError
                self.told[type(error).__name__] += 1
            finally:
                self.is_open = False
            await asyncio.sleep(self._chance.uniform(0.05, 0.4))

    async def _visit(self) -> None:
        url = self._chance.choice(self._urls)
        options: dict[str, Any] = {"ping_interval": None, "max_size": None, "compression": None, "proxy": None}
        if self.way.is_slow:
            options |= {"max_queue": 1, "sock": _narrow(url)}
        async with websockets.asyncio.client.connect(url, open_timeout=8, close_timeout=1, **options) as socket:
            self.told["connected"] += 1
            self.entries.append(Opened())
            since = self.since if self.way.keeps_positions else None
            self._story.say(self.name, f"connected, {f'since {_brief(since)}' if since else 'from now'}")
            await self._send(socket, self.words.subscribe(self.interest, since))
            pinging = asyncio.create_task(self._ping(socket))
            try:
                while True:
                    await self.reads.wait()
                    self._hear(json.loads(await socket.recv()))
            except ConnectionClosed:
                self._note_end(socket.close_code or 1006, socket.close_reason or "")
            finally:
                pinging.cancel()
                await asyncio.gather(pinging, return_exceptions=True)

    async def _ping(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        while True:
            await self._send(socket, PING)
            await asyncio.sleep(PING_SECONDS)

    @staticmethod
    async def _send(socket: websockets.asyncio.client.ClientConnection, message: Message) -> None:
        await socket.send(json.dumps(message))

    def _note_end(self, code: int, reason: str) -> None:
        self.entries.append(Closed(code, reason, now()))
        self.told[f"closed {code}"] += 1
        if reason.startswith(EVENTS_LOST):
            self.told["gap"] += 1
        self._story.say(self.name, f"closed {code} {reason}")
        if code in {1002, 1007, 1008, 1009, 1011}:
            self.surprises.append(f"closed with {code} {reason}")

    # -- what it hears

    def _hear(self, message: Message) -> None:
        kind = message["type"]
        if kind in CATALOG:
            self._see(message)
        elif (gap := self.words.gap(message)) is not None:
            self.entries.append(gap)
            self.told["gap"] += 1
            self._story.say(self.name, f"a gap in {gap.workspace} behind {gap.since}")
        elif kind in ("pong", "subscription_confirmed", "ping"):
            for workspace, position in self._positions(message.get("event_id")):
                self.entries.append(Stood(workspace, position))
                if self.way.trusts_pongs and is_after(position, self.since[workspace]):
                    self.since[workspace] = position
            self.is_open |= kind == "pong"
        elif "error" in kind:
            self.surprises.append(f"was told {message}")

    def _see(self, message: Message) -> None:
        data = message.get("data", {})
        workspace, position = message["workspace_id"], message.get("event_id")
        agent = message.get("agent_id") or data.get("agent_id") or ""
        told = Told(workspace, position or "", message["type"], agent, subject(message | data))
        if position is None:  # it is live only
            if not self.interest.matches(told):
                self.surprises.append(f"was told {told.kind} of {agent} in {workspace}")
            return
        self.entries.append(told)
        if workspace in self.since:
            self.since[workspace] = self.last[workspace] = position

    def _positions(self, told: Any) -> Iterator[tuple[str, str]]:
        """Up to where it has everything, as a pong tells it."""
        if isinstance(told, str):
            yield next(iter(self.since)), told
        elif isinstance(told, dict):
            yield from told.items()

    def has_seen_to(self, workspace: str, position: str) -> bool:
        return order(self.last[workspace]) >= order(position)


def _narrow(url: str) -> socket.socket:
    """A socket whose kernel takes little that nobody reads."""
    host, _, port = url.removeprefix("ws://").partition("/")[0].partition(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        narrow.connect((host, int(port)))
    except OSError:
        narrow.close()
        raise
    narrow.setblocking(False)
    return narrow


def _brief(since: Since) -> str:
    return " ".join(since.values())
