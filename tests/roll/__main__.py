"""`python -m tests.roll`: the figures of a deploy, and of a node that is killed. `make roll` runs it."""

import argparse
import sys

from ..bench.machine import raise_open_files
from . import figures, table
from .run import Plan, roll


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.roll", description=__doc__)
    parser.add_argument("--clients", type=int, default=Plan().clients)
    parser.add_argument("--handshakes-per-second", type=int, default=Plan().handshakes_per_second)
    options = parser.parse_args()
    raise_open_files()
    plan = Plan(clients=options.clients, handshakes_per_second=options.handshakes_per_second)
    outcome = roll(plan)
    print(table.of(str(plan), figures.read(outcome.journal, outcome.phases), outcome.journal))
    return 1 if outcome.journal.wrong.total() or outcome.journal.gaps else 0


if __name__ == "__main__":
    sys.exit(main())
