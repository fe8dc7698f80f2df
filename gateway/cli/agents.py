"""`trunkline agent`: the agents of a workspace."""

import argparse
import contextlib
from collections.abc import AsyncIterator

import msgspec

from broker import Invalid
from broker.agents import AgentMissing, Agents
from broker.agents.model import MAX_LIMIT, Draft, Status, Summary
from broker.keyspace import check_workspace

from ..settings import Settings
from .parsing import PROGRAM, REDIS, Commands
from .printing import as_line, cell, document, print_table, read_object
from .running import connect, run


def add(commands: Commands) -> None:
    agents = commands.group("agent", "list, show, make and delete the agents of a workspace")
    listing = agents.add("list", _list, "list agents, newest first", REDIS)
    listing.add_argument("--workspace", required=True)
    listing.add_argument("--status", choices=("online", "offline", "error"), help="only with this status")
    listing.add_argument("--json", action="store_true", help="a line of JSON each")
    show = agents.add("show", _show, "show all of an agent", REDIS)
    show.add_argument("id")
    show.add_argument("--workspace", required=True)
    show.add_argument("--json", action="store_true", help="one line of JSON")
    create = agents.add("create", _create, "make an agent; prints its pairing key, once", REDIS)
    create.add_argument("name")
    create.add_argument("--workspace", required=True)
    create.add_argument("--mode", default="computer", help="[computer]")
    create.add_argument("--soul", default="{}", help="a JSON object [{}]")
    create.add_argument("--shield", default="{}", help="a JSON object [{}]")
    create.add_argument("--json", action="store_true", help="one line of JSON")
    delete = agents.add("delete", _delete, "delete an agent", REDIS)
    delete.add_argument("id")
    delete.add_argument("--workspace", required=True)
    delete.add_argument("--purge", action="store_true", help="its events, runs, commands and keys as well")
    delete.add_argument("--json", action="store_true", help="one line of JSON")


def _list(settings: Settings, options: argparse.Namespace) -> int:
    check_workspace(options.workspace, "--workspace")

    async def work() -> int:
        async with connect(settings) as broker:
            found = await _all_agents(broker.agents, options.workspace, options.status)
        if options.json:
            for agent in found:
                print(as_line(agent))
        else:
            print_table([Summary.__struct_fields__, *map(msgspec.structs.astuple, found)])
        return 0

    return run(work())


async def _all_agents(agents: Agents, workspace: str, status: Status | None) -> list[Summary]:
    """Newest first, each once, whoever comes and goes meanwhile."""
    page = await agents.list(frozenset((workspace,)), status, MAX_LIMIT)
    found = page.items
    while page.next is not None:
        page = await agents.list(frozenset((workspace,)), status, MAX_LIMIT, before=page.next)
        found += page.items
    return found


def _show(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _agents(settings, options) as agents:
            agent = await agents.get(frozenset((options.workspace,)), options.id)
        raw = msgspec.json.encode(agent)
        if options.json:
            print(raw.decode())
            return 0
        for name, value in msgspec.json.decode(raw).items():
            print(f"{name:13}  {document(value) if isinstance(value, dict) else cell(value)}")
        return 0

    return run(work())


def _create(settings: Settings, options: argparse.Namespace) -> int:
    soul, shield = read_object(options.soul, "--soul"), read_object(options.shield, "--shield")
    draft = Draft(name=options.name, workspace_id=options.workspace, mode=options.mode, soul=soul, shield=shield)

    async def work() -> int:
        async with _agents(settings, options) as agents:
            created = await agents.create(options.workspace, draft)
        if options.json:
            print(as_line(created._asdict()))
        else:
            print(f"{created.id} waits to be paired, for 24 hours. Its pairing key is shown only now:")
            print(created.pairing_key)
        return 0

    return run(work())


def _delete(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _agents(settings, options) as agents:
            await agents.delete(frozenset((options.workspace,)), options.id, purge=options.purge)
        if options.json:
            print(as_line({"id": options.id, "deleted": True, "purged": options.purge}))
        else:
            print(f"{options.id} is deleted")
        return 0

    return run(work())


@contextlib.asynccontextmanager
async def _agents(settings: Settings, options: argparse.Namespace) -> AsyncIterator[Agents]:
    """The registry; an agent that it does not have is said with what to do."""
    check_workspace(options.workspace, "--workspace")
    async with connect(settings) as broker:
        try:
            yield broker.agents
        except AgentMissing:
            listing = f"{PROGRAM} agent list --workspace {options.workspace}"
            raise Invalid("id", f"no agent {options.id!r} in this workspace; see {listing}") from None
