"""What may be said on the command line: commands with their own words, and the settings that matter to each."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..settings import Settings, fields

PROGRAM = "trunkline"

# The settings that matter to a command which only talks with Redis, by the beginnings of their names.
REDIS = ("redis_url", "prefix", "log_")

# What a command does: its exit status.
Perform = Callable[[Settings, argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """An error is one line, with where to find more."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {message} (see {self.prog} --help)\n")


class Commands:
    """Commands of the program, or the actions of one of them."""

    def __init__(self, text: str, parser: argparse.ArgumentParser | None = None) -> None:
        self._parser = parser or _Parser(prog=PROGRAM, description=text)
        kind = "action" if parser else "command"
        self._within: Any = self._parser.add_subparsers(dest=kind, required=True, metavar=kind.upper())

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        return self._parser.parse_args(arguments)

    def group(self, name: str, text: str) -> "Commands":
        """A command that is told by an action what to do."""
        return Commands(text, self._within.add_parser(name, help=text, description=text))

    def add(self, name: str, perform: Perform, text: str, settings: tuple[str, ...] = ("",)) -> argparse.ArgumentParser:
        """A command to which the settings matter whose names begin like one of `settings`."""
        sub: argparse.ArgumentParser = self._within.add_parser(name, help=text, description=text)
        sub.set_defaults(run=perform)
        group = sub.add_argument_group("settings (or TRUNKLINE_… in the environment)")
        for field in fields():
            if not field.name.startswith(settings):
                continue
            default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            note = f" [{default}]" if default not in ("", ()) else ""
            note = f" ({' | '.join(field.choices)}){note}" if field.choices else note
            help_ = (field.description + note).replace("%", "%%")
            group.add_argument(field.flag, dest=field.name, metavar="VALUE", help=help_)
        return sub
