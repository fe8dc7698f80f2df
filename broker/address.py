"""Where Redis is: one URL, read once, for the clients of commands and for the feed's own sockets.

    redis://[user:password@]host:6379/0                               one Redis; rediss:// with TLS
    unix://[user:password@]/path/of/the.sock?db=0                     one Redis on this machine
    redis+sentinel://[user:password@]host:26379,host/service[/0]      the master that sentinels name; rediss+sentinel://
    redis+cluster://[user:password@]host:6379,host                    a cluster, by some of its nodes; rediss+cluster://

User and password are Redis' own. Sentinels that want any get them as the options `sentinel_username` and
`sentinel_password`; that user needs +hello, +sentinel|get-master-addr-by-name and +sentinel|master.
"""

import ssl
from typing import Any, Literal, NamedTuple

from redis.asyncio.connection import parse_url

from .errors import Invalid
from .topology import Host

Topology = Literal["one", "sentinel", "cluster"]

_SENTINEL_PORT, _PORT = 26379, 6379
_PARTS = {"host", "port", "path", "db", "username", "password", "connection_class"}
_OF_SENTINELS = {"sentinel_username", "sentinel_password"}


class Address(NamedTuple):
    """What a URL says. `hosts` are the one Redis, or the sentinels of `service`, or some nodes of a cluster."""

    url: str
    topology: Topology
    hosts: tuple[Host, ...]
    path: str | None
    username: str | None
    password: str | None
    database: int
    ssl: ssl.SSLContext | None
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __str__(self) -> str:
        """For people and logs: without users and passwords."""
        hosts = ", ".join(map(str, self.hosts))
        match self.topology:
            case "sentinel":
                return f"{self.service} of the sentinels {hosts}"
            case "cluster":
                return f"the cluster of {hosts}"
        return self.path or hosts

    @property
    def is_cluster(self) -> bool:
        return self.topology == "cluster"

    def at(self, host: Host) -> "Address":
        """One server of these, as a Redis by itself."""
        return self._replace(topology="one", hosts=(host,))

    def sentinel(self, host: Host) -> "Address":
        """One of the sentinels."""
        return self.at(host)._replace(
            username=self.sentinel_username, password=self.sentinel_password, database=0, path=None
        )


def read(url: str) -> Address:
    """Read a Redis URL. Raises `Invalid`, never with the password in its words."""
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if base not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster") or (base == "unix" and kind):
        schemes = "redis://, rediss:// or unix://, redis+sentinel:// or redis+cluster://"
        raise Invalid("redis_url", f"expected {schemes}, got another scheme")
    if not kind:
        parts = _parts(url, _PARTS)
        return _address(url, "one", [parts], base == "rediss", _PORT)
    where, question, query = rest.partition("?")
    servers, _, path = where.partition("/")
    login, at, names = servers.rpartition("@")
    if kind == "cluster":
        if path not in ("", "0"):
            raise Invalid("redis_url", "a cluster has one database: leave out what follows the nodes")
        known, service, database = _PARTS, "", ""
    else:
        known = _PARTS | _OF_SENTINELS
        service, _, database = path.partition("/")
        if not service:
            example = "as redis+sentinel://host:26379,host:26379/mymaster"
            raise Invalid("redis_url", f"expected the name of the master behind the sentinels, {example}")
    found = [_parts(f"{base}://{login}{at}{name}/{database}{question}{query}", known) for name in names.split(",")]
    if any("host" not in parts for parts in found):
        raise Invalid("redis_url", f"expected a host between commas, as redis+{kind}://host,host")
    if kind == "cluster" and found[0].get("db"):
        raise Invalid("redis_url", "a cluster has one database: leave out db")
    if kind == "cluster":
        return _address(url, "cluster", found, base == "rediss", _PORT)
    return _address(url, "sentinel", found, base == "rediss", _SENTINEL_PORT)._replace(
        service=service,
        sentinel_username=found[0].get("sentinel_username"),
        sentinel_password=found[0].get("sentinel_password"),
    )


def _parts(url: str, known: set[str]) -> dict[str, Any]:
    """What redis-py reads from the URL of one server. Raises `Invalid`."""
    try:
        parts: dict[str, Any] = dict(parse_url(url))
    except (ValueError, TypeError):
        # Its own words may hold the URL, and that a password.
        raise Invalid("redis_url", "not a Redis URL, as redis://[user:password@]host:6379/0") from None
    if unknown := {name for name in parts if name not in known and not name.startswith("ssl_")}:
        options = "db" if known is _PARTS else "db, sentinel_username, sentinel_password"
        raise Invalid("redis_url", f"no option {min(unknown)!r}; there are {options} and those of TLS (ssl_…)")
    return parts


def _address(url: str, topology: Topology, found: list[dict[str, Any]], is_secret: bool, port: int) -> Address:
    first = found[0]
    return Address(
        url=url,
        topology=topology,
        hosts=tuple(Host(parts.get("host") or "localhost", int(parts.get("port") or port)) for parts in found),
        path=first.get("path"),
        username=first.get("username"),
        password=first.get("password"),
        database=int(first.get("db") or 0),
        ssl=_context(first) if is_secret else None,
    )


def _context(parts: dict[str, Any]) -> ssl.SSLContext:
    """TLS as the query of a URL says, by the names that redis-py gives its options."""
    try:
        context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"), capath=parts.get("ssl_ca_path"))
        if parts.get("ssl_certfile"):
            context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    except OSError as error:
        reason = f"a file of ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be used: {error.strerror or error}"
        raise Invalid("redis_url", reason) from error
    if str(parts.get("ssl_check_hostname", "true")).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if parts.get("ssl_cert_reqs") in ("none", "optional"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE if parts["ssl_cert_reqs"] == "none" else ssl.CERT_OPTIONAL
    return context
