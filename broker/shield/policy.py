"""A policy, compiled once, and what it says of an action."""

from typing import Any

from ..errors import Invalid
from .actions import ALLOWED, Action, Allowed, Command, Network, Violation, Write, describe
from .commands import Commands
from .hosts import Hosts
from .paths import Paths, Resolve
from .severity import judge
from .validation import validate


class Policy:
    """A shield: asked before each action of its agent. A value: it looks nothing up and may be used by any thread."""

    def __init__(self, policy: dict[str, Any], *, home: str | None = None, resolve: Resolve | None = None) -> None:
        """`policy` is one that `validate` takes, else this raises `Invalid` as it does.

        `home`, an absolute path, is what `~` means to the agent: without it `~` is judged strictly (see `paths`).
        `resolve` follows links, as `os.path.realpath` does: with it a policy's own `/tmp` is also what it is a link to.
        It belongs together with the `resolved` of actions: who gives the one gives the other.
        """
        if home is not None and not home.startswith("/"):
            raise Invalid("home", "expected an absolute path")
        stored = validate(policy)
        self._paths = Paths(stored.get("filesystem", {}), home, resolve)
        self._commands = Commands(stored.get("commands", {}))
        self._hosts = Hosts(stored.get("network", {}))

    def check(self, action: Action) -> Allowed | Violation:
        """Whether the agent may do it.

        A blocked entry wins, then the allowed list; an empty or absent one allows. What cannot be judged is a violation
        where its section has any entry. `Violation.pattern` is the blocked entry, else the name of the allowed list
        that has none for this, or `unreadable`; a violation is what the event `shield.violation` carries. Takes time
        in proportion to the action's length and the policy's, and raises nothing, whatever the text.
        """
        match action:
            case Command(line):
                rule, finding = "command", self._commands.judge(line)
            case Network(host, port, address):
                rule, finding = "network", self._hosts.judge(host, port, address)
            case _:
                is_write = isinstance(action, Write)
                rule, finding = "filesystem", self._paths.judge(action.path, action.resolved, is_write=is_write)
        if finding is None:
            return ALLOWED
        return Violation(rule, finding.pattern, describe(action), judge(action, finding))
