"""Healing: a workspace's lines are brought up to their heads from the log, and what the log has lost is told."""

from .events import Carried
from .lines import Gap, Line, Taker, Workspace
from .log import FIRST_PAGE_EVENTS, Log
from .positions import START, Position, is_after, order


async def fill(workspace: Workspace, log: Log, taker: Taker) -> None:
    """Hand on what the log holds behind the heard lines, a page at a time; tell what it no longer holds."""
    heard = {line.agent: line for line in workspace.heard() if line.position is not None}
    heads = await log.heads(workspace.name, list(heard))
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
            line.position = line.read_to = line.before if is_before_known and line.before else heads[agent]
    after = min((line.position or START for line in behind.values()), key=order)
    filled, limit = 0, FIRST_PAGE_EVENTS
    while any(line.position != heads[agent] for agent, line in behind.items()):
        page = await log.page(workspace.name, after, limit)
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
            own.position = own.read_to = Position(event.id)
            batch.append(event)
        _hand_on(taker, batch)
        filled += len(batch)
        after, limit = page.end, page.limit
        if page.is_last:
            break
    for agent, line in behind.items():
        if is_after(heads[agent], line.position or START):
            _tell_gap(taker, line, await log.oldest(workspace.name), is_reset=False)
            line.position = line.read_to = heads[agent]
    for agent in ended:
        await _end(behind[agent], log, taker)
    if filled:
        taker.on_healed(filled)


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
    line.read_to, line.position = position, START


def _hand_on(taker: Taker, batch: list[Carried]) -> None:
    if batch:
        taker.on_events(batch)


def _tell_gap(taker: Taker, line: Line, oldest: Position | None, *, is_reset: bool) -> None:
    """What followed `line.position` is lost."""
    agents = None if line.agent is None else frozenset((line.agent,))
    taker.on_gap(Gap(line.workspace.name, agents, line.position or START, oldest, is_reset))
