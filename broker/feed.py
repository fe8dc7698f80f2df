"""The feed: this node's one subscription. Nothing is lost, doubled or reordered between Redis and who takes the events.

Lines      A line is one channel as we follow it: a workspace's, or one agent's. Redis counts a `position` for each, and
           each durable message names the one before it, so a line is a chain: a message is handed on when its `prev` is
           the line's `position`. Anything else is a hole, and is filled from the log.
Wanting    Others say what they need (`want`), counted. If anyone needs the whole workspace its own channel is heard,
           else just the agents' channels. The channels of agents that are wanted besides stay subscribed and silent:
           only a plain PUBLISH is handed on from them, as that was made on this channel alone.
Joining    SUBSCRIBE and the read of the head go out together on the feed's own connection. When the answer is seen, all
           messages up to that head have been seen: the line stands there, and is joined.
Healing    A workspace with a hole in any of its lines is held: what arrives waits, bounded. The log is read from the
           last position handed on; what was missed goes out first, then what waited. Order is kept within a workspace.
           A hole that the log cannot fill is a gap, and is told.
Checking   Every `CHECK_SECONDS` the heads of all lines are read again; a line that stands elsewhere is healed.
           A connection that answers nothing for `SILENCE_SECONDS` is closed and made anew.
"""

import asyncio
import logging
import random
from collections.abc import Collection, Sequence
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any

import hiredis

from .address import Address
from .errors import Invalid, Unavailable
from .events import Carried, unpack
from .healing import fill
from .keyspace import Keyspace
from .lines import Gap, Line, Taker, Want, Workspace
from .log import Log
from .patience import pause
from .positions import START, Position, is_after, order, parse
from .resp import Answer, Command, Connection, connect

logger = logging.getLogger("trunkline.feed")

CHECK_SECONDS = 30.0
PROBE_SECONDS = 3.0
SILENCE_SECONDS = 10.0
LINGER_SECONDS = 5.0
NAMES_PER_COMMAND = 512
MAX_HELD_BYTES = 16 * 1024 * 1024
MAX_HEALERS = 16

_LEAVING = "we are leaving"

# How the messages of publish.lua begin, durable and ephemeral ones; it publishes each on both of its channels.
_DURABLE = b'{"id":"'
_FROM_THE_SCRIPT = (_DURABLE, b'{"prev":"')


