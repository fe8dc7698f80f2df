"""`trunkline dev` and `trunkline serve`."""

import argparse
import logging
import os

from .. import app
from ..settings import Settings, unknown
from .parsing import Commands
from .running import run


def add(commands: Commands) -> None:
    commands.add("dev", _dev, "private Redis, gateway and demo agents on this machine")
    commands.add("serve", _serve, "one node, one process")


def _dev(settings: Settings, options: argparse.Namespace) -> int:
    from ..dev import develop  # noqa: PLC0415 (it needs what a fleet does not)

    return run(develop(settings, own_redis=options.redis_url is None and "TRUNKLINE_REDIS_URL" not in os.environ))


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    if unused := unknown(os.environ):
        logging.getLogger("trunkline").warning("no such setting: %s", ", ".join(unused))

    async def work() -> int:
        await app.serve(settings)
        return 0

    return run(work())
