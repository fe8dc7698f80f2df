"""`trunkline key`: API keys of workflow endpoints."""

import argparse

import msgspec

from broker.credentials import Credentials, Key

from ..settings import Settings
from .parsing import REDIS, Commands
from .printing import as_line, print_table
from .running import connect, run


def add(commands: Commands) -> None:
    keys = commands.group("key", "make, list and revoke the API keys of workflow endpoints")
    create = keys.add("create", _create, "make a key; it is shown now and never again", REDIS)
    create.add_argument("--endpoint", required=True, help="the endpoint that it opens")
    create.add_argument("--workspace", required=True, help="whose the endpoint is, from its first key on")
    listing = keys.add("list", _list, "list keys, revoked ones too, oldest first", REDIS)
    listing.add_argument("--endpoint", help="only of this endpoint")
    listing.add_argument("--workspace", help="only of this workspace")
    listing.add_argument("--json", action="store_true", help="a line of JSON each")
    revoke = keys.add("revoke", _revoke, "let a key open nothing any more, and end its connections", REDIS)
    revoke.add_argument("id", help="id of the key, as key list shows it")


def _create(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with connect(settings) as broker:
            created = await Credentials(broker.redis, broker.keys).create(options.endpoint, options.workspace)
        print(f"{created.id} opens {options.endpoint} of {options.workspace}. It is shown only now:")
        print(created.key)
        return 0

    return run(work())


def _list(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with connect(settings) as broker:
            found = await Credentials(broker.redis, broker.keys).list(options.endpoint, options.workspace)
        if options.json:
            for key in found:
                print(as_line(key))
        else:
            print_table([Key.__struct_fields__, *map(msgspec.structs.astuple, found)])
        return 0

    return run(work())


def _revoke(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with connect(settings) as broker:
            await Credentials(broker.redis, broker.keys).revoke(options.id)
        print(f"{options.id} is revoked")
        return 0

    return run(work())
