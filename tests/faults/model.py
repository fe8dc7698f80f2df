"""What must be true: from what was published, what Redis holds and what each client saw, to violations. Pure.

Truth      An event exists when it stands in the log, or when its producer was told a position: what was told and is
           not in the log any more was lost (`is_kept` False). By Redis itself only where a fault took it back (`Loss`),
           else by us. The rest may exist or not.
Seeing     A client that keeps positions must have seen, from the beginning to the end, all of the log that its interest
           matches, each once and in order, but for the stretches of which a gap was said. Such a stretch begins behind
           the gap's `since`, or what was seen last if that has vanished, and ends with the next event that was seen,
           at the latest with what was published after the gap was told.
           A client that keeps none must have seen, on each connection, what came from where its subscription stood
           until it was cut off.
Losing     What Redis itself lost is told to whoever can know of it: a client that was told of a position which is not
           in the log hears of a gap before it hears anything of the log, of the same agent if it watches some. Of what
           was lost behind the position of a client nobody is left who knows (README, "What is guaranteed"); a client
           that keeps no positions is told nothing of either.
Gaps       A gap is said only after a loss, where Redis lost something: behind a position that it does not hold any
           more, or before one that somebody was told of and that has vanished. The same holds for a connection that is
           closed because events were lost.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from broker.positions import is_after, order

from .plan import ASYNCHRONOUS_SECONDS
from .words import SURE, Key, event, read_key

BEGINNING, NEVER = "0-0", f"{2**64}-0"
# How a connection is closed whose client keeps no positions that a gap could be told of.
EVENTS_LOST = "events were lost"


class Fact(NamedTuple):
    """An event that exists."""

    workspace: str
    position: str
    kind: str
    agent: str
    key: str  # "" for what no producer of ours published
    is_kept: bool = True


class Receipt(NamedTuple):
    """A producer was told that its event is in the log: at `position`, unless its way tells it none."""

    key: str
    position: str | None


class Told(NamedTuple):
    """A client saw an event."""

    workspace: str
    position: str
    kind: str
    agent: str
    key: str


class GapTold(NamedTuple):
    """A client was told that something may be missing behind `since`; what was published later stands behind `now`."""

    workspace: str
    since: str
    now: str


class Stood(NamedTuple):
    """A client was told that it has everything up to `position`."""

    workspace: str
    position: str


class Opened(NamedTuple):
    """A client's subscription stands, on a connection of its own."""


class Closed(NamedTuple):
    """Its connection has ended, at `now`."""

    code: int
    reason: str
    now: str = NEVER


Entry = Told | GapTold | Stood | Opened | Closed


class Interest(NamedTuple):
    """What a client subscribed to; without agents all of them."""

    workspaces: frozenset[str]
    agents: frozenset[str] | None
    kinds: frozenset[str]

    def matches(self, event: Fact | Told) -> bool:
        return (
            event.workspace in self.workspaces
            and event.kind in self.kinds
            and (self.agents is None or event.agent in self.agents)
        )


class Diary(NamedTuple):
    """All that happened to a client, in its order."""

    name: str
    interest: Interest
    keeps_positions: bool
    entries: Sequence[Entry]


class Loss(NamedTuple):
    """A fault that struck at `struck`, for which Redis may have taken back what it acknowledged behind `begin` and up
    to `end`; not what every replica had (`SURE`), if it `spares_copies`."""

    begin: str
    struck: str
    end: str
    spares_copies: bool = False


class Violation(NamedTuple):
    """Something that must not be; `position` is where, in `workspace`."""

    kind: str  # lost, silent, doubled, reordered, foreign, invented, baseless
    who: str
    workspace: str
    position: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.who} in {self.workspace} at {self.position}: {self.words}"


def loss(struck: str, end: str, reach: float, *, spares_copies: bool = False) -> Loss:
    """Of a fault that reaches back so many seconds."""
    milliseconds, _ = order(struck)
    return Loss(f"{max(0, milliseconds - 1000 * reach):.0f}-0", struck, end, spares_copies)


def may_be_lost(position: str, losses: Iterable[Loss]) -> bool:
    """True when Redis may have taken this back."""
    return any(is_after(position, loss.begin) and not is_after(position, loss.end) for loss in losses)


def bounded(losses: Iterable[Loss], kept: Iterable[str]) -> list[Loss]:
    """The losses of a log that holds `kept`. One that may have taken all of it has not, where something older is there:
    then it was a failover, and took the newest alone."""
    oldest = min(kept, key=order, default=NEVER)
    found = []
    for one in losses:
        begin = loss(one.struck, one.end, ASYNCHRONOUS_SECONDS).begin
        is_failover = one.begin == BEGINNING and not is_after(oldest, begin)
        found.append(one._replace(begin=begin) if is_failover else one)
    return found


