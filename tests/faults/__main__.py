"""`python -m tests.faults --seed 7 [--runs 50] [--seconds 20] [--topology single|sentinel|cluster]`

Plays the seeds from this one on and prints a row for each, then the table. What a failing seed leaves (the story, the
logs of all programs) stays; exit status 1 if there is one.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from . import table
from .plan import TOPOLOGIES, Topology, make
from .run import run
from .story import Story
from .verdict import Outcome, unfinished

STORY_LINES = 60


def play(seed: int, seconds: float, topology: Topology | None) -> Outcome:
    """One seed; its directory goes away unless something is wrong."""
    directory = Path(tempfile.mkdtemp(prefix=f"trunkline-faults-{seed}-"))
    plan = make(seed, seconds, topology)
    print(plan, flush=True)
    try:
        outcome = asyncio.run(_ending(run(plan, directory)))
    except Exception as error:  # the other seeds are played all the same
        traceback.print_exc()
        outcome = unfinished(plan, Story(directory / "story.log"), error)
    print(table.row_of(outcome), flush=True)
    if outcome.violations:
        print(_told(outcome), flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return outcome


async def _ending(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """SIGTERM ends it as Ctrl-C does: nothing that it started outlives it."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _told(outcome: Outcome) -> str:
    """The story of a failing run: its end, the violations and where the rest is."""
    directory = outcome.story.path.parent
    story = outcome.story.path.read_text().splitlines()
    lines = ["", *story[-STORY_LINES:], "", f"{len(outcome.violations)} violations:"]
    lines += [f"  {violation}" for violation in outcome.violations[:20]]
    lines += ["", f"the whole story is {outcome.story.path}, logs:"]
    return "\n".join([*lines, *(f"  {path}" for path in sorted(directory.glob("*.log")))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Break a real fleet, and look closely.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--runs", type=int, default=1, help="how many seeds, from this one on [1]")
    parser.add_argument("--seconds", type=float, default=20.0, help="for how long faults go on in each [20]")
    parser.add_argument("--topology", choices=TOPOLOGIES, help="instead of the seed's own")
    options = parser.parse_args()
    outcomes = [
        play(seed, options.seconds, options.topology) for seed in range(options.seed, options.seed + options.runs)
    ]
    print(f"\n{table.of(outcomes)}")
    return int(any(outcome.violations for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
