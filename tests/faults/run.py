"""One seed, from its start to its verdict.

start ──▶ everybody comes ──▶ faults ──▶ all is put right ──▶ the last events ──▶ all is seen ──▶ everybody leaves
                                                                                                        │
                                                                   verdict ◀── leases are given back ◀──┘
"""

import asyncio
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ..agnt5_chaos_worker import ENDPOINT
from ..agnt5_chaos_worker import WORKSPACE as RUNS_WORKSPACE
from ..support import until
from .crowd import Crowd
from .fleet import Fleet
from .havoc import Havoc
from .journal import Journal
from .leases import held, kept, newest, redis_ms
from .model import Fact, Loss
from .plan import Plan
from .story import Story
from .verdict import Outcome, has_lost_runs, judge, judge_logs, judge_runs, keep_diaries, logged, outcome
from .watchers import Watcher
from .words import AGENTS, WORKSPACES, last, subject

COME_SECONDS = 30.0
SEEN_SECONDS = 12.0
RUNS_SECONDS = 45.0
LEAVE_SECONDS = 20.0
PATIENT_SECONDS = 60.0


async def run(plan: Plan, directory: Path) -> Outcome:
    """Play a seed. What it leaves for a reader is in `directory`."""
    story = Story(directory / "story.log")
    story.say("plan", str(plan))
    for fault in plan.faults:
        story.say("plan", str(fault))
    chance = random.Random(plan.seed)
    async with Fleet(plan, directory, story, chance) as fleet, _working(*(member.keep() for member in fleet.members)):
        crowd = Crowd(fleet, story, chance)
        violations: list[str] = []
        async with _running(crowd) as runs:
            async with _working(*(one.run() for one in crowd.watchers)):
                async with _working(*(one.run() for one in crowd.residents)):
                    await until(lambda: all(one.is_open for one in crowd.watchers), COME_SECONDS, "all to have come")
                    havoc = await _break(fleet, crowd, story)
                    violations += await _put_right(fleet, crowd)
                    well_ms = await redis_ms(fleet.broker) + 1000 * plan.redis_behind
                # Within the 15 s after which the agents that have left are told to be offline.
                facts, more = await _end(fleet, crowd, story)
                violations += more
            violations += await _ended(runs, fleet, crowd, havoc.losses)
        violations += await _left(fleet, crowd, well_ms)
        story.say("run", "everybody has left")
        attempted, receipts = fleet.receipts()
        violations += map(str, judge(facts, attempted, receipts, crowd, havoc.losses))
        violations += await judge_runs(fleet, crowd, havoc.losses)
        violations += [*crowd.surprises(), *judge_logs(fleet, crowd)]
        story.say("run", f"{len(violations)} violations")
        if violations:
            keep_diaries(directory, crowd, facts)
        return outcome(plan, facts, receipts, crowd, havoc, fleet, violations)


@asynccontextmanager
async def _running(crowd: Crowd) -> AsyncIterator["asyncio.Future[Any]"]:
    """Meanwhile runs are started; what is given is done when all of them have ended."""
    runs = asyncio.gather(*(runner.run() for runner in crowd.runners))
    try:
        yield runs
    finally:
        runs.cancel()
        await asyncio.gather(runs, return_exceptions=True)


