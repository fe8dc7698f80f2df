"""A follower: the subscriptions at one server, over one connection of their own.

Joining    SUBSCRIBE and the read of the head go out together. When the answer is seen, all messages up to that head
           have been seen: the line stands there, and is joined.
Checking   Every `CHECK_SECONDS` the heads of all lines are read again; a line that stands elsewhere is healed.
           A connection that answers nothing for `SILENCE_SECONDS` is closed and made anew.
Probing    Every `PROBE_SECONDS` something is published that this connection must bring (probe.py). One that does not,
           though it answers, is deaf: it is closed and made anew, too. The follower is deaf until a probe is heard.
Displaced  In a cluster the server may say that a workspace is another's: it refuses what is asked, or ends a
           subscription of its own accord. The follower lets go of the workspace then, and the feed finds who has it.
"""

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Protocol

import hiredis

from .address import Address
from .errors import Invalid, Unavailable
from .events import Carried, unpack
from .healing import Healer
from .keyspace import Keyspace
from .lines import Line, Taker, Workspace
from .patience import pause
from .positions import START, Position, parse
from .probe import Outcome, Probe
from .resp import Answer, Command, Connection, Refusal, connect
from .topology.routes import SHARDED, Words
from .topology.slots import slot_of

logger = logging.getLogger("trunkline.feed")

CHECK_SECONDS = 30.0
PROBE_SECONDS = 3.0
# How long a probe may take, before it is asked whether it is still to come.
HEARING_SECONDS = 3.0
SILENCE_SECONDS = 8.0
NAMES_PER_COMMAND = 512
# A slot that is moving has its keys at two servers: what cannot be read meanwhile is asked for again after so long.
MOVING_SECONDS = 0.25

_LEAVING = "we are leaving"

# How the messages of publish.lua begin, durable and ephemeral ones; it publishes each on both of its channels.
_DURABLE = b'{"id":"'
_FROM_THE_SCRIPT = (_DURABLE, b'{"prev":"')

# How a server says that a key is another's, or nobody's for now; and that it is on its way to another.
_ELSEWHERE = ("MOVED ", "CLUSTERDOWN ", "MASTERDOWN ")
_MOVING = ("ASK ", "TRYAGAIN ")


class Owner(Protocol):
    """Who has the workspaces, and gives each to the follower of its server."""

    def displaced(self, workspace: Workspace, by: "Follower", words: str) -> None:
        """The server has not got the workspace (any more); `words` are how it said so."""

    def lost(self) -> None:
        """A connection has ended."""

    def probe(self) -> Probe | None:
        """What a new connection is to be probed with, if it is."""

    def free_name(self, by: "Follower", name: str | None) -> str | None:
        """The name of a workspace that nobody has, at the follower's server: `name`, if it is one. None: not known."""

    def probed(self, outcome: Outcome) -> None:
        """What came of a probe."""


