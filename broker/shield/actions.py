"""What an agent may be about to do, and what its shield says to that, as values."""

import msgspec

from ..catalog import Violation

__all__ = ["ALLOWED", "Action", "Allowed", "Command", "Execute", "Network", "Read", "Violation", "Write", "describe"]

_MAX_CHARACTERS = 1000


class _OnPath(msgspec.Struct, frozen=True):
    """`path` is absolute or begins with `~`, spelled in any way; `resolved` is the same file without links in it.

    Whoever can, gives `os.path.realpath(path)` as `resolved`: both are judged then, and a link leads nowhere.
    """

    path: str
    resolved: str | None = None


class Read(_OnPath, frozen=True):
    """Read or list what is at a path."""


class Write(_OnPath, frozen=True):
    """Make, change, move or remove what is at a path, and all below it."""


class Execute(_OnPath, frozen=True):
    """Run the program at a path. Its arguments are a `Command`'s."""


class Command(msgspec.Struct, frozen=True):
    """Give a line to a shell, or with a tuple start a program without one: `Command(("rm", "-rf", "/data"))`."""

    line: str | tuple[str, ...]


class Network(msgspec.Struct, frozen=True):
    """Connect to a host: its name or address, not a URL. Without `port`, any port may be meant.

    Whoever has looked up the name gives the `address` that is connected to: both are judged then.
    """

    host: str
    port: int | None = None
    address: str | None = None


Action = Read | Write | Execute | Command | Network


class Allowed(msgspec.Struct, frozen=True):
    """It may be done. What may not be is a `Violation`."""


ALLOWED = Allowed()


def describe(action: Action) -> str:
    """An action in one line for people, cut at 1,000 characters: `rm -rf /`, `read /etc/passwd`, `connect to a:22`."""
    match action:
        case Command(line):
            words = line if isinstance(line, str) else " ".join(line)
        case Network(host, None):
            words = f"connect to {host}"
        case Network(host, port):
            words = f"connect to {host}:{port}"
        case _:
            words = f"{type(action).__name__.lower()} {action.path}"
    return words[:_MAX_CHARACTERS].encode(errors="replace").decode()
