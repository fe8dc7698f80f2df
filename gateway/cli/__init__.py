"""The command line. A command that fails says in one line what to do, and its exit status is not 0.

Each file here is a command, or several of one kind: what may be said (`add`) and what is done then.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from broker import TrunklineError

from .. import logs
from ..settings import load, log_format
from . import agents, keys, nodes, publishing, tailing, tokens, workers
from .parsing import PROGRAM, Commands

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit status."""
    commands = Commands("A Redis-backed event broker for AI agents.")
    for kind in (nodes, tokens, keys, agents, publishing, tailing, workers):
        kind.add(commands)
    options = commands.parse(arguments)
    try:
        settings = load(os.environ, vars(options))
        if options.command == "dev" and "TRUNKLINE_PROFILE" not in os.environ and options.profile is None:
            settings = msgspec.structs.replace(settings, profile="development")
        logs.configure(settings.log_level, log_format(settings))
        sys.exit(options.run(settings, options))
    except TrunklineError as error:
        sys.exit(f"{PROGRAM}: {logs.mask(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left. Nothing may be written to it when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
