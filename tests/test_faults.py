"""The fault run itself: what judges it finds every lie, a seed is always one plan, and a short run of each topology."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from .faults import plan, table
from .faults.model import (
    EVENTS_LOST,
    Closed,
    Diary,
    Entry,
    Fact,
    GapTold,
    Interest,
    Loss,
    Opened,
    Receipt,
    Stood,
    Told,
    bounded,
    loss,
    may_be_lost,
    of_client,
    of_log,
    truth,
)
from .faults.programs import haproxy
from .faults.run import run
from .faults.words import AGENTS, Key, event, read_key
from .support import IN_CI

WORKSPACE = "ws-1"
INTEREST = Interest(frozenset((WORKSPACE,)), None, frozenset(("task.started", "task.progress", "task.completed")))


def fact(number: int, *, producer: str = "p", position: str | None = None) -> Fact:
    """The `number`th event of a producer, each a `task.started`; the first is of agent-0."""
    key = Key(WORKSPACE, producer, 5 * number)
    said = event(key)
    return Fact(WORKSPACE, position or f"{1000 + number}-0", said.type, str(said.agent_id), str(key))


def told(said: Fact) -> Told:
    return Told(said.workspace, said.position, said.kind, said.agent, said.key)


FACTS = [fact(number) for number in range(10)]
SEEN: list[Entry] = [told(one) for one in FACTS]
RECEIPTS = [Receipt(one.key, one.position) for one in FACTS]
ATTEMPTED = frozenset(one.key for one in FACTS)
# A fault that struck at the fourth event, and for which Redis may have lost what it had from the third on.
LOSSES = (Loss("1002-0", FACTS[3].position, "1010-0"),)
PLAIN: list[Entry] = [Opened(), Stood(WORKSPACE, FACTS[1].position), *SEEN[2:]]


def gap_behind(number: int, *, now: str = FACTS[6].position) -> GapTold:
    """A gap that is told when all before `now` had been published."""
    return GapTold(WORKSPACE, FACTS[number].position, now)


def kinds(
    entries: list[Entry], logged: list[Fact] = FACTS, *, keeps_positions: bool = True, losses: Sequence[Loss] = ()
) -> list[str]:
    """What is found in what a client saw."""
    diary = Diary("client", INTEREST, keeps_positions, entries)
    found = of_client(diary, truth(logged, RECEIPTS), ATTEMPTED, losses)
    return [violation.kind for violation in found]


def kinds_of_log(logged: list[Fact], receipts: list[Receipt] = RECEIPTS, *, losses: Sequence[Loss] = ()) -> list[str]:
    found = of_log(truth(logged, receipts), receipts, ATTEMPTED, losses)
    return [violation.kind for violation in found]


# -- lies about what a client saw


def test_who_saw_all_of_it_once_and_in_order_has_nothing_to_complain_about() -> None:
    assert kinds(SEEN) == []
    assert kinds(PLAIN, keeps_positions=False) == []


def test_a_lost_event_is_found() -> None:
    for missing in range(10):
        assert kinds(SEEN[:missing] + SEEN[missing + 1 :]) == ["lost"]
    assert kinds([]) == ["lost"] * 10


def test_a_lost_event_is_found_of_who_keeps_no_positions_from_where_it_stood_until_it_was_cut_off() -> None:
    assert kinds(PLAIN[:4] + PLAIN[5:], keeps_positions=False) == ["lost"]
    assert kinds(PLAIN[:-1], keeps_positions=False) == ["lost"]
    assert kinds([*PLAIN[:-1], Closed(1012, "")], keeps_positions=False) == []
    again: list[Entry] = [*PLAIN[:4], Closed(1006, ""), Opened(), Stood(WORKSPACE, FACTS[5].position), *SEEN[7:]]
    assert kinds(again, keeps_positions=False) == ["lost"]


def test_a_doubled_event_is_found() -> None:
    assert kinds([*SEEN[:5], SEEN[4], *SEEN[5:]]) == ["doubled"]
    assert kinds([*PLAIN, SEEN[9]], keeps_positions=False) == ["doubled"]
    assert kinds([*PLAIN, Closed(1006, ""), Opened(), SEEN[9]], keeps_positions=False) == [], "it gave no position"


def test_an_event_that_comes_again_under_another_position_is_found() -> None:
    again = fact(4, position="1004-7")
    assert kinds([*SEEN[:5], told(again), *SEEN[5:]], [*FACTS, again]) == ["doubled"]


def test_a_swapped_pair_is_found() -> None:
    assert kinds([*SEEN[:5], SEEN[6], SEEN[5], *SEEN[7:]]) == ["reordered"]


@pytest.mark.parametrize("change", [{"workspace": "ws-2"}, {"kind": "agent_status"}])
def test_a_foreign_event_is_found(change: dict[str, str]) -> None:
    assert kinds([*SEEN, told(fact(10))._replace(**change)])[0] == "foreign"


def test_an_event_of_another_agent_is_found() -> None:
    interest = INTEREST._replace(agents=frozenset(AGENTS[1:]))
    diary = Diary("client", interest, True, SEEN[:1])
    assert next(of_client(diary, truth(FACTS, RECEIPTS), ATTEMPTED, ())).kind == "foreign"


def test_an_invented_event_is_found() -> None:
    assert kinds([*SEEN, told(fact(10))]) == ["invented"]
    assert kinds([*SEEN[:9], told(FACTS[9])._replace(agent="another")]) == ["invented"]
    unheard = told(fact(10, position="1009-1"))._replace(key="")  # of no producer of ours
    assert kinds([*SEEN, unheard], losses=LOSSES) == [], "Redis may have lost it"
    assert kinds([*SEEN, unheard], losses=[LOSSES[0]._replace(end="1009-0")]) == ["invented"]
    assert kinds([*SEEN, unheard._replace(key="ws-1/p/51")], losses=LOSSES) == ["invented"], "it was not published"


# -- gaps


def test_a_gap_that_was_said_excuses_its_stretch_and_nothing_else() -> None:
    lost = FACTS[:4] + FACTS[7:]  # Redis lost three
    gap: Entry = gap_behind(3)
    assert kinds([*SEEN[:4], gap, *SEEN[7:]], lost, losses=LOSSES) == []
    assert kinds([*SEEN[:3], gap, *SEEN[7:]], lost, losses=LOSSES) == ["lost"], "before it all is owed"
    assert kinds([*SEEN[:4], gap, *SEEN[7:9]], lost, losses=LOSSES) == ["lost"], "and behind it"
    assert kinds([*SEEN[:4], gap, SEEN[7], SEEN[9]], lost, losses=LOSSES) == ["lost"]


def test_behind_a_gap_all_is_owed_that_was_published_after_it_was_told() -> None:
    lost = FACTS[:4] + FACTS[7:]
    gap: Entry = gap_behind(3)
    assert kinds([*SEEN[:4], gap], lost, losses=LOSSES) == ["lost"] * 3
    assert kinds([*SEEN[:4], gap, *SEEN[8:]], lost, losses=LOSSES) == ["lost"]
    assert kinds([*SEEN[:4], gap_behind(3, now="1007-0"), *SEEN[8:]], lost, losses=LOSSES) == []


def test_a_silent_gap_is_found() -> None:
    """Redis lost three; the client was told of one of them, and then of what came behind."""
    lost = FACTS[:4] + FACTS[7:]
    assert kinds([*SEEN[:5], *SEEN[7:]], lost, losses=LOSSES) == ["silent"]
    stood: Entry = Stood(WORKSPACE, FACTS[5].position)
    assert kinds([*SEEN[:4], stood, *SEEN[7:]], lost, losses=LOSSES) == ["silent"]
    gap: Entry = gap_behind(4)
    assert kinds([*SEEN[:5], gap, *SEEN[7:]], lost, losses=LOSSES) == []
    assert kinds([*SEEN[:4], *SEEN[7:]], lost, losses=LOSSES) == [], "nobody is left who knows"
    assert kinds([*PLAIN[:4], *PLAIN[7:]], lost, keeps_positions=False, losses=LOSSES) == []


def test_a_silent_gap_is_found_for_each_agent_that_is_watched() -> None:
    interest = INTEREST._replace(agents=frozenset(AGENTS))
    lost = FACTS[:4] + FACTS[5:]  # the one that Redis lost, number 4, is of the same agent as number 9
    assert FACTS[4].agent == FACTS[9].agent not in {one.agent for one in FACTS[5:9]}
    gap: Entry = gap_behind(4)

    def found(entries: list[Entry]) -> list[str]:
        return [
            one.kind
            for one in of_client(Diary("client", interest, True, entries), truth(lost, RECEIPTS), ATTEMPTED, LOSSES)
        ]

    assert found(SEEN) == ["silent"]
    assert found([*SEEN[:9], gap, *SEEN[9:]]) == []


def test_a_gap_of_a_lost_history_says_nothing_of_what_was_seen_before_it() -> None:
    lost = FACTS[:4] + FACTS[5:]
    other = fact(11, position="1004-1")  # of the log, though its place is before what was lost
    gap: Entry = gap_behind(4)
    assert kinds([*SEEN[:5], gap, *SEEN[5:]], [*lost, other], losses=LOSSES) == []
    assert kinds([*SEEN[:2], *SEEN[3:5], gap, *SEEN[5:]], [*lost, other], losses=LOSSES) == ["lost"]


def test_a_gap_without_a_loss_is_found() -> None:
    gap: Entry = gap_behind(3)
    assert kinds([*SEEN[:4], gap, *SEEN[4:]]) == ["baseless"]
    assert kinds([*SEEN[:4], gap, *SEEN[4:]], FACTS[:3] + FACTS[4:], losses=LOSSES) == []
    early = GapTold(WORKSPACE, "1-0", FACTS[2].position)
    assert kinds([*SEEN[:3], early, *SEEN[3:]], losses=LOSSES) == ["baseless"], "nothing had been lost yet"
    closed: Entry = Closed(1013, EVENTS_LOST, FACTS[6].position)
    assert kinds([*PLAIN, closed], keeps_positions=False) == ["baseless"]
    assert kinds([*PLAIN, closed], keeps_positions=False, losses=LOSSES) == []


def test_what_redis_lost_may_come_again_behind_the_gap() -> None:
    again = fact(9, position="1020-0")
    gap: Entry = gap_behind(9, now="1015-0")
    assert kinds([*SEEN, gap, told(again)], [*FACTS[:9], again], losses=LOSSES) == []
    assert kinds([*SEEN, told(again)], [*FACTS[:9], again], losses=LOSSES) == ["doubled", "silent"]


# -- lies about the log


def test_a_log_that_holds_what_was_told_is_well() -> None:
    assert kinds_of_log(FACTS) == []


def test_what_was_told_and_is_not_in_the_log_is_lost_unless_redis_may_have_lost_it() -> None:
    assert kinds_of_log(FACTS[1:]) == ["lost"]
    assert kinds_of_log(FACTS[:3] + FACTS[4:], losses=LOSSES) == []
    assert kinds_of_log(FACTS[:2] + FACTS[3:], losses=LOSSES) == ["lost"], "its loss is another"
    without_position = [Receipt(one.key, None) for one in FACTS]
    assert kinds_of_log(FACTS, without_position) == []
    assert kinds_of_log(FACTS[1:], without_position) == ["lost"]


def test_of_a_log_whose_old_events_are_there_only_the_newest_may_be_lost() -> None:
    """Of a fault that may have taken everything, as it strikes who keeps nothing on a disk."""
    old = [fact(number, position=f"{100_000 + number}-0") for number in range(3)]  # 40 s before
    new = [fact(number, position=f"{138_000 + number}-0") for number in range(3, 6)]
    receipts = [Receipt(one.key, one.position) for one in (*old, *new)]
    losses = [loss("140000-0", "141000-0", math.inf)]
    assert kinds_of_log([*old, *new], receipts, losses=losses) == []
    assert kinds_of_log([old[0], old[2], *new], receipts, losses=losses) == ["lost"]
    assert kinds_of_log(old, receipts, losses=losses) == [], "a failover took the newest"
    assert kinds_of_log([], receipts, losses=losses) == [], "or all"
    unseen = old[1].position
    assert may_be_lost(unseen, bounded(losses, {one.position for one in new}))
    assert not may_be_lost(unseen, bounded(losses, {old[0].position}))


def test_a_failover_takes_nothing_that_every_replica_had() -> None:
    sure = [fact(number, producer="sure-2-0") for number in range(10)]
    receipts = [Receipt(one.key, one.position) for one in sure]
    attempted = frozenset(one.key for one in sure)
    failover, kill = LOSSES[0]._replace(spares_copies=True), LOSSES[0]
    for losses, found in ([failover], ["lost"]), ([failover, kill], []):
        judged = of_log(truth(sure[:3] + sure[4:], receipts), receipts, attempted, losses)
        assert [violation.kind for violation in judged] == found
    assert kinds_of_log(FACTS[:3] + FACTS[4:], losses=[failover]) == [], "replicas need not have had it"


def test_what_stands_twice_in_the_log_or_out_of_its_producers_order_or_was_never_published_is_found() -> None:
    assert kinds_of_log([*FACTS, fact(9, position="2000-0")]) == ["doubled"]
    swapped = [*FACTS[:8], fact(9, position="1008-0"), fact(8, position="1009-0")]
    assert kinds_of_log(swapped, [Receipt(one.key, one.position) for one in swapped]) == ["reordered"]
    assert kinds_of_log([*FACTS, fact(10)]) == ["invented"]
    assert kinds_of_log([*FACTS[:9], FACTS[9]._replace(workspace="ws-2")], RECEIPTS[:9]) == ["foreign"]


# -- plans and words


def test_a_seed_is_always_the_same_plan() -> None:
    assert plan.make(7, 20) == plan.make(7, 20)
    assert len({plan.make(seed, 20).faults for seed in range(50)}) == 50
    assert {plan.make(seed, 20).topology for seed in range(50)} == set(plan.TOPOLOGIES)


def test_what_a_fault_may_take_back_depends_on_who_keeps_it() -> None:
    one = plan.make(1, 20, "single")
    kept = {name: one._replace(persistence=name) for name in ("none", "everysec", "always")}
    assert [kept[name].reach("kill redis") for name in kept] == [math.inf, plan.ASYNCHRONOUS_SECONDS, 0]
    assert [kept[name].reach("restart redis") for name in kept] == [math.inf, 0, 0]
    assert [each.reach("kill node") for each in kept.values()] == [0, 0, 0]
    several = [one._replace(topology=name, persistence="always") for name in ("sentinel", "cluster")]
    assert [each.reach("failover") for each in several] == [plan.ASYNCHRONOUS_SECONDS, 0]
    kinds = ("failover", "stop redis", "kill redis", "lossy failover")
    spared = [[one._replace(persistence=name).spares_copies(kind) for kind in kinds] for name in ("none", "always")]
    assert spared == [[True, True, False, False], [True] * 4]
    struck = loss("10000-0", "12000-0", 5.0)
    assert [may_be_lost(position, [struck]) for position in ("5000-0", "5000-1", "12000-0", "12000-1")] == [
        False, True, True, False,
    ]  # fmt: skip
    assert may_be_lost("1-0", [loss("10000-0", "12000-0", math.inf)])


def test_an_event_is_known_again_by_its_key() -> None:
    for number in range(20):
        said = event(Key(WORKSPACE, "sdk-1-0", number))
        assert read_key(str(said.data.get("task_id") or said.data.get("inference_id"))) == (
            WORKSPACE,
            "sdk-1-0",
            number,
        )
    assert read_key("task-456") is None


# -- the real thing


@pytest.mark.parametrize(
    ("seed", "topology", "kind"),
    [(28, "single", "kill redis"), (18, "sentinel", "failover"), (24, "cluster", "move slot")],
)
def test_a_short_run_finds_nothing(seed: int, topology: plan.Topology, kind: str, tmp_path: Path) -> None:
    if haproxy() is None:
        (pytest.fail if IN_CI else pytest.skip)("no haproxy found")
    outcome = asyncio.run(run(plan.make(seed, 6, topology), tmp_path))
    print(table.of([outcome]))
    assert outcome.violations == [], "\n".join(outcome.story.lines[-60:])
    assert outcome.deliveries > 100
    assert outcome.faults[kind], "\n".join(outcome.story.lines)
