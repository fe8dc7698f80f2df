"""`trunkline check`."""

import argparse

from .. import check
from ..settings import Settings
from .parsing import Commands
from .running import run


def add(commands: Commands) -> None:
    checking = commands.add("check", _check, "connect with these settings, and say what was found and what to change")
    checking.add_argument("--json", action="store_true", help="a line of JSON each")
    checking.add_argument("--strict", action="store_true", help="fail for warnings too")


def _check(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        found = await check.check(settings)
        for finding in found:
            print(check.say(finding, as_json=options.json))
        bad = ("error", "warning") if options.strict else ("error",)
        return int(any(finding.level in bad for finding in found))

    return run(work())
