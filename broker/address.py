"""Where Redis is: one URL, read once, for the client of commands and for the feed's own socket."""

import ssl
from typing import Any, NamedTuple

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from .errors import Invalid

# A command that is not answered in this time has failed; the ones that write are then repeated under their number.
COMMAND_SECONDS = 5.0
CONNECT_SECONDS = 5.0
POOL_CONNECTIONS = 64


_PARTS = {"host", "port", "path", "db", "username", "password", "connection_class"}


class Address(NamedTuple):
    """The parts of a `redis://`, `rediss://` or `unix://` URL."""

    url: str
    host: str
    port: int
    path: str | None
    username: str | None
    password: str | None
    database: int
    ssl: ssl.SSLContext | None

    def __str__(self) -> str:
        """For people and logs: without user and password."""
        return self.path or f"{self.host}:{self.port}"


def read(url: str) -> Address:
    """Read a Redis URL. Raises `Invalid`, never with the password in its words."""
    scheme, _, _ = url.partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        raise Invalid("redis_url", "expected redis://, rediss:// or unix://, got another scheme")
    try:
        parts: dict[str, Any] = dict(parse_url(url))
    except (ValueError, TypeError):
        # Its own words may hold the URL, and that a password.
        raise Invalid("redis_url", "not a Redis URL, as redis://[user:password@]host:6379/0") from None
    if unknown := {name for name in parts if name not in _PARTS and not name.startswith("ssl_")}:
        raise Invalid("redis_url", f"no option {min(unknown)!r}; there are db and those of TLS (ssl_…)")
    return Address(
        url=url,
        host=parts.get("host") or "localhost",
        port=int(parts.get("port") or 6379),
        path=parts.get("path"),
        username=parts.get("username"),
        password=parts.get("password"),
        database=int(parts.get("db") or 0),
        ssl=_context(parts) if scheme == "rediss" else None,
    )


def client(address: Address, name: str, *, retries: int = 0) -> Redis:
    """A client for commands. `retries` is for one that only reads: a write whose answer was lost would run twice."""
    pool = BlockingConnectionPool.from_url(
        address.url,
        protocol=2,  # with 3 it asks each connection for notifications that are not for us
        client_name=name,
        retry=Retry(ConstantBackoff(0.05), retries),
        retry_on_error=[],
        socket_timeout=COMMAND_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_keepalive=True,
        health_check_interval=0,
        max_connections=POOL_CONNECTIONS,
        timeout=COMMAND_SECONDS,
    )
    pool.connection_class = type("Connection", (_SaysLost, pool.connection_class), {})
    return Redis.from_pool(pool)


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


def _context(parts: dict[str, Any]) -> ssl.SSLContext:
    """The same choices that redis-py reads from the query of a rediss:// URL."""
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"), capath=parts.get("ssl_ca_path"))
    if parts.get("ssl_certfile"):
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    if str(parts.get("ssl_check_hostname", "true")).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if parts.get("ssl_cert_reqs") in ("none", "optional"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE if parts["ssl_cert_reqs"] == "none" else ssl.CERT_OPTIONAL
    return context
