"""Routes: which servers a feed has to follow, and which of them has a workspace."""

from typing import NamedTuple, Protocol

from ..address import Address
from ..errors import Unavailable
from ..keyspace import Keyspace
from ..resp import ask
from . import Host
from .cluster import Map
from .sentinel import ANSWER_SECONDS, Sentinels
from .slots import redirection, slot_of


class Words(NamedTuple):
    """How channels are subscribed, and what Redis pushes."""

    subscribe: str
    unsubscribe: str
    message: bytes
    unsubscribed: bytes


WHOLE = Words("SUBSCRIBE", "UNSUBSCRIBE", b"message", b"unsubscribe")
SHARDED = Words("SSUBSCRIBE", "SUNSUBSCRIBE", b"smessage", b"sunsubscribe")


class Route(Protocol):
    """Where a workspace is heard. `servers` and `server` tell what the last `look` found."""

    words: Words
    servers: dict[Host, Address]

    @property
    def version(self) -> int:
        """Grows when a workspace may have another server."""

    async def look(self) -> None:
        """Find out anew. Raises `Unavailable`; then all stays as it was."""

    def server(self, workspace: str) -> Host | None:
        """Who has the workspace; None while that is not known."""

    def hear(self, refusal: str, server: Host) -> None:
        """The server refused something: perhaps it says who has what was asked for."""


class Fixed:
    """One Redis: where the URL says."""

    words = WHOLE
    version = 0

    def __init__(self, address: Address) -> None:
        self.servers = {address.hosts[0]: address}

    async def look(self) -> None: ...

    def server(self, workspace: str) -> Host | None:
        return next(iter(self.servers))

    def hear(self, refusal: str, server: Host) -> None: ...


class Led:
    """Behind sentinels: the master that they name and that says it is one."""

    words = WHOLE

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sentinels = Sentinels(address)
        self.servers: dict[Host, Address] = {}
        self.version = 0

    async def look(self) -> None:
        host = await self._sentinels.master()
        master = self._address.at(host)
        if (await ask(master, "ROLE", seconds=ANSWER_SECONDS))[0] != b"master":
            raise Unavailable(f"the sentinels name a master that is a replica: {host}")
        if host not in self.servers:
            self.servers = {host: master}
            self.version += 1

    def server(self, workspace: str) -> Host | None:
        return next(iter(self.servers), None)

    def hear(self, refusal: str, server: Host) -> None: ...


class Sharded:
    """A cluster: each workspace at the master that has its slot."""

    words = SHARDED

    def __init__(self, address: Address, keys: Keyspace) -> None:
        self._address = address
        self._keys = keys
        self._map = Map(address)
        self.servers: dict[Host, Address] = {}

    @property
    def version(self) -> int:
        return self._map.slots.version

    async def look(self) -> None:
        await self._map.refresh()
        self._take()

    def server(self, workspace: str) -> Host | None:
        return self._map.slots.owner(slot_of(self._keys.channel(workspace)))

    def hear(self, refusal: str, server: Host) -> None:
        if refusal.startswith("MOVED "):
            self._map.move(*redirection(refusal, server))
            self._take()

    def _take(self) -> None:
        self.servers = {host: self._address.at(host) for host in self._map.slots.masters}


def route(address: Address, keys: Keyspace) -> Route:
    """The route of an address."""
    match address.topology:
        case "sentinel":
            return Led(address)
        case "cluster":
            return Sharded(address, keys)
    return Fixed(address)