class Feed:
    """The node's subscription, owned by one task (`run`)."""

    def __init__(self, address: Address, keys: Keyspace, log: Log, taker: Taker, name: str = "trunkline-feed") -> None:
        self._address = address
        self._keys = keys
        self._log = log
        self._taker = taker
        self._name = name
        self._workspaces: dict[str, Workspace] = {}
        self._lines: dict[bytes, Line] = {}
        self._connection: Connection | None = None
        self._lost = asyncio.Event()
        self._stirred = asyncio.Event()
        self._leaving: list[Line] = []
        self._to_join: list[Line] = []
        self._fences: list[asyncio.Future[bool]] = []
        self._answered_at = 0.0
        self._attempts = 0  # since a line was joined
        self._healers = asyncio.Semaphore(MAX_HEALERS)

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def channels(self) -> int:
        return len(self._lines)

    # -- what others want ---------------------------------------------------------------------------------------------

    def want(self, wants: Collection[Want]) -> "asyncio.Future[None] | None":
        """Need these from now on; each `want` is undone by one `unwant`.

        Answers None when all of it is being handed on already, else a future that is done as soon as it is.
        """
        by_workspace: dict[str, set[str | None]] = {}
        for name, agent in wants:
            by_workspace.setdefault(name, set()).add(agent)
        waiting = []
        for name, agents in by_workspace.items():
            workspace = self._workspaces.get(name)
            if workspace is None:
                workspace = self._workspaces[name] = Workspace(name)
            for agent in agents:
                self._line(workspace, agent)
            workspace.wants.update(agents)
            self._ask_to_turn(workspace)
            if not workspace.serves(agents):
                future = asyncio.get_running_loop().create_future()
                workspace.waiters.append((frozenset(agents), future))
                waiting.append(future)
        if not waiting:
            return None
        return waiting[0] if len(waiting) == 1 else asyncio.ensure_future(_all(waiting))

    def unwant(self, wants: Collection[Want]) -> None:
        """No longer need what a `want` asked for; its channels are left after a while."""
        leave_at = monotonic() + LINGER_SECONDS
        for name, agent in wants:
            workspace = self._workspaces[name]
            workspace.wants[agent] -= 1
            if workspace.wants[agent] <= 0:
                del workspace.wants[agent]
                line = workspace.lines[agent]
                line.leave_at = leave_at
                self._leaving.append(line)
        for name in {name for name, _ in wants}:
            self._ask_to_turn(self._workspaces[name])
            self._wake(self._workspaces[name])

    def is_held(self, name: str) -> bool:
        """True while events of the workspace wait behind a hole."""
        workspace = self._workspaces.get(name)
        return workspace is not None and workspace.held is not None

    def position(self, name: str, agents: Collection[str] | None) -> Position | None:
        """The position up to which all events of the workspace (of `agents`) were handed on; None while unknown."""
        workspace = self._workspaces.get(name)
        if workspace is None:
            return None
        whole = workspace.lines.get(None)
        if workspace.follows_whole and whole is not None:
            return whole.position
        if agents is None:
            return None
        positions = [line.position for agent in agents if (line := workspace.lines.get(agent)) and line.position]
        if len(positions) < len(agents) or not positions:
            return None
        # Redis' one connection keeps the order over all channels, so the newest speaks for all, unless one has a hole.
        return (max if workspace.held is None else min)(positions, key=order)

    def _ask_to_turn(self, workspace: Workspace) -> None:
        """Hear the other kind of line, if that is what is wanted now.

        Each event comes on both kinds, one copy after the other, and a read may end between the two. So the change is
        made at an answer, which never comes between them.
        """
        if workspace.follows_whole is workspace.wants_whole:
            return
        if all(line.position is None for line in workspace.heard()):
            workspace.follows_whole = workspace.wants_whole  # nothing was heard yet
        elif workspace.can_turn:
            self._ask([("PING",)], [partial(self._turn, workspace)])

    def _turn(self, workspace: Workspace, _: object = None) -> None:
        """At an answer: change over, if that is still wanted and possible."""
        if workspace.can_turn:
            workspace.follows_whole = workspace.wants_whole
            self._wake(workspace)

    def _line(self, workspace: Workspace, agent: str | None) -> Line:
        """The line of `agent`, made when there is none; the owner's task joins it."""
        line = workspace.lines.get(agent)
        if line is None:
            line = Line(workspace, agent, self._keys.channel(workspace.name, agent))
            self._lines[line.channel.encode()] = line
            workspace.lines[agent] = line
            workspace.unjoined += 1
            self._to_join.append(line)
            self._stirred.set()
        return line

    async def settle(self, name: str) -> None:
        """Wait until all that Redis published in the workspace before this call has been handed on."""
        while True:
            workspace = self._workspaces.get(name)
            if workspace is None:
                return
            passed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            if workspace.held is not None or self._connection is None:
                workspace.waiters.append((frozenset(), passed))
                await passed
                continue
            # Answers and messages share one ordered stream: the answer comes behind what was published before.
            self._fences.append(passed)
            self._ask([("PING",)], [partial(self._pass, passed)])
            if await passed and workspace.held is None:
                return

    # -- the owner's task ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the subscription until cancelled: connect, join, watch, and again after a loss."""
        try:
            while True:
                self._lost.clear()
                try:
                    self._connection = await connect(self._address, self, self._name)
                except Unavailable as error:
                    if self._attempts in (0, 10) or self._attempts % 60 == 0:
                        logger.warning("%s (attempt %d)", error, self._attempts + 1)
                else:
                    self._answered_at = monotonic()
                    self._rejoin()
                    self._taker.on_connection(is_up=True)
                    await self._watch()
                # Many nodes lose one Redis at the same moment: let them come back spread. And a connection on which
                # nothing could be joined (no permission, a replica without its master) is no reason to hurry either.
                if self._attempts:
                    await asyncio.sleep(min(2.0, 0.05 * 2 ** min(self._attempts, 6)) * random.uniform(0.5, 1.0))  # noqa: S311
                self._attempts += 1
        finally:
            if self._connection is not None:
                self._connection.close(_LEAVING)
            for workspace in self._workspaces.values():
                if workspace.healing is not None:
                    workspace.healing.cancel()

    def _rejoin(self) -> None:
        """On a new connection: hold every workspace until each of its lines is known to stand where its head is."""
        self._to_join = list(self._lines.values())
        for workspace in self._workspaces.values():
            if any(line.position is not None for line in workspace.heard()):
                self._hold(workspace)

    async def _watch(self) -> None:
        """Join what is new, leave what nobody wants, check, probe; until the connection is lost."""
        checked_at = probed_at = monotonic()
        to_check: list[Line] = []
        while not self._lost.is_set():
            self._join()
            now = monotonic()
            self._leave(now)
            if now - probed_at >= PROBE_SECONDS:
                probed_at = now
                if now - self._answered_at > SILENCE_SECONDS and self._connection is not None:
                    self._connection.close(f"no answer for {SILENCE_SECONDS:g} s")
                    return
                self._ask([("PING",)], [self._heard_answer])
            if now - checked_at >= CHECK_SECONDS:
                checked_at, to_check = now, list(self._lines.values())
            if to_check:
                # A slice at a time: live messages do not wait behind the whole check.
                self._read_heads([line for line in to_check[:NAMES_PER_COMMAND] if line.is_joined])
                del to_check[:NAMES_PER_COMMAND]
            self._stirred.clear()
            pause = 0.02 if to_check else 0.5
            waits = [asyncio.ensure_future(self._lost.wait()), asyncio.ensure_future(self._stirred.wait())]
            try:
                await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def _join(self) -> None:
        """SUBSCRIBE and read the heads of what is to be joined, together."""
        lines, self._to_join = [line for line in self._to_join if line.channel.encode() in self._lines], []
        names = iter(lines)
        while some := list(islice(names, NAMES_PER_COMMAND)):
            self._ask([("SUBSCRIBE", *(line.channel for line in some))], [])
            self._read_heads(some)

    def _leave(self, now: float) -> None:
        """UNSUBSCRIBE from what has not been wanted for a while."""
        if not self._leaving or self._leaving[0].leave_at > now:
            return
        due = dict.fromkeys(line for line in self._leaving if line.leave_at <= now)
        # What is still heard, until the other kind of line has joined, stays meanwhile.
        kept = [line for line in due if not line.is_wanted and line.workspace.needs(line)]
        for line in kept:
            line.leave_at = now + LINGER_SECONDS
        self._leaving = [line for line in self._leaving if line.leave_at > now and line not in due] + kept
        gone = [
            line
            for line in due
            if not line.is_wanted and line.leave_at <= now and line.workspace.lines.get(line.agent) is line
        ]
        for line in gone:
            del self._lines[line.channel.encode()]
            del line.workspace.lines[line.agent]
            line.workspace.unjoined -= not line.is_joined
            if not line.workspace.lines and not line.workspace.wants:
                self._workspaces.pop(line.workspace.name, None)
        names = iter(gone)
        while some := list(islice(names, NAMES_PER_COMMAND)):
            self._ask([("UNSUBSCRIBE", *(line.channel for line in some))], [])

    def _read_heads(self, lines: list[Line]) -> None:
        commands: list[Command] = [
            ("HGET", self._keys.head(line.workspace.name, line.agent), "position") for line in lines
        ]
        self._ask(commands, [partial(self._on_head, line) for line in lines])

    def _ask(self, commands: list[Command], answers: list[Answer]) -> None:
        if self._connection is not None and commands:
            self._connection.ask_many(commands, answers)

    def _pass(self, fence: "asyncio.Future[bool]", _: object) -> None:
        self._answered_at = monotonic()
        self._fences.remove(fence)
        if not fence.done():
            fence.set_result(True)

    def _heard_answer(self, reply: object) -> None:
        self._answered_at = monotonic()

    # -- what Redis says: synchronous, in the order of the stream -----------------------------------------------------

    def on_lost(self, reason: str) -> None:
        if self._connection is None:
            return
        if reason != _LEAVING:
            logger.warning("the feed's connection to Redis at %s was lost: %s", self._address, reason)
        self._connection = None
        for line in self._lines.values():
            line.is_joined = False
        for workspace in self._workspaces.values():
            workspace.unjoined = len(workspace.lines)
        fences, self._fences = self._fences, []
        for fence in fences:
            if not fence.done():
                fence.set_result(False)
        self._lost.set()
        self._taker.on_connection(is_up=False)

    def on_pushes(self, pushes: Sequence[list[Any]]) -> None:
        """Messages of one read: followed, and handed on as one batch."""
        batch: list[Carried] = []
        lines = self._lines
        for push in pushes:
            if push[0] != b"message":
                continue
            line = lines.get(push[1])
            # A line that has not joined tells nothing: its head will say where it stands.
            if line is None or not (line.is_joined or line.workspace.held is not None):
                continue
            workspace, message = line.workspace, push[2]
            is_heard = (line.agent is None) is workspace.follows_whole
            if not is_heard and message.startswith(_FROM_THE_SCRIPT):
                # It is told on the heard lines too. Only where it stands is noted, for when this line is heard again.
                position = message[7 : message.find(b'"', 7)].decode(errors="replace")
                if message.startswith(_DURABLE) and parse(position) is not None:
                    line.position = Position(position)
                continue
            try:
                event = unpack(message, workspace.name, line.agent)
            except Invalid as error:
                self._taker.on_rejected(error)
                continue
            except Exception:  # a bug of ours must cost this message, and not those around it
                logger.exception("a message could not be read")
                self._taker.on_rejected(Invalid("$", "not readable"))
                continue
            if workspace.held is None and is_heard:
                # What nearly every message is: live only, or the next of its chain.
                if event.id is None:
                    batch.append(event)
                    continue
                if (event.prev if line.agent is None else event.agent_prev) == line.position:
                    line.before, line.position = line.position, Position(event.id)
                    batch.append(event)
                    continue
            self._follow(line, event, batch)
        if batch:
            self._taker.on_events(batch)

    def _follow(self, line: Line, event: Carried, batch: list[Carried]) -> None:
        """Hand on what continues the line, or stands in no line; hold the workspace where something is missing."""
        workspace = line.workspace
        if workspace.held is not None:
            self._keep(workspace, line, event)
            return
        if event.id is not None:
            if (event.prev if line.agent is None else event.agent_prev) != line.position:
                if not is_after(event.id, line.read_to):
                    return  # handed on before, from the log
                self._hold(workspace)
                self._keep(workspace, line, event)
                self._heal(workspace)
                return
            line.position = Position(event.id)
        batch.append(event)

    def _on_head(self, line: Line, reply: Any) -> None:
        """A line's head was read: join it there, or find that it missed something."""
        self._answered_at = monotonic()
        if isinstance(reply, hiredis.ReplyError):
            logger.error("cannot read a position: %s", reply)
            if self._connection is not None:
                self._connection.close(f"Redis refuses reads: {reply}")
            return
        self._attempts = 0
        workspace = line.workspace
        head = Position(reply.decode()) if reply else START
        if line.position is None or not workspace.is_heard(line):
            line.position = line.read_to = head
        line.is_behind = workspace.is_heard(line) and line.position != head
        if not line.is_joined and line.workspace.lines.get(line.agent) is line:
            line.is_joined = True
            workspace.unjoined -= 1
        if line.is_behind:
            self._hold(workspace)
        if workspace.held is not None and workspace.healing is None and not workspace.unjoined:
            if any(line.is_behind for line in workspace.heard()):
                self._heal(workspace)
            else:
                self._release(workspace)
        self._turn(workspace)
        self._wake(workspace)

    def _wake(self, workspace: Workspace) -> None:
        """Tell those who wait that they are served; once for all that this moment brings."""
        if workspace.waiters and not workspace.is_waking:
            workspace.is_waking = True
            asyncio.get_running_loop().call_soon(self._wake_now, workspace)

    def _wake_now(self, workspace: Workspace) -> None:
        workspace.is_waking = False
        waiters, workspace.waiters = workspace.waiters, []
        for agents, future in waiters:
            if future.done():
                continue  # whoever waited has gone
            # What nobody wants any more may never be joined: who waited for it has changed its mind.
            if workspace.serves(agents) or any(not workspace.wants[agent] for agent in agents):
                future.set_result(None)
            else:
                workspace.waiters.append((agents, future))

    # -- healing ------------------------------------------------------------------------------------------------------

    def _hold(self, workspace: Workspace) -> None:
        if workspace.held is None:
            workspace.held, workspace.held_bytes = [], 0

    def _keep(self, workspace: Workspace, line: Line, event: Carried) -> None:
        """Let an event wait. Past the bound what waits is let go: the log has it, but for what is live only."""
        assert workspace.held is not None
        workspace.held_bytes += len(bytes(event.data)) + 200
        if workspace.held_bytes > MAX_HELD_BYTES:
            workspace.held, workspace.held_bytes = [], 0
        workspace.held.append((line, event))

    def _heal(self, workspace: Workspace) -> None:
        if workspace.healing is None:
            workspace.healing = asyncio.create_task(self._heal_now(workspace))

    async def _heal_now(self, workspace: Workspace) -> None:
        """Fill the holes of a held workspace from the log, then release what waited."""
        seconds = 0.05
        try:
            # While lines have yet to join, their heads are not known: the last of them begins anew.
            while workspace.held is not None and not workspace.unjoined:
                held, known = workspace.held, len(workspace.held)
                for line in workspace.heard():
                    line.is_behind = False
                try:
                    async with self._healers:
                        await fill(workspace, self._log, self._taker)
                except Unavailable as error:
                    logger.warning("healing a workspace: %s", error)
                    await pause(seconds)
                    seconds = min(2 * seconds, 2.0)
                    continue
                except Exception:
                    logger.exception("a workspace could not be healed: going on from where its log ends")
                    await pause(1.0)
                    await self._skip(workspace)
                if workspace.unjoined or any(line.is_behind for line in workspace.heard()):
                    continue
                self._release(workspace, known if workspace.held is held else 0)
                await pause(0.01)
        except Unavailable as error:
            logger.warning("healing a workspace: %s", error)
        finally:
            workspace.healing = None
        self._ask_to_turn(workspace)
        self._wake(workspace)

    async def _skip(self, workspace: Workspace) -> None:
        """What the log holds cannot be handed on: say so, and go on behind it."""
        heads = await self._log.heads(workspace.name, [line.agent for line in workspace.heard()])
        for line in workspace.heard():
            if line.position != heads.get(line.agent, line.position):
                agents = None if line.agent is None else frozenset((line.agent,))
                self._taker.on_gap(Gap(workspace.name, agents, line.position or START))
                line.position = line.read_to = heads[line.agent]

    def _release(self, workspace: Workspace, known: int = 0) -> None:
        """Hand on what waited, but for what the log had already; hold again where it does not continue.

        The first `known` came before the log was read to its end. Whatever of them is neither in the log nor continues
        it was never published by the script.
        """
        held, workspace.held = workspace.held or [], None
        batch: list[Carried] = []
        for number, (line, event) in enumerate(held):
            if workspace.lines.get(line.agent) is not line:
                continue
            prev = event.prev if line.agent is None else event.agent_prev
            if number < known and event.id is not None and prev != line.position and is_after(event.id, line.read_to):
                self._taker.on_rejected(Invalid("$.id", "no position of the log"))
                continue
            self._follow(line, event, batch)
        if batch:
            self._taker.on_events(batch)


async def _all(futures: "list[asyncio.Future[None]]") -> None:
    await asyncio.gather(*futures)
