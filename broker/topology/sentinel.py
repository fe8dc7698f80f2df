"""Sentinel: who is the master now.

A connection asks when it is made, and believes no server that says it is a replica. One that was made to another master
before is made anew before its next command, as soon as any connection of its client has found the present one; every
`LOOK_SECONDS` one of them asks for that. A master that was demoted answers writes with READONLY: to whoever wrote, that
is a lost connection.
"""

from contextlib import suppress
from time import monotonic
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from ..address import Address
from ..errors import Unavailable
from ..resp import ask_all
from . import Host
from .peers import SILENT_SECONDS, Peers

# A sentinel that is not there must not keep us from the others.
ANSWER_SECONDS = 1.0
LOOK_SECONDS = 3.0


class Sentinels:
    """The sentinels of one service."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sentinels = Peers(address.hosts)

    async def master(self) -> Host:
        """The master, as the first sentinel says that can be believed. Raises `Unavailable` when none names one."""
        try:
            return await self._sentinels.ask(self._ask)
        except Unavailable as error:
            raise Unavailable(f"cannot find the master, {self._address}: {error}") from error

    async def _ask(self, host: Host) -> tuple[int, Host]:
        service = self._address.service
        # During a failover the first names the new master earlier. The second says as of which epoch that is.
        questions = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service)
        found, known = await ask_all(self._address.sentinel(host), *questions, seconds=ANSWER_SECONDS)
        return int(known[b"config-epoch"]), Host(found[0].decode(), int(found[1]))


class Leader:
    """The master to which one client's connections go."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self._look_at = 0.0
        self.found: Host | None = None

    async def find(self) -> Host:
        """Ask anew. Raises `Unavailable`."""
        self._look_at = monotonic() + SILENT_SECONDS  # unless somebody answers: whoever asks waits for it
        self.found = await self._sentinels.master()
        self._look_at = monotonic() + LOOK_SECONDS
        return self.found

    async def look_again(self) -> None:
        """Ask anew after a while: a master that is cut off does not know that it is none any more."""
        if monotonic() >= self._look_at:
            with suppress(Unavailable):
                await self.find()


class Led(Connection):
    """A connection to the master that a leader finds."""

    def __init__(self, *, leader: Leader, **options: Any) -> None:
        super().__init__(**options)
        self._leader = leader

    async def connect(self) -> None:
        """Before each command: redis-py's pool sees to it."""
        if self.is_connected:
            await self._leader.look_again()
            if self._leader.found != (self.host, self.port):
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
