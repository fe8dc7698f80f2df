"""The verdict on a seed: what of all that must be true is not."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from broker import Event
from broker.events import Carried
from broker.positions import START

from ..agnt5 import ENDS
from ..agnt5_chaos import faults_of_log, faults_of_story
from ..agnt5_chaos_worker import ENDPOINT
from ..agnt5_chaos_worker import WORKSPACE as RUNS_WORKSPACE
from .crowd import Crowd
from .fleet import Fleet
from .havoc import Havoc
from .model import Fact, Loss, Receipt, Told, Violation, bounded, may_be_lost, of_client, of_log, truth
from .plan import Plan
from .story import Story
from .watchers import BALANCERS_OWN
from .words import SURE, read_key


class Outcome(NamedTuple):
    """What came of a seed: a row of the table."""

    plan: Plan
    events: int
    deliveries: int
    runs: int
    faults: Counter[str]
    undone: Counter[str]
    reconnects: int
    healed: int
    said: int
    redis_lost: int
    sure: int  # events that every replica had when their producers were told
    lives: int  # of nodes
    weighed: int  # those of them that lasted for their memory to be judged
    redis: str  # its version
    violations: list[str]
    seconds: float
    story: Story


async def logged(fleet: Fleet, workspace: str) -> list[Carried]:
    """All that a workspace's log holds."""
    events: list[Carried] = []
    end, is_last = START, False
    while not is_last:
        page, end, is_last, _ = await fleet.broker.log.page(workspace, end, 1000)
        events += page
    return events


async def _said_of_runs(fleet: Fleet) -> dict[str, list[Event]]:
    """All that the log holds of runs, by execution."""
    said: dict[str, list[Event]] = defaultdict(list)
    for carried in await logged(fleet, RUNS_WORKSPACE):
        event = carried.event()
        said[event.data["execution_id"]].append(event)
    return said


async def has_lost_runs(fleet: Fleet, crowd: Crowd, losses: Sequence[Loss]) -> bool:
    """True when Redis has lost what it had told of runs, or the endpoint itself: then little is promised of them."""
    if not losses:
        return False
    if not await fleet.broker.redis.exists(fleet.broker.keys.endpoint(ENDPOINT)):
        return True
    kept = {str(event.id) for events in (await _said_of_runs(fleet)).values() for event in events}
    told = {event for runner in crowd.runners for story in runner.stories.values() for event in story.events}
    losses = bounded(losses, kept)
    return any(may_be_lost(event, losses) for event in told - kept)


def judge(
    facts: list[Fact], attempted: frozenset[str], receipts: list[Receipt], crowd: Crowd, losses: Sequence[Loss]
) -> Iterator[Violation]:
    exists = truth(facts, receipts)
    yield from of_log(exists, receipts, attempted, losses)
    for watcher in crowd.watchers:
        yield from of_client(watcher.diary, exists, attempted, losses)


async def judge_runs(fleet: Fleet, crowd: Crowd, losses: Sequence[Loss]) -> list[str]:
    """Every run has begun and ended once, and its client was told all of it, each event once."""
    said = await _said_of_runs(fleet)
    if await has_lost_runs(fleet, crowd, losses):
        # A run's end goes together with what Redis knew of the run: in what is left there is still no second one.
        return [f"runs: {name} goes on after its end" for name, events in said.items() if _has_end(events[:-1])]
    stories = {execution: story for runner in crowd.runners for execution, story in runner.stories.items()}
    faults = [*faults_of_log(said, set(stories))]
    for execution, story in stories.items():
        faults += faults_of_story(story, said[execution])
    balancers_own = tuple(f"HTTP {status}" for status in BALANCERS_OWN)
    for runner in crowd.runners:
        faults += [surprise for surprise in runner.surprises if not surprise.endswith(balancers_own)]
        faults += [f"{runner.name} was told twice: {event}" for event in runner.doubled]
    return [f"runs: {fault}" for fault in faults]


def _has_end(events: Iterable[Event]) -> bool:
    return any(event.type in ENDS for event in events)


def judge_logs(fleet: Fleet, crowd: Crowd) -> Iterator[str]:
    """No bug in any node's log or producer's, and no token or key in any file."""
    for member in fleet.members:
        yield from member.judge()
    for publisher in fleet.publishers:
        yield from publisher.faults
    if "Traceback" in fleet.producers_log.read_text(errors="replace"):
        yield f"bug: a producer's traceback stands in {fleet.producers_log.name}"
    secrets = {*(one.token for one in crowd.named), fleet.key}
    for path in sorted(fleet.directory.glob("*.log")):
        text = path.read_text(errors="replace")
        if any(secret in text for secret in secrets):
            yield f"secret: a token or a key stands in {path.name}"


def keep_diaries(directory: Path, crowd: Crowd, facts: list[Fact]) -> None:
    """What everybody saw and what Redis holds, for who looks for the reason."""
    for watcher in crowd.watchers:
        (directory / f"{watcher.name}.diary").write_text("\n".join(map(str, watcher.entries)))
    (directory / "redis.diary").write_text("\n".join(map(str, facts)))


def outcome(  # noqa: PLR0917 (called in one place)
    plan: Plan,
    facts: list[Fact],
    receipts: list[Receipt],
    crowd: Crowd,
    havoc: Havoc,
    fleet: Fleet,
    violations: list[str],
) -> Outcome:
    exists = truth(facts, receipts)
    figures = sum((member.figures for member in fleet.members), Counter[str]())
    told = sum((one.told for one in crowd.watchers), Counter[str]())
    return Outcome(
        plan=plan,
        events=sum(map(len, exists.values())),
        deliveries=sum(isinstance(entry, Told) for one in crowd.watchers for entry in one.entries),
        runs=sum(len(runner.stories) for runner in crowd.runners),
        faults=havoc.done,
        undone=havoc.undone,
        reconnects=told["connected"] - len(crowd.watchers),
        healed=figures["healed"],
        said=told["gap"],
        redis_lost=sum(not fact.is_kept for name in exists for fact in exists[name]),
        sure=sum((key := read_key(receipt.key)) is not None and key.producer.startswith(SURE) for receipt in receipts),
        lives=sum(member.lives for member in fleet.members),
        weighed=sum(member.weighed for member in fleet.members),
        redis=fleet.redises.version,
        violations=violations,
        seconds=fleet.story.seconds,
        story=fleet.story,
    )


def unfinished(plan: Plan, story: Story, error: Exception) -> Outcome:
    """What came of a seed that could not be played to its end."""
    violations = [f"unfinished: {type(error).__name__}: {error}"]
    return Outcome(plan, 0, 0, 0, Counter(), Counter(), 0, 0, 0, 0, 0, 0, 0, "?", violations, 0.0, story)
