"""`python -m tests.soak`: a million events through one node in 20 minutes. `make soak` runs it."""

import argparse
import sys

import uvloop

from ..bench.machine import raise_open_files
from . import figures
from .figures import Stretch
from .run import Outcome, Plan, soak

MAX_GROWTH = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--events", type=int, default=Plan().events)
    parser.add_argument("--seconds", type=float, default=Plan().seconds)
    options = parser.parse_args()
    raise_open_files()
    plan = Plan(events=options.events, seconds=options.seconds)
    print(plan, "", figures.HEAD, sep="\n", flush=True)
    outcome = uvloop.run(soak(plan, tell))
    print("", "by quarters", figures.HEAD, *map(figures.row, figures.quarters(outcome.stretches)), sep="\n")
    print("", *verdict(outcome), sep="\n")
    return 1 if is_wrong(outcome) else 0


def tell(stretch: Stretch) -> None:
    print(figures.row(stretch), flush=True)


def verdict(outcome: Outcome) -> list[str]:
    diary = outcome.diary
    wrong = ", ".join(f"{kind} {diary.wrong[kind]}" for kind in ("lost", "doubled", "reordered"))
    return [
        f"events: {wrong}; gaps said: {diary.gaps}, healed: {outcome.healed}",
        f"connections that the node ended: {sum(diary.endings.values())} {dict(diary.endings) or ''}".rstrip(),
        f"memory of the node from a quarter of the run to its end: {100 * figures.growth(outcome.stretches):+.1f} %",
        "held by the node when all have gone: "
        + ", ".join(f"{name} {value:g}" for name, value in outcome.held.items()),
        f"drift: {'; '.join(figures.drifts(outcome.stretches)) or 'none'}",
        f"errors in its log: {len(outcome.errors)}",
        *outcome.errors[:10],
    ]


def is_wrong(outcome: Outcome) -> bool:
    diary = outcome.diary
    return bool(
        diary.wrong.total()
        or diary.gaps
        or diary.endings
        or any(outcome.held.values())
        or outcome.errors
        or figures.growth(outcome.stretches) > MAX_GROWTH
        or figures.drifts(outcome.stretches)
    )


if __name__ == "__main__":
    sys.exit(main())
