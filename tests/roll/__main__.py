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
    found = figures.read(outcome.journal, outcome.phases)
    print(table.of(str(plan), found, outcome.journal))
    faults = figures.faults(found, outcome.journal)
    print(*(f"must not be: {fault}" for fault in faults), sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
