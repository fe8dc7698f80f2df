"""Healing: a workspace's lines are brought up to their heads from the log, and what the log has lost is told.

A workspace with a hole in any of its lines is held: what arrives waits, bounded. The log is read from the last
position handed on; what was missed goes out first, then what waited. Order is kept within a workspace. A hole that the
log cannot fill is a gap, and is told.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping

from .errors import Invalid, Unavailable
from .events import Carried
from .lines import Gap, Line, Taker, Workspace
from .log import FIRST_PAGE_EVENTS, Log
from .patience import pause
from .positions import START, Position, is_after, order
from .topology import Host

logger = logging.getLogger("trunkline.feed")

MAX_HELD_BYTES = 16 * 1024 * 1024
# At one server: those that wait for one that is away keep nobody from the others.
MAX_HEALERS = 16


class Healer:
    """Holds workspaces, fills their holes and releases them.

    `server` tells who has a workspace, as far as that is known. `on_healed` is called when one is through.
    """

    def __init__(
        self, log: Log, taker: Taker, server: Callable[[str], Host | None], on_healed: Callable[[Workspace], None]
    ) -> None:
        self._log = log
        self._taker = taker
        self._on_healed = on_healed
        self._server = server
        self._turns: dict[Host | None, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_HEALERS))

    def hold(self, workspace: Workspace) -> None:
        if workspace.held is None:
            workspace.held, workspace.held_bytes = [], 0

    def follow(self, line: Line, event: Carried, batch: list[Carried]) -> None:
        """Put into `batch` what continues the line or stands in none; hold the workspace where something is missing."""
        workspace = line.workspace
        if workspace.held is not None:
            self._keep(workspace, line, event)
            return
        if event.id is not None:
            if (event.prev if line.agent is None else event.agent_prev) != line.position:
                if not is_after(event.id, line.read_to):
                    return  # handed on before, from the log
                self.hold(workspace)
                self._keep(workspace, line, event)
                self.heal(workspace)
                return
            line.advance(Position(event.id))
        batch.append(event)

    def heal(self, workspace: Workspace) -> None:
        """Begin to fill the holes of a held workspace."""
        if workspace.healing is None:
            workspace.healing = asyncio.create_task(self._heal_now(workspace))

    def release(self, workspace: Workspace, known: int = 0) -> None:
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
            self.follow(line, event, batch)
        if batch:
            self._taker.on_events(batch)

    def _keep(self, workspace: Workspace, line: Line, event: Carried) -> None:
        """Let an event wait. Past the bound what waits is let go: the log has it, but for what is live only."""
        assert workspace.held is not None
        workspace.held_bytes += len(bytes(event.data)) + 200
        if workspace.held_bytes > MAX_HELD_BYTES:
            workspace.held, workspace.held_bytes = [], 0
        workspace.held.append((line, event))

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
                    async with self._turns[self._server(workspace.name)]:
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
                self.release(workspace, known if workspace.held is held else 0)
                await pause(0.01)
        except Unavailable as error:
            logger.warning("healing a workspace: %s", error)
        finally:
            workspace.healing = None
        self._on_healed(workspace)

    async def _skip(self, workspace: Workspace) -> None:
        """What the log holds cannot be handed on: say so, and go on behind it."""
        heads = await self._log.heads(workspace.name, [line.agent for line in workspace.heard()])
        for line in workspace.heard():
            if line.position != heads[line.agent]:
                _tell_gap(self._taker, line, None, is_reset=False)
                line.stand(heads[line.agent])


async def fill(workspace: Workspace, log: Log, taker: Taker) -> None:
    """Hand on what the log holds behind the heard lines, a page at a time; tell what it no longer holds.

    Raises `Unavailable` as long as the log cannot be read, or is another one than the lines have.
    """
    heard = {line.agent: line for line in workspace.heard() if line.position is not None}
    heads = await log.heads(workspace.name, list(heard))
    # Around a failover the log may still be read where it is the past. Of an agent that was purged there is no head.
    if any(
        is_after(line.head, heads[agent]) and not (agent and heads[agent] == START) for agent, line in heard.items()
    ):
        raise Unavailable("its log is read from another server than the one that is heard")
    behind = {agent: line for agent, line in heard.items() if line.position != heads[agent]}
    if not behind:
        return
    ended = await _ended(workspace, log, [line for agent, line in behind.items() if agent and heads[agent] == START])
    for agent, line in behind.items():
        if agent not in ended and line.position is not None and is_after(line.position, heads[agent]):
            # Redis knows less than we do: it lost what it had acknowledged, or everything.
            _tell_gap(taker, line, await log.oldest(workspace.name), is_reset=True)
            # Perhaps only the last event was none of its own: then the one before it is where its history goes on.
            is_before_known = line.before is not None and not is_after(line.before, heads[agent])
            line.stand(line.before if is_before_known and line.before else heads[agent])
    after = min((line.position or START for line in behind.values()), key=order)
    filled, limit = 0, FIRST_PAGE_EVENTS
    while any(line.position != heads[agent] for agent, line in behind.items()):
        page = await log.page(workspace.name, after, limit)
        if page.events:
            # Of whom nothing is left, that is told before what others said since.
            await _skip_lost(behind, heads, log, taker, before=page.events[0].id or START)
        batch: list[Carried] = []
        for event in page.events:
            own = heard.get(None) or heard.get(event.agent_id or "")
            if own is None or event.id is None or not is_after(event.id, own.position or START):
                continue
            prev = (event.prev if own.agent is None else event.agent_prev) or START
            if prev != own.position:
                _hand_on(taker, batch)
                filled, batch = filled + len(batch), []
                # A chain that goes on from before our position is another history than the one we followed, unless
                # the event we stand at was purged: then nobody else's is missing.
                is_reset = is_after(own.position or START, prev)
                purged = await log.purged(workspace.name) if is_reset and own.agent is None else START
                if not is_reset or is_after(own.position or START, purged):
                    _tell_gap(taker, own, Position(event.id), is_reset=is_reset)
            own.stand(Position(event.id))
            batch.append(event)
        _hand_on(taker, batch)
        filled += len(batch)
        after, limit = page.end, page.limit
        if page.is_last:
            break
    await _skip_lost(behind, heads, log, taker)
    for agent in ended:
        await _end(behind[agent], log, taker)
    if filled:
        taker.on_healed(filled)


async def _skip_lost(
    behind: Mapping[str | None, Line],
    heads: Mapping[str | None, Position],
    log: Log,
    taker: Taker,
    before: str | None = None,
) -> None:
    """Go to the heads to which the log does not lead (only to those `before` a position, if any), and tell that."""
    for agent, line in behind.items():
        head = heads[agent]
        if is_after(head, line.position or START) and (before is None or is_after(before, head)):
            _tell_gap(taker, line, await log.oldest(line.workspace.name), is_reset=False)
            line.stand(head)


async def _ended(workspace: Workspace, log: Log, lines: list[Line]) -> set[str | None]:
    """The agents of those lines that have no head since a purge, and not since Redis lost what it knew."""
    end = await log.purged(workspace.name) if lines else START
    return {line.agent for line in lines if not is_after(line.position or START, end)}


async def _end(line: Line, log: Log, taker: Taker) -> None:
    """What the log has of an agent that was purged, that it was deleted, is handed on: from now on it has no head.

    Where the line stands elsewhere the log has let that go too, and who knows what before it.
    """
    position = line.position or START
    if not (await log.bounds(line.workspace.name, position)).is_entry:
        _tell_gap(taker, line, await log.oldest(line.workspace.name), is_reset=False)
    line.before, line.read_to, line.position = None, position, START


def _hand_on(taker: Taker, batch: list[Carried]) -> None:
    if batch:
        taker.on_events(batch)


def _tell_gap(taker: Taker, line: Line, oldest: Position | None, *, is_reset: bool) -> None:
    """What followed `line.position` is lost."""
    agents = None if line.agent is None else frozenset((line.agent,))
    taker.on_gap(Gap(line.workspace.name, agents, line.position or START, oldest, is_reset))