def truth(logged: Iterable[Fact], receipts: Iterable[Receipt]) -> dict[str, list[Fact]]:
    """All that exists, by workspace and in its order: the log, and what producers were told but Redis has lost."""
    facts = {(fact.workspace, fact.position): fact for fact in logged}
    for receipt in receipts:
        key = read_key(receipt.key)
        if key is not None and receipt.position is not None and (key.workspace, receipt.position) not in facts:
            said = event(key)
            lost = Fact(key.workspace, receipt.position, said.type, said.agent_id or "", receipt.key, is_kept=False)
            facts[key.workspace, receipt.position] = lost
    found: dict[str, list[Fact]] = {}
    for fact in sorted(facts.values(), key=lambda fact: order(fact.position)):
        found.setdefault(fact.workspace, []).append(fact)
    return found


def of_log(
    facts: dict[str, list[Fact]], receipts: Sequence[Receipt], attempted: frozenset[str], losses: Sequence[Loss]
) -> Iterator[Violation]:
    """The log against its producers: what was told is there, once and in each producer's order, and nothing else is."""
    kept = [fact for name in facts for fact in facts[name] if fact.is_kept and fact.key]
    at: dict[str, set[str]] = {}
    for fact in kept:
        at.setdefault(fact.key, set()).add(fact.position)
    for key, count in Counter(fact.key for fact in kept).items():
        if count > 1:
            places = [fact.position for fact in kept if fact.key == key]
            yield _of_key("doubled", key, places[1], f"stands {count} times in the log: {places}")
    for fact in kept:
        own = read_key(fact.key)
        if fact.key not in attempted:
            yield Violation("invented", "the log", fact.workspace, fact.position, f"nobody published {fact.key}")
        elif own is not None and own.workspace != fact.workspace:
            yield Violation("foreign", "the log", fact.workspace, fact.position, f"{fact.key} is another's")
    losses_of = {name: bounded(losses, _kept(facts[name])) for name in facts}
    for receipt in receipts:
        own = read_key(receipt.key)
        lost = losses_of.get(own.workspace, losses) if own is not None else losses
        if own is not None and own.producer.startswith(SURE):
            lost = [one for one in lost if not one.spares_copies]
        # Of who was told no position it is not known when Redis had it.
        if may_be_lost(receipt.position, lost) if receipt.position is not None else lost:
            continue
        if receipt.key not in at:
            yield _of_key("lost", receipt.key, receipt.position or NEVER, "was told, and is not in the log")
        elif receipt.position is not None and receipt.position not in at[receipt.key]:
            yield _of_key("invented", receipt.key, receipt.position, f"stands at {at[receipt.key]}")
    by_producer: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for fact in kept:
        if (own := read_key(fact.key)) is not None:
            by_producer.setdefault((own.workspace, own.producer), []).append((own.number, fact.position))
    for (workspace, producer), placed in by_producer.items():
        for (number, _), (following, position) in pairwise(placed):
            if following < number:
                words = f"{producer} published {following} before {number}"
                yield Violation("reordered", "the log", workspace, position, words)


def _kept(facts: Iterable[Fact]) -> set[str]:
    return {fact.position for fact in facts if fact.is_kept}


def _of_key(kind: str, key: str, position: str, words: str) -> Violation:
    found = read_key(key) or Key("?", "?", 0)
    return Violation(kind, found.producer, found.workspace, position, f"{key} {words}")


def of_client(
    diary: Diary, facts: dict[str, list[Fact]], attempted: frozenset[str], losses: Sequence[Loss]
) -> Iterator[Violation]:
    """What a client saw, against what exists."""
    for entry in diary.entries:
        match entry:
            case Told(workspace, position) if not diary.interest.matches(entry):
                yield Violation("foreign", diary.name, workspace, position, f"{entry.kind} of {entry.agent}")
            case GapTold(workspace, since, now):
                if not (_has_begun(losses, now) and _is_justified(since, facts.get(workspace, []))):
                    yield Violation(
                        "baseless", diary.name, workspace, since, "a gap, though nothing was lost behind it"
                    )
            case Closed(_, reason, now) if reason.startswith(EVENTS_LOST) and not _has_begun(losses, now):
                yield Violation("baseless", diary.name, "?", now, f"closed: {reason}, though nothing was lost")
            case _:
                pass
    for workspace in sorted(diary.interest.workspaces):
        entries = [
            entry for entry in diary.entries if isinstance(entry, Opened | Closed) or entry.workspace == workspace
        ]
        yield from _order(diary, workspace, entries)
        of_workspace = facts.get(workspace, [])
        yield from _existence(diary, entries, of_workspace, attempted, bounded(losses, _kept(of_workspace)))
        yield from _completeness(diary, workspace, entries, of_workspace)


def _has_begun(losses: Iterable[Loss], now: str) -> bool:
    """Something had been lost by then."""
    return any(is_after(now, loss.struck) for loss in losses)


def _is_justified(since: str, facts: Sequence[Fact]) -> bool:
    """A gap behind `since` is no false alarm."""
    kept = _kept(facts)
    if since not in kept and since != BEGINNING:
        return True
    return any(is_after(fact.position, since) for fact in facts if not fact.is_kept)


