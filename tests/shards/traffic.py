"""What a node's feed received from Redis: the kernel counts the bytes of each connection, Redis knows its name."""

import asyncio
import re
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psutil

from broker import Broker

from ..support import Node
from ..topologies import Server

FEED = "trunkline-feed"
MAX_FOR_A_BYTE = 1.5

# `ss`, a connection a line: … 127.0.0.1:<its own port> 127.0.0.1:<the server's port> … bytes_received:<number> …
_LINE = re.compile(r"127\.0\.0\.1:(\d+) +127\.0\.0\.1:(\d+) .*\bbytes_received:(\d+)")
# How a message on a channel begins, before what the log keeps of it.
_OPENING = '{"id":"",'


class Traffic(NamedTuple):
    """Bytes. `received` by the feed in all, `own` of the messages that its clients want, `every` of all messages."""

    node: str
    received: int
    own: int
    every: int

    @property
    def is_its_own(self) -> bool:
        """Only what its clients want, with what Redis and the feed say around it."""
        return self.received <= MAX_FOR_A_BYTE * self.own


def received(node: Node, servers: Iterable[Server]) -> int:
    """What the node's feed has received so far over the connections that it has now."""
    feeds = {port for server in servers if server.role == "master" for port in _feeds(server)}
    connections = psutil.Process(node.pid).net_connections("tcp")
    own = {connection.laddr.port for connection in connections if connection.laddr} & feeds
    told = subprocess.run(["ss", "-tinHO", "state", "established"], capture_output=True, text=True, check=True).stdout
    return sum(int(amount) for port, _, amount in _LINE.findall(told) if int(port) in own)


def _feeds(server: Server) -> set[int]:
    """The ports from which feeds are connected."""
    return {int(one["addr"].rpartition(":")[2]) for one in server.ask("CLIENT LIST") if one["name"] == FEED}


async def messages(broker: Broker, workspaces: Sequence[str], since: float, until: float) -> int:
    """Bytes of the messages that were published in these workspaces between two moments."""
    bounds = int(since * 1000), int(until * 1000)
    logs: list[Any] = await asyncio.gather(
        *(broker.redis.xrange(broker.keys.log(name), *bounds) for name in workspaces)
    )
    return sum(len(_OPENING) + len(position) + len(fields[b"e"]) for log in logs for position, fields in log)
