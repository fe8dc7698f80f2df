"""Shields: what an agent may do, as a policy, and whether it may do this.

    shield = Policy({"filesystem": {"blocked_paths": ["/root"]}}, home="/home/agent", resolve=os.path.realpath)
    shield.check(Read(path, os.path.realpath(path)))      # ALLOWED
    shield.check(Command("git status && rm -rf /"))       # or a Violation, to be published

Pure: text in, verdict out. `validation` says what a policy may hold, `paths`, `commands` (with `shell` and `wrapped`)
and `hosts` what each of its sections covers and what it does not, `folding` what is the same text, `severity` how bad
it is. A shield stops what it is asked about; it is no sandbox, and what is not asked must be held by one.
"""

from .actions import ALLOWED, Action, Allowed, Command, Execute, Network, Read, Violation, Write
from .paths import Resolve
from .policy import Policy
from .validation import validate

__all__ = [
    "ALLOWED",
    "Action",
    "Allowed",
    "Command",
    "Execute",
    "Network",
    "Policy",
    "Read",
    "Resolve",
    "Violation",
    "Write",
    "validate",
]
