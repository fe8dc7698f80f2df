"""Connections to one server: one Redis, the master that sentinels name, or a node of a cluster."""

from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from ..address import Address
from .sentinel import Leader, Led

# A command that is not answered in this time has failed; the ones that write are then repeated under their number.
COMMAND_SECONDS = 5.0
CONNECT_SECONDS = 5.0
POOL_CONNECTIONS = 64


def client(address: Address, name: str, retries: int, *, leader: Leader | None = None) -> Redis:
    """A client of the server at `address`, or with a `leader` of whoever that finds to be the master."""
    pool = BlockingConnectionPool(
        **_place(address, leader),
        username=address.username,
        password=address.password,
        db=address.database,
        protocol=2,  # with 3 it asks each connection for notifications that are not for us
        client_name=name,
        retry=Retry(ConstantBackoff(0.05), retries),
        retry_on_error=[],
        socket_timeout=COMMAND_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=0,
        max_connections=POOL_CONNECTIONS,
        timeout=COMMAND_SECONDS,
    )
    return Redis.from_pool(pool)


def _place(address: Address, leader: Leader | None) -> dict[str, Any]:
    if address.path:
        return {"connection_class": _Local, "path": address.path}
    host, port = address.hosts[0]
    place = {"host": host, "port": port, "socket_keepalive": True, "tls": address.ssl}
    if leader is None:
        return place | {"connection_class": _Remote}
    return place | {"connection_class": _Leading, "leader": leader}


class _SaysLost:
    """A connection of redis-py that fails as such when it was closed before a write.

    uvloop calls that a `RuntimeError`, and redis-py lets it through: to whoever waits out an outage it would be a bug.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:
            if "handler is closed" not in str(error):
                raise
            raise RedisConnectionError("the connection was closed") from error


class _Local(_SaysLost, UnixDomainSocketConnection):
    """Over a Unix socket."""


class _Remote(_SaysLost, Connection):
    """Over TCP; with TLS by the context that the feed's own sockets use too."""

    def __init__(self, *, tls: Any, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), **({"ssl": self._tls} if self._tls else {})}


class _Leading(Led, _Remote):
    """To the master that sentinels name."""
