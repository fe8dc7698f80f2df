"""`trunkline tail`: events as they come."""

import argparse
import sys

from broker import Filter, Invalid, Position
from broker.catalog import CATALOG
from broker.keyspace import check_id, check_workspace
from broker.lines import Gap
from broker.positions import parse
from broker.watch import watch

from ..settings import Settings
from .parsing import PROGRAM, REDIS, Commands
from .printing import as_line
from .running import connect, run


def add(commands: Commands) -> None:
    tail = commands.add("tail", _tail, "print events as they come, a line of JSON each", REDIS)
    tail.add_argument("--workspace", required=True)
    tail.add_argument("--agent", action="append", help="only of this agent; may be repeated")
    tail.add_argument("--type", action="append", help="only of this type; may be repeated")
    tail.add_argument("--since", help="first what came after this position; 0-0 is the beginning")


def _tail(settings: Settings, options: argparse.Namespace) -> int:
    check_workspace(options.workspace, "--workspace")
    for agent in options.agent or ():
        check_id(agent, "--agent")
    if options.since is not None and parse(options.since) is None:
        raise Invalid("--since", f"expected a position, as 1790000000000-0, got {options.since!r}")
    if options.type and not set(options.type) <= CATALOG.keys():
        raise Invalid("--type", f"no event type {min(set(options.type) - CATALOG.keys())!r} in the catalog")
    wanted = Filter(
        workspaces=frozenset((options.workspace,)),
        agents=frozenset(options.agent) if options.agent else None,
        types=frozenset(options.type) if options.type else None,
    )

    async def work() -> int:
        async with connect(settings) as broker:
            async for item in watch(broker, wanted, Position(options.since) if options.since else None):
                if isinstance(item, Gap):
                    print(f"{PROGRAM}: events after {item.since} are lost", file=sys.stderr)
                else:
                    print(as_line(item), flush=True)
        return 0

    return run(work())
