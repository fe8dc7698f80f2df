"""`trunkline tail`: events as they come, from Redis or through a gateway."""

import argparse
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from broker import Event, Filter, Invalid, Position, client
from broker.catalog import CATALOG
from broker.keyspace import check_id, check_workspace
from broker.lines import Gap
from broker.positions import parse
from broker.watch import watch

from ..settings import TOKEN_VARIABLE, Settings
from .parsing import PROGRAM, REDIS, Commands
from .printing import as_line
from .running import connect, run


def add(commands: Commands) -> None:
    tail = commands.add("tail", _tail, "print events as they come, a line of JSON each", REDIS)
    tail.add_argument("--workspace", required=True)
    tail.add_argument("--agent", action="append", help="only of this agent; may be repeated")
    tail.add_argument("--type", action="append", help="only of this type; may be repeated")
    tail.add_argument("--since", help="first what came after this position; 0-0 is the beginning")
    tail.add_argument(
        "--url",
        help="through this gateway, as ws://127.0.0.1:8080/v2/ws, instead of Redis: MaxiCore's types, with a token",
    )
    tail.add_argument(
        "--token-file",
        help=f"file with the token for --url, read anew for each connection [the token in {TOKEN_VARIABLE}]",
    )


def _tail(settings: Settings, options: argparse.Namespace) -> int:
    check_workspace(options.workspace, "--workspace")
    for agent in options.agent or ():
        check_id(agent, "--agent")
    if options.since is not None and parse(options.since) is None:
        raise Invalid("--since", f"expected a position, as 1790000000000-0, got {options.since!r}")
    if options.type and not set(options.type) <= CATALOG.keys():
        raise Invalid("--type", f"no event type {min(set(options.type) - CATALOG.keys())!r} in the catalog")
    if options.url is not None:
        return run(_print_items(_tail_gateway(options)))
    if options.token_file is not None:
        raise Invalid("--token-file", "expected --url with it: Redis takes no token")
    wanted = Filter(
        workspaces=frozenset((options.workspace,)),
        agents=frozenset(options.agent) if options.agent else None,
        types=frozenset(options.type) if options.type else None,
    )

    async def work() -> int:
        async with connect(settings) as broker:
            return await _print_items(watch(broker, wanted, Position(options.since) if options.since else None))

    return run(work())


def _tail_gateway(options: argparse.Namespace) -> AsyncIterator[Event | Gap]:
    """Lost connections are made again for ever, and said once: whoever follows a fleet outlives its deploys."""
    file = Path(options.token_file) if options.token_file is not None else None

    def token() -> str:
        try:
            given = file.read_text() if file is not None else os.environ.get(TOKEN_VARIABLE, "")
        except (OSError, ValueError) as error:
            raise Invalid("--token-file", f"cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
        if not given.strip():
            raise Invalid("--url", f"expected a token in {TOKEN_VARIABLE} or --token-file; trunkline token makes one")
        return given

    return client.watch(
        options.url,
        token=token,
        workspace_id=options.workspace,
        agent_id=options.agent,
        event_types=options.type,
        since=options.since,
    )


async def _print_items(items: AsyncIterator[Event | Gap]) -> int:
    async for item in items:
        if isinstance(item, Gap):
            print(f"{PROGRAM}: events after {item.since} are lost", file=sys.stderr)
        else:
            print(as_line(item), flush=True)
    return 0
