"""`python -m tests.shards`: a cluster's traffic to each node, and the death of a master. `make shards` runs it."""

import argparse
import asyncio
import sys
from collections import Counter

from ..bench.machine import raise_open_files
from . import table
from .run import Outcome, Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.shards", description=__doc__)
    parser.add_argument("--workspaces", type=int, default=Plan().workspaces)
    parser.add_argument("--events-per-second", type=float, default=Plan().events_per_second)
    options = parser.parse_args()
    raise_open_files()
    plan = Plan(options.workspaces, options.events_per_second)
    outcome = asyncio.run(run(plan))
    print(plan, "", "before a master dies", table.of(outcome.calm), "", "after it", table.of(outcome.after), sep="\n")
    print("", table.delivery(outcome.parts), "", sep="\n")
    print(*verdict(outcome), sep="\n")
    return 1 if is_wrong(outcome) else 0


def verdict(outcome: Outcome) -> list[str]:
    wrong, said = _sum(outcome, "wrong"), _sum(outcome, "said")
    endings = _sum(outcome, "endings")
    return [
        "without a word: " + ", ".join(f"{kind} {wrong[kind]}" for kind in ("lost", "doubled", "reordered")),
        f"where a gap was said: lost {said['lost']}, doubled {said['doubled']}",
        f"gaps that clients were told: {sum(diary.gaps for diary in outcome.diaries)}; "
        f"that nodes healed: {outcome.gaps['healed']}, said: {outcome.gaps['said']}",
        f"connections that nodes ended: {dict(endings) or 0}",
        *(f"{one.node} receives more than its clients want" for one in outcome.calm if not one.is_its_own),
        *outcome.errors[:10],
    ]


def is_wrong(outcome: Outcome) -> bool:
    """What was lost without a word, an error, a feed that hears what is for others."""
    strays = [one for one in outcome.calm if not one.is_its_own]
    return bool(outcome.errors or _sum(outcome, "wrong") or strays)


def _sum(outcome: Outcome, name: str) -> Counter[str]:
    total = Counter[str]()
    for diary in outcome.diaries:
        total += getattr(diary, name)
    return total


if __name__ == "__main__":
    sys.exit(main())
