"""What a look at Redis has found, as values, and what is said of it."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

from ..address import Topology

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """One line. `about` is a word for programs; `change` is the setting to change and to what, where that helps."""

    level: Level
    about: str
    text: str
    change: str | None = None


class Latency(NamedTuple):
    """Seconds that round trips took."""

    median: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        return cls(median(seconds), max(seconds))


class Clock(NamedTuple):
    """Seconds by which a clock is ahead of ours, and by how much that may be wrong."""

    ahead: float
    doubt: float


class Tried(NamedTuple):
    """The ACL rules that our user lacks, and the commands that the server does not know."""

    missing: tuple[str, ...]
    disabled: tuple[str, ...]


class Server(NamedTuple):
    """One server: the only one, a master, or a replica that may take its place.

    `info` and `config` are what INFO and CONFIG GET say, `tried` what came of trying all that we do. Where they are
    None, `unseen` says why, by the ACL rules that would let us look.
    """

    name: str
    version: str
    mode: str
    is_master: bool
    info: Mapping[str, str] | None
    config: Mapping[str, str] | None
    tried: Tried | None
    pings: Latency
    clock: Clock
    unseen: Mapping[str, str] = {}

    def number(self, name: str) -> int:
        """A number that INFO says; 0 where it says none."""
        found = (self.info or {}).get(name, "0")
        return int(found) if found.isdecimal() else 0


class Facts(NamedTuple):
    """All that is behind a URL. `servers` take writes now, `replicas` may after a failover, if they can be led to one.

    `problem` says why nothing could be looked at, `unreachable` why some of them could not, `publish_problem` why
    nothing could be published. `sentinels` are those of the URL, each with what it says against a failover, None when
    it could lead one. `strangers` are keys under our prefix that are none of ours.
    """

    name: str
    topology: Topology
    prefix: str
    user: str
    is_encrypted: bool
    is_local: bool
    problem: str | None = None
    servers: tuple[Server, ...] = ()
    replicas: tuple[Server, ...] = ()
    unreachable: tuple[str, ...] = ()
    slots_without_owner: int = 0
    sentinels: Mapping[str, str | None] = {}
    publish: Latency | None = None
    publish_problem: str | None = None
    strangers: tuple[str, ...] = ()
