"""The listener: fetches the commands of all agents that this process serves in one workspace.

Rounds     One task over one connection of its own goes round: leave for those who left, beat, drop what is overdue,
           read what is new (blocking for `BLOCK_MS`). A program may serve a thousand agents with it.
Beats      Every `BEAT_SECONDS`, and as soon as an agent is new, listen.lua says that somebody listens, keeps what is
           held from being taken over, and takes over what a dead listener held: idle for `IDLE_SECONDS`. Since reads
           and beats go over the same connection one after the other, what is on the way is never taken for lost.
           Each beat is also a sign of life (presence.py). Of an agent that was deleted it makes nothing: who listens
           for it is told no more.
Outages    After any error every agent is new again: listen.lua makes what Redis lost and brings what was on the way.
Deadlines  Redis' time, as every answer to a beat or a read tells it.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import partial
from time import monotonic

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from ..address import Address
from ..errors import Invalid
from ..keyspace import Keyspace
from ..patience import repeat
from ..presence import BEAT_SECONDS, Presence
from ..script import Script
from ..topology import clients
from .command import Command, Inbox
from .exchange import unpack_command
from .settling import Settler

logger = logging.getLogger("trunkline.commands")

IDLE_SECONDS = 15.0
LISTENING_SECONDS = 15.0
BLOCK_MS = 500
READ_COMMANDS = 20  # of each agent, at a time

STREAM_SECONDS = 3600
FAREWELL_SECONDS = 2.0

# How a read fails when a stream or its group is gone, before or while it blocks.
_GONE = ("NOGROUP", "UNBLOCKED")

# Fields of a stream's entry, as Redis lists them or as redis-py reads them.
Fields = list[bytes] | dict[bytes, bytes]


class Listener:
    """One workspace's agents in this process. Its task lives as long as the broker."""

    def __init__(self, redis: Redis, address: Address, keys: Keyspace, presence: Presence, workspace: str) -> None:
        self.id = secrets.token_hex(8)
        self.workspace = workspace
        self._keys = keys
        self._presence = presence
        self._settler = Settler(redis, keys, workspace, self._now)
        self._farewell = Script(redis, "leave")
        self._redis = clients.client(address, "trunkline-commands")
        self._listen, self._leave = Script(self._redis, "listen"), Script(self._redis, "leave")
        self._settle = Script(self._redis, "settle")
        self._inboxes: dict[str, Inbox] = {}
        self._left: set[str] = set()  # agents nobody listens for any more, until Redis knows
        self._overdue: dict[tuple[str, str], str] = {}  # (agent, id) → key, until they are dropped
        self._stirred = asyncio.Event()
        self._beat_at = 0.0
        self._ahead = 0.0  # Redis' time less our own, ms
        self._task: asyncio.Task[None] | None = None

    async def commands(self, agent: str) -> AsyncGenerator[Command, None]:
        """The commands of `agent`, until the iterator is closed; all that iterate for one agent share them.

        It also ends when the agent is deleted.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        inbox = self._inboxes.setdefault(agent, Inbox(agent))
        taker = object()
        inbox.takers.add(taker)
        self._stirred.set()
        try:
            while not (self._task.done() or inbox.is_deleted):
                inbox.stirred.clear()
                while (command := inbox.take(taker, self._now())) is not None:
                    yield command
                await inbox.stirred.wait()
            if self._task.done() and not self._task.cancelled():
                self._task.result()  # a bug of ours
        finally:
            # No wait here: whoever leaves may be cancelled, or collected.
            if inbox.leave(taker) and self._inboxes.get(agent) is inbox:
                del self._inboxes[agent]
                self._left.add(agent)
                self._stirred.set()

    async def close(self) -> None:
        """End; what is held may be taken over at once, if Redis can be told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._redis.aclose()
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._tell_left(self._farewell, [*self._left, *self._inboxes])
        except (RedisError, OSError) as error:
            logger.warning("cannot say that agents have left: %s", type(error).__name__)

    # -- the owner task

    async def _run(self) -> None:
        try:
            await repeat(self._round, logger, "cannot read commands", on_failure=self._rejoin)
        finally:
            for inbox in self._inboxes.values():
                inbox.stirred.set()

    async def _round(self) -> None:
        self._stirred.clear()
        if not self._inboxes and not self._left:
            await self._redis.aclose()
            await self._stirred.wait()
        left = list(self._left)
        await self._tell_left(self._leave, left)
        self._left.difference_update(left)
        await self._beat()
        await self._drop()
        await self._read()

    async def _tell_left(self, leave: Script, agents: Sequence[str]) -> None:
        arguments = (self.id, _ms(IDLE_SECONDS), _ms(BEAT_SECONDS + 1))
        calls = [(self._names(agent)[:2], arguments) for agent in agents]
        if calls:
            await leave.run_many(calls)
            await self._presence.leave(self.workspace, agents)

    async def _beat(self) -> None:
        """The same few round trips however many agents there are: for all when it is time, else for the new ones."""
        now = monotonic()
        is_time = now >= self._beat_at
        inboxes = [inbox for inbox in self._inboxes.values() if is_time or not inbox.is_joined]
        if not inboxes:
            return
        await self._presence.renew(self.workspace, [inbox.agent for inbox in inboxes])
        terms = (self.id, _ms(LISTENING_SECONDS), STREAM_SECONDS, _ms(IDLE_SECONDS))
        answers = await self._listen.run_many(
            [(self._names(inbox.agent), (*terms, inbox.room, inbox.agent, *inbox.held)) for inbox in inboxes]
        )
        if is_time:
            self._beat_at = now + BEAT_SECONDS
        for inbox, (time, *entries) in zip(inboxes, answers, strict=True):
            self._tick(int(time))
            if entries:
                inbox.is_joined = True
                self._take(inbox, entries[0])
            else:
                self._end(inbox)

    def _end(self, inbox: Inbox) -> None:
        """Its agent was deleted."""
        inbox.is_deleted = True
        inbox.stirred.set()
        if self._inboxes.get(inbox.agent) is inbox:
            del self._inboxes[inbox.agent]

    async def _drop(self) -> None:
        """Take what is past its deadline away: nobody waits for it."""
        now = self._now()
        for inbox in self._inboxes.values():
            self._overdue.update({(inbox.agent, command.id): command._key for command in inbox.overdue(now)})
        overdue = dict(self._overdue)
        if not overdue:
            return
        waiting = self._keys.waiting(self.workspace)
        await self._settle.run_many(
            [
                ((self._keys.commands(self.workspace, agent), waiting), (id_, key))
                for (agent, id_), key in overdue.items()
            ]
        )
        for agent, id_ in overdue:
            del self._overdue[agent, id_]
            if agent in self._inboxes:
                self._inboxes[agent].held.pop(id_, None)

    async def _read(self) -> None:
        """One read from the streams of all that have room."""
        inboxes = [inbox for inbox in self._inboxes.values() if inbox.is_joined and inbox.room >= READ_COMMANDS]
        if not inboxes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BLOCK_MS / 1000):
                    await self._stirred.wait()
            return None
        by_stream = {self._keys.commands(self.workspace, inbox.agent): inbox for inbox in inboxes}
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xreadgroup("agent", self.id, dict.fromkeys(by_stream, ">"), count=READ_COMMANDS, block=BLOCK_MS)
            pipe.time()
            found, time = await pipe.execute(raise_on_error=False)
        if isinstance(found, ResponseError) and str(found).startswith(_GONE):
            return self._rejoin()
        for answer in (found, time):
            if isinstance(answer, Exception):
                raise answer
        self._tick(time[0] * 1000 + time[1] // 1000)
        for stream, entries in found:
            self._take(by_stream[stream.decode()], entries)
        return None

    def _rejoin(self) -> None:
        for inbox in self._inboxes.values():
            inbox.is_joined = False

    # -- what came

    def _take(self, inbox: Inbox, entries: Iterable[tuple[bytes, Fields]]) -> None:
        if self._inboxes.get(inbox.agent) is not inbox:
            return  # left meanwhile: what came for it is given back with the rest
        for raw_id, fields in entries:
            id_, raw = raw_id.decode(), _field(fields, b"c")
            try:
                sent = unpack_command(raw)
            except Invalid as error:
                logger.error("an entry of a command stream is dropped: %s", error.reason)
                self._overdue[inbox.agent, id_] = ""
                continue
            if sent.deadline <= self._now():
                self._overdue[inbox.agent, id_] = sent.key
                continue
            inbox.put(
                Command(
                    id=id_,
                    request_id=sent.request_id,
                    workspace_id=self.workspace,
                    agent_id=inbox.agent,
                    name=sent.name,
                    parameters=sent.parameters,
                    sender=sent.sender,
                    deadline=sent.deadline,
                    _key=sent.key,
                    _settle=partial(self._settler.settle, inbox, id_, sent.node),
                )
            )

    # -- small things

    def _names(self, agent: str) -> Sequence[str]:
        keys, workspace = self._keys, self.workspace
        return (
            keys.commands(workspace, agent),
            keys.listening(workspace, agent),
            keys.agent(workspace, agent),
            keys.deleted(workspace),
        )

    def _tick(self, time: int) -> None:
        self._ahead = time - monotonic() * 1000

    def _now(self) -> float:
        return monotonic() * 1000 + self._ahead


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _field(fields: Fields, name: bytes) -> bytes:
    if isinstance(fields, list):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    return fields.get(name, b"")
