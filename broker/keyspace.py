"""Every key and channel in Redis, in one place: name, type, lifetime, writer.

All names begin with a configurable prefix. The workspace stands in braces, so that all keys and channels of one
workspace share a Cluster slot and a script may touch them together.
"""

from typing import NamedTuple

from .errors import Invalid

# How long a producer's record, and so its protection against doubling, outlives its last call.
PRODUCER_SECONDS = 24 * 3600
# How long positions of a workspace and of an agent are remembered after their last event.
STATE_SECONDS = 7 * 24 * 3600

_MAX_ID_CHARACTERS = 255


class Row(NamedTuple):
    """One kind of key or channel, for the README's table."""

    name: str
    type: str
    lifetime: str
    writer: str
    holds: str


TABLE = (
    Row("log:{workspace}", "stream", "`log_seconds` after the last event", "publish.lua",
        "the durable events: field `e` is an event's JSON without `{` and `id`; at most `log_events`"),
    Row("workspace:{workspace}", "hash", "7 days after the last event", "publish.lua",
        "`position` of its newest durable event"),
    Row("agent:{workspace}:<agent>", "hash", "7 days after the last event", "publish.lua",
        "`position` of its newest durable event, `last_activity` (ms), `credits_used`; empty name: no agent"),
    Row("producer:{workspace}:<producer>", "hash", "24 h after its last call", "publish.lua",
        "`number` of its last call and the `answer` to it"),
    Row("events:{workspace}", "channel", "", "publish.lua, PUBLISH by anyone", "every event of the workspace"),
    Row("events:{workspace}:<agent>", "channel", "", "publish.lua, PUBLISH by anyone",
        "the events of one agent; the empty name: those without an agent"),
)  # fmt: skip


class Keyspace:
    """The names under one prefix. Ids are checked where they enter (`check_id`), not here."""

    __slots__ = ("prefix",)

    def __init__(self, prefix: str) -> None:
        if not prefix or any(character in prefix for character in "{} \n\r\t"):
            raise Invalid("prefix", "expected some characters, none of them a brace or a space")
        self.prefix = prefix

    def log(self, workspace: str) -> str:
        return f"{self.prefix}:log:{{{workspace}}}"

    def workspace(self, workspace: str) -> str:
        return f"{self.prefix}:workspace:{{{workspace}}}"

    def agent(self, workspace: str, agent: str | None) -> str:
        return f"{self.prefix}:agent:{{{workspace}}}:{agent or ''}"

    def producer(self, workspace: str, producer: str) -> str:
        return f"{self.prefix}:producer:{{{workspace}}}:{producer}"

    def channel(self, workspace: str, agent: str | None = None) -> str:
        """The channel of a whole workspace, or of one agent of it (`""`: of events without an agent)."""
        whole = f"{self.prefix}:events:{{{workspace}}}"
        return whole if agent is None else f"{whole}:{agent}"

    def head(self, workspace: str, agent: str | None = None) -> str:
        """The hash whose `position` is the newest of what the channel of the same arguments carries."""
        return self.workspace(workspace) if agent is None else self.agent(workspace, agent)


def check_id(value: object, path: str) -> str:
    """An id of a workspace, agent or subject: 1 to 255 printable characters. Raises `Invalid` with `path`."""
    if not isinstance(value, str):
        raise Invalid(path, f"expected str, got {type(value).__name__}")
    if not 1 <= len(value) <= _MAX_ID_CHARACTERS or not value.isprintable():
        raise Invalid(path, "expected 1 to 255 printable characters")
    return value


def check_workspace(value: object, path: str) -> str:
    """A workspace's id: no braces besides, since Redis Cluster reads them in key names."""
    name = check_id(value, path)
    if "{" in name or "}" in name:
        raise Invalid(path, "expected a workspace id without braces")
    return name
