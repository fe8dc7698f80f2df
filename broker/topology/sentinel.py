"""Sentinel: who is the master now.

A connection asks when it is made, and believes no server that says it is a replica. One that was made to another master
before is made anew before its next command, as soon as any connection of its client has found the present one. A master
that was demoted answers writes with READONLY: to whoever wrote, that is a lost connection.
"""

from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from ..errors import Unavailable
from ..resp import ask
from . import Host

if TYPE_CHECKING:
    from ..address import Address

# A sentinel that is not there must not keep us from the others.
ANSWER_SECONDS = 1.0


class Sentinels:
    """The sentinels of one service."""

    def __init__(self, address: "Address") -> None:
        self._address = address
        self._hosts = list(address.hosts)

    async def master(self) -> Host:
        """The master, as the first sentinel says that answers. Raises `Unavailable` when none names one."""
        problem = "no sentinel knows a master of this name"
        for host in list(self._hosts):
            # Should whoever waits give up, or this one not answer, the next one is asked first next time.
            self._hosts = [*(other for other in self._hosts if other != host), host]
            command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
            try:
                found: Any = await ask(self._address.sentinel(host), *command, seconds=ANSWER_SECONDS)
            except Unavailable as error:
                problem = str(error)
                continue
            if found is not None:
                return Host(found[0].decode(), int(found[1]))
        raise Unavailable(f"cannot find the master, {self._address}: {problem}")


class Leader:
    """The master to which one client's connections go."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self.found: Host | None = None

    async def find(self) -> Host:
        """Ask anew. Raises `Unavailable`."""
        self.found = await self._sentinels.master()
        return self.found


class Led(Connection):
    """A connection to the master that a leader finds."""

    def __init__(self, *, leader: Leader, **options: Any) -> None:
        super().__init__(**options)
        self._leader = leader

    async def connect(self) -> None:
        """Before each command: redis-py's pool sees to it."""
        if self.is_connected and self._leader.found != (self.host, self.port):
            await self.disconnect()
        await super().connect()  # type: ignore[no-untyped-call]

    async def _connect(self) -> None:
        try:
            self.host, self.port = await self._leader.find()
        except Unavailable as error:
            raise RedisConnectionError(str(error)) from error
        await super()._connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE", check_health=False)
        if (await self.read_response())[0] != b"master":
            raise RedisConnectionError("the sentinels name a master that is a replica")

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            # Redis 6.2 has the word inside, when a script is refused.
            if not isinstance(error, ReadOnlyError) and "READONLY" not in str(error):
                raise
            await self.disconnect()
            raise RedisConnectionError("the master is a replica now") from error