@asynccontextmanager
async def _working(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Meanwhile these go on; a bug in one of them ends the run."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _break(fleet: Fleet, crowd: Crowd, story: Story) -> Havoc:
    """Producers begin, and the schedule is performed."""
    await until(lambda: fleet.broker.redis.exists(fleet.broker.keys.served(RUNS_WORKSPACE, ENDPOINT)), COME_SECONDS)
    for publisher in fleet.publishers:
        publisher.start()
    story.begin()
    havoc = Havoc(fleet, crowd.slow)
    async with _working(fleet.command_line.run(), _complete_crew(fleet)):
        await havoc.wreak()
        story.say("run", "all faults are over")
        for runner in crowd.runners:
            runner.hurry()
        await asyncio.gather(fleet.command_line.finish(), *(publisher.stop() for publisher in fleet.publishers))
    return havoc


async def _complete_crew(fleet: Fleet) -> None:
    """Workers are replaced as they fall, as a supervisor does."""
    while True:
        fleet.crew.complete()
        await asyncio.sleep(0.3)


async def _put_right(fleet: Fleet, crowd: Crowd) -> list[str]:
    """All that was broken is whole again, and everybody is back."""

    async def is_well() -> bool:
        return all([await member.is_ready() for member in fleet.members]) and await fleet.redises.is_well()

    problems = []
    try:
        await until(is_well, COME_SECONDS, "the fleet to be well again")
        await until(lambda: all(one.is_open for one in crowd.watchers), COME_SECONDS)
    except AssertionError:
        away = [one.name for one in crowd.watchers if not one.is_open]
        unready = [member.name for member in fleet.members if not await member.is_ready()]
        problems.append(f"outage: not over when all faults were: unready {unready}, not back {away}")
    return problems


async def _end(fleet: Fleet, crowd: Crowd, story: Story) -> tuple[list[Fact], list[str]]:
    """Publish what nothing comes behind, let a node leave, and wait until everybody has seen it and is there again.

    Answers all that Redis holds then, and what is wrong.
    """
    journal, number = Journal(fleet.journal), 0
    for workspace in WORKSPACES:
        for agent in AGENTS:
            events = last(workspace, agent, number)
            journal.try_(subject(event.data) for event in events)
            await fleet.broker.publish_many(events)
    facts = [fact for workspace in WORKSPACES for fact in await _facts(fleet, workspace)]
    owed: dict[str, dict[str, str]] = defaultdict(dict)
    for fact in facts:
        for watcher in crowd.watchers:
            if watcher.interest.matches(fact):
                owed[watcher.name][fact.workspace] = fact.position

    def waiting() -> list[Watcher]:
        return [
            one
            for one in crowd.watchers
            if not all(one.has_seen_to(workspace, position) for workspace, position in owed[one.name].items())
        ]

    # The one that has most to give back.
    counts = [await asyncio.to_thread(member.node.metric, "trunkline_leases") for member in fleet.members]
    leaver = fleet.members[counts.index(max(counts))]
    names = [one.name for one in crowd.watchers]
    before = await newest(fleet.broker, names)
    story.say("run", f"the last events are published, and {leaver.name} leaves")
    await leaver.end(signal.SIGTERM)
    problems = []
    try:
        await until(lambda: not waiting() and all(one.is_open for one in crowd.watchers), SEEN_SECONDS)
    except AssertionError:
        # Who keeps no positions may have been away.
        unseen = [one.name for one in waiting() if one.way.keeps_positions]
        problems += [f"lost: the last events have not come to {unseen}"] if unseen else []
    else:
        story.say("run", "everybody has seen the last events")
    if held_still := await kept(fleet.broker, before, await newest(fleet.broker, names)):
        problems.append(f"leases: {leaver.name} has left, and not given back {held_still}")
    return facts, problems


async def _facts(fleet: Fleet, workspace: str) -> list[Fact]:
    """All that a workspace's log holds, as the model knows it."""
    return [
        Fact(workspace, str(event.id), event.type, event.agent_id or "", subject(event.event().data))
        for event in await logged(fleet, workspace)
    ]


async def _ended(runs: "asyncio.Future[Any]", fleet: Fleet, crowd: Crowd, losses: Sequence[Loss]) -> list[str]:
    """All runs have ended, unless Redis has lost what it knew of them."""
    if not await has_lost_runs(fleet, crowd, losses):
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(runs), RUNS_SECONDS)
    if runs.done():
        runs.result()
        fleet.story.say("run", "all runs have ended")
        return []
    if await has_lost_runs(fleet, crowd, losses):
        return []
    left = sum(not one.is_done for one in crowd.runners)
    return [f"runs: not all had ended {RUNS_SECONDS:g} s later, for {left} clients"]


async def _left(fleet: Fleet, crowd: Crowd, well_ms: float) -> list[str]:
    """Everybody has gone: places are given back, and nobody keeps an agent present."""
    broker = fleet.broker
    seconds = PATIENT_SECONDS if fleet.plan.is_patient else LEAVE_SECONDS
    state: Any = None

    async def is_empty() -> bool:
        nonlocal state
        counts = [await asyncio.to_thread(member.node.metric, "trunkline_leases") for member in fleet.members]
        state = (counts, await held(broker, [one.name for one in crowd.named], well_ms))
        left = state[1]
        return not any(counts) and not left.renewed and (not fleet.plan.is_patient or not (left.dead or left.present))

    try:
        await until(is_empty, seconds)
    except AssertionError:
        return [f"leases: still held {seconds:g} s after everybody had left: {state}"]
    return []