def _order(diary: Diary, workspace: str, entries: Sequence[Entry]) -> Iterator[Violation]:
    """Each event once, and positions only grow."""
    seen: set[str] = set()
    keys: set[str] = set()
    last = BEGINNING
    for entry in entries:
        match entry:
            case Opened() if not diary.keeps_positions:
                seen, last = set(), BEGINNING  # another node may be behind, and knows nothing of what it saw
            case GapTold():
                keys.clear()  # what Redis lost may be published anew: behind the gap it is another event
            case Told(_, position, _, _, key):
                if position in seen:
                    yield Violation("doubled", diary.name, workspace, position, f"{key} came again")
                elif not is_after(position, last):
                    yield Violation("reordered", diary.name, workspace, position, f"{key} came behind {last}")
                elif key and key in keys and diary.keeps_positions:
                    yield Violation("doubled", diary.name, workspace, position, f"{key} came under another position")
                seen.add(position)
                keys.add(key)
                last = max(last, position, key=order)
            case _:
                pass


def _existence(
    diary: Diary, entries: Sequence[Entry], facts: Sequence[Fact], attempted: frozenset[str], losses: Sequence[Loss]
) -> Iterator[Violation]:
    """What was seen exists, and is what was published."""
    by_position = {fact.position: fact for fact in facts}
    for entry in entries:
        if not isinstance(entry, Told):
            continue
        workspace, fact = entry.workspace, by_position.get(entry.position)
        if fact is None:
            is_ours = not entry.key or entry.key in attempted
            if not (is_ours and may_be_lost(entry.position, losses)):
                yield Violation("invented", diary.name, workspace, entry.position, f"{entry.key} is nowhere in the log")
        elif (fact.kind, fact.agent, fact.key) != (entry.kind, entry.agent, entry.key):
            words = f"{entry.kind} {entry.key} of {entry.agent}, in the log {fact.kind} {fact.key} of {fact.agent}"
            yield Violation("invented", diary.name, workspace, entry.position, words)


def _completeness(diary: Diary, workspace: str, entries: Sequence[Entry], facts: Sequence[Fact]) -> Iterator[Violation]:
    """All that was owed was seen."""
    kept = _kept(facts) | {BEGINNING}
    stretches = [*(_kept_stretches(entries, kept) if diary.keeps_positions else _plain_stretches(entries))]
    seen = {entry.position for entry in entries if isinstance(entry, Told)}
    for fact in facts:
        if fact.position in seen or not fact.is_kept or not diary.interest.matches(fact):
            continue
        if any(is_after(fact.position, begin) and not is_after(fact.position, end) for begin, end in stretches):
            yield _missing(diary, fact, seen)
    if diary.keeps_positions:
        yield from _silence(diary, workspace, entries, kept)


def _missing(diary: Diary, fact: Fact, seen: Iterable[str]) -> Violation:
    """With what was seen just before and just behind."""
    before = max((one for one in seen if is_after(fact.position, one)), key=order, default=BEGINNING)
    behind = min((one for one in seen if is_after(one, fact.position)), key=order, default="the end")
    return Violation(
        "lost", diary.name, fact.workspace, fact.position, f"{fact.key or fact.kind} ({before} … {behind})"
    )


def _silence(diary: Diary, workspace: str, entries: Sequence[Entry], kept: set[str]) -> Iterator[Violation]:
    """Who was told of a position that has vanished hears of a gap before it hears anything of the log."""
    is_whole = diary.interest.agents is None
    vanished: dict[str, str] = {}  # by agent; of all together where all are watched
    for entry in entries:
        match entry:
            case GapTold():
                vanished.clear()
            case Stood(_, position) if is_whole and position not in kept:
                vanished[""] = position
            case Told(_, position, _, agent) if position not in kept:
                vanished["" if is_whole else agent] = position
            case Told(_, position, _, agent, key):
                lost = vanished.pop("" if is_whole else agent, None)
                if lost is not None:
                    words = f"{key} came, and nothing was said of {lost}, which Redis has lost"
                    yield Violation("silent", diary.name, workspace, position, words)
            case _:
                pass


def _kept_stretches(entries: Sequence[Entry], kept: set[str]) -> Iterator[tuple[str, str]]:
    """Where all of the log is owed, each behind its first position up to its second."""
    begin = last = BEGINNING
    gap: str | None = None  # the least of those said since the last event
    told = BEGINNING  # the newest of them was, then
    for entry in entries:
        match entry:
            case Told(_, position) if position in kept:
                if gap is not None:
                    yield begin, gap
                    begin, gap = min(position, told, key=order), None
                last = max(last, position, key=order)
            case GapTold(_, since, now):
                end = max(last, since, key=order) if since in kept else last
                gap, told = end if gap is None else min(gap, end, key=order), now
            case _:
                pass
    if gap is not None:
        yield begin, gap
        begin = told
    yield begin, NEVER


def _plain_stretches(entries: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Of each connection what it saw between where it stood first and where it stood last; of an open one all."""
    begin: str | None = None
    last = BEGINNING
    for entry in entries:
        match entry:
            case Opened():
                begin = None
            case Told(_, position) | Stood(_, position):
                if begin is None:
                    begin = position
                last = max(last, position, key=order)
            case Closed() if begin is not None:
                yield begin, last
                begin = None
            case _:
                pass
    if begin is not None:
        yield begin, NEVER