class Follower:
    """One server, followed by one task (`run`)."""

    def __init__(  # noqa: PLR0917 (what each follower of a feed shares, and then its server)
        self,
        keys: Keyspace,
        words: Words,
        healer: Healer,
        taker: Taker,
        owner: Owner,
        name: str,
        address: Address,
    ) -> None:
        self.address = address
        self._keys = keys
        self._words = words
        self._healer = healer
        self._taker = taker
        self._owner = owner
        self._name = name
        self._lines: dict[bytes, Line] = {}
        self._connection: Connection | None = None
        self._probe: Probe | None = None
        self.is_deaf = False  # from a probe that was missed, or a refused subscription, until one is heard
        self._lost = asyncio.Event()
        self._stirred = asyncio.Event()
        self._to_join: list[Line] = []
        self._unsubscribing: Counter[str] = Counter()
        self._fences: list[asyncio.Future[bool]] = []
        self._answered_at = 0.0
        self._attempts = 0  # since a line was joined

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    # -- what is to be followed ---------------------------------------------------------------------------------------

    def adopt(self, workspace: Workspace) -> None:
        """Follow a workspace, none of whose lines has joined."""
        workspace.follower = self
        self._lines.update((line.channel.encode(), line) for line in workspace.lines.values())
        if self._connection is not None:
            self._begin(workspace)

    def drop(self, workspace: Workspace) -> None:
        """Follow it no more."""
        workspace.follower = None
        workspace.unjoin()
        for line in workspace.lines.values():
            self._lines.pop(line.channel.encode(), None)

    def join(self, line: Line) -> None:
        """Follow one more line of a workspace that is followed."""
        self._lines[line.channel.encode()] = line
        self._to_join.append(line)
        self._stirred.set()

    def leave(self, lines: Sequence[Line]) -> None:
        """Follow these lines no more."""
        for line in lines:
            del self._lines[line.channel.encode()]
        for some in self._batches(lines):
            names = [line.channel for line in some]
            if self._connection is not None:
                self._unsubscribing.update(names)
            self._ask_for(self._words.unsubscribe, names, partial(self._not_unsubscribed, names))

    def turn_at_answer(self, workspace: Workspace) -> None:
        """Let it turn at an answer, if it is still followed then. Answers and messages share one ordered stream, and no
        answer comes between the copies of one event."""
        self._ask([("PING",)], [partial(self._turn, workspace)])

    async def pass_by(self) -> bool:
        """Wait until all that the server published before has been handed on; False when the connection ended."""
        passed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._fences.append(passed)
        self._ask([("PING",)], [partial(self._pass, passed)])
        return await passed

    # -- the task -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the connection until cancelled: connect, join, watch, and again after a loss."""
        try:
            while True:
                self._lost.clear()
                try:
                    self._connection, _ = await connect(self.address, self, self._name)
                except Unavailable as error:
                    if self._attempts in (0, 10) or self._attempts % 60 == 0:
                        logger.warning("%s (attempt %d)", error, self._attempts + 1)
                else:
                    self._answered_at = monotonic()
                    self._to_join.clear()
                    for workspace in self._workspaces():
                        self._begin(workspace)
                    self._taker.on_connection(is_up=True)
                    async with asyncio.TaskGroup() as group:
                        probing = group.create_task(self._keep_probing())
                        await self._watch()
                        probing.cancel()
                # Many nodes lose one Redis at the same moment: let them come back spread. And a connection on which
                # nothing could be joined (no permission, a replica without its master) is no reason to hurry either.
                if self._attempts:
                    await asyncio.sleep(min(2.0, 0.05 * 2 ** min(self._attempts, 6)) * random.uniform(0.5, 1.0))  # noqa: S311
                self._attempts += 1
        finally:
            if self._connection is not None:
                self._connection.close(_LEAVING)

    def _begin(self, workspace: Workspace) -> None:
        """On a connection that is new to it: hold it until each of its lines is known to stand where its head is."""
        self._to_join += workspace.lines.values()
        self._stirred.set()
        if any(line.position is not None for line in workspace.heard()):
            self._healer.hold(workspace)

    async def _watch(self) -> None:
        """Join what is new, check, see that it answers; until the connection is lost."""
        checked_at = asked_at = monotonic()
        to_check: list[Line] = []
        while not self._lost.is_set():
            self._join()
            now = monotonic()
            if now - self._answered_at > SILENCE_SECONDS:
                self._close(f"no answer for {SILENCE_SECONDS:g} s")
                return
            if now - asked_at >= PROBE_SECONDS:
                asked_at = now
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

    async def _keep_probing(self) -> None:
        """Find out over and over whether what is published comes; a connection that is deaf is closed."""
        self._probe = probe = self._owner.probe()
        while probe is not None:
            outcome = await self._try(probe)
            if outcome is not None:
                self._owner.probed(outcome)
            if outcome == "heard":
                self.is_deaf = False
            elif outcome == "missed":
                self.is_deaf = True
                self._close("what is published does not come")
            await pause(PROBE_SECONDS)

    async def _try(self, probe: Probe) -> Outcome | None:
        """One probe; None when it could not be made."""
        name = self._owner.free_name(self, probe.name)
        if name != probe.name:
            probe.name = name
            if name is not None:
                self._ask_for(self._words.subscribe, [probe.channel], self._not_probed)
                await self._passed()
        if probe.name is None:
            return None
        if not await probe.send():
            return "unsent"
        await pause(0)  # here a cancellation may have been swallowed
        # Late is not missed: what stands before the answer to a question of ours has come when that has.
        if await probe.heard(HEARING_SECONDS) or (await self._passed() and probe.is_heard):
            return "heard"
        # Without a connection, or its channel, it could not come.
        return "missed" if self._connection is not None and probe.name is not None else None

    async def _passed(self) -> bool:
        return self._connection is not None and await self.pass_by()

    def _not_probed(self, error: object) -> None:
        """The channel is another server's by now, or we may not subscribe at all."""
        assert self._probe is not None
        self._probe.name = None
        if not str(error).startswith((*_ELSEWHERE, *_MOVING)):
            self._refused(error)

    def _refused(self, error: object) -> None:
        if not self.is_deaf:
            logger.error("cannot subscribe: %s", error)
        self.is_deaf = True

    def _join(self) -> None:
        """SUBSCRIBE and read the heads of what is to be joined, together."""
        lines, self._to_join = [line for line in self._to_join if self._follows(line)], []
        for some in self._batches(lines):
            self._ask_for(self._words.subscribe, [line.channel for line in some], partial(self._not_subscribed, some))
            self._read_heads(some)

    def _batches(self, lines: Iterable[Line]) -> Iterator[list[Line]]:
        """Lines that may stand in one command: in a cluster those of one slot."""
        groups: dict[int, list[Line]] = defaultdict(list)
        for line in lines:
            groups[slot_of(line.channel) if self._words is SHARDED else 0].append(line)
        for group in groups.values():
            names = iter(group)
            while some := list(islice(names, NAMES_PER_COMMAND)):
                yield some

    def _ask_for(self, command: str, names: list[str], refused: Answer) -> None:
        """Ask for what is answered by pushes, if it is not refused.

        TIME is what Redis answers whenever it lets subscribe: while it loads its data, PING is refused alone, and its
        error would be taken for that of the SUBSCRIBE.
        """
        if self._connection is not None:
            self._connection.ask((command, *names), ("TIME",), answers=[Refusal(refused), self._heard_answer])

    def _read_heads(self, lines: list[Line]) -> None:
        commands: list[Command] = [
            ("HGET", self._keys.head(line.workspace.name, line.agent), "position") for line in lines
        ]
        self._ask(commands, [partial(self._on_head, line) for line in lines])

    def _ask(self, commands: list[Command], answers: list[Answer]) -> None:
        if self._connection is not None and commands:
            self._connection.ask(*commands, answers=answers)

    def _follows(self, line: Line) -> bool:
        return self._lines.get(line.channel.encode()) is line

    def _workspaces(self) -> list[Workspace]:
        return list(dict.fromkeys(line.workspace for line in self._lines.values()))

    # -- what Redis says: synchronous, in the order of the stream -----------------------------------------------------

    def on_lost(self, reason: str) -> None:
        if self._connection is None:
            return
        if reason != _LEAVING:
            logger.warning("the feed's connection to Redis at %s was lost: %s", self.address, reason)
        self._connection = None
        self._unsubscribing.clear()
        for workspace in self._workspaces():
            workspace.unjoin()
        fences, self._fences = self._fences, []
        for fence in fences:
            if not fence.done():
                fence.set_result(False)
        self._lost.set()
        self._taker.on_connection(is_up=False)
        self._owner.lost()

    def on_pushes(self, pushes: Sequence[list[Any]]) -> None:
        """Messages of one read: followed, and handed on as one batch."""
        batch: list[Carried] = []
        lines, kind = self._lines, self._words.message
        for push in pushes:
            if push[0] != kind:
                if push[0] == self._words.unsubscribed:
                    self._on_unsubscribed(push[1])
                continue
            line = lines.get(push[1])
            # A line that has not joined tells nothing: its head will say where it stands.
            if line is None or not (line.is_joined or line.workspace.held is not None):
                if line is None and self._probe is not None:
                    self._probe.hear(push[1], push[2])
                continue
            workspace, message = line.workspace, push[2]
            is_heard = (line.agent is None) is workspace.follows_whole
            if not is_heard and message.startswith(_FROM_THE_SCRIPT):
                # It is told on the heard lines too. Only where it stands is noted, for when this line is heard again.
                position = message[7 : message.find(b'"', 7)].decode(errors="replace")
                if message.startswith(_DURABLE) and parse(position) is not None:
                    line.before, line.position = None, Position(position)
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
            self._healer.follow(line, event, batch)
        if batch:
            self._taker.on_events(batch)

    def _on_head(self, line: Line, reply: Any) -> None:
        """A line's head was read: join it there, or find that it missed something."""
        self._answered_at = monotonic()
        if not self._follows(line):
            return
        workspace = line.workspace
        if isinstance(reply, hiredis.ReplyError):
            words = str(reply)
            if words.startswith(_ELSEWHERE):
                self._owner.displaced(workspace, self, words)
            elif not words.startswith(_MOVING):
                logger.error("cannot read a position: %s", words)
                self._close(f"Redis refuses reads: {words}")
            elif not line.is_joined:
                asyncio.get_running_loop().call_later(MOVING_SECONDS, self._join_again, line)
            return
        self._attempts = 0
        if self._probe is None:
            self.is_deaf = False  # as far as can be known
        head = line.head = Position(reply.decode()) if reply else START
        if line.position is None or not workspace.is_heard(line):
            line.stand(head)
        line.is_behind = workspace.is_heard(line) and line.position != head
        if not line.is_joined:
            line.is_joined = True
            workspace.unjoined -= 1
        if line.is_behind:
            self._healer.hold(workspace)
        if workspace.held is not None and workspace.healing is None and not workspace.unjoined:
            if any(line.is_behind for line in workspace.heard()):
                self._healer.heal(workspace)
            else:
                self._healer.release(workspace)
        workspace.turn()
        workspace.wake()

    def _join_again(self, line: Line) -> None:
        if self._follows(line) and not line.is_joined and self._connection is not None:
            self.join(line)

    def _not_subscribed(self, lines: list[Line], error: object) -> None:
        words = str(error)
        if not words.startswith((*_ELSEWHERE, *_MOVING)):
            self._refused(error)
            self._close(f"Redis refuses subscriptions: {words}")
            return
        for workspace in dict.fromkeys(line.workspace for line in lines if self._follows(line)):
            self._owner.displaced(workspace, self, words)

    def _not_unsubscribed(self, names: list[str], error: object) -> None:
        """The channels are another server's by now, which knows nothing of us."""
        self._unsubscribing -= Counter(names)

    def _on_unsubscribed(self, channel: bytes) -> None:
        name = channel.decode()
        if name in self._unsubscribing:
            self._unsubscribing -= Counter((name,))
        elif (line := self._lines.get(channel)) is not None:
            self._owner.displaced(line.workspace, self, "")
        elif self._probe is not None and self._probe.name is not None and name == self._probe.channel:
            self._probe.name = None

    def _close(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.close(reason)

    def _pass(self, fence: "asyncio.Future[bool]", _: object) -> None:
        self._answered_at = monotonic()
        self._fences.remove(fence)
        if not fence.done():
            fence.set_result(True)

    def _turn(self, workspace: Workspace, _: object) -> None:
        if workspace.follower is self:
            workspace.turn()

    def _heard_answer(self, reply: object) -> None:
        self._answered_at = monotonic()
