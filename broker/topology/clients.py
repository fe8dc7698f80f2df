"""Clients for commands, one for each topology."""

from redis.asyncio import Redis

from ..address import Address
from . import one
from .cluster import Cluster
from .sentinel import Leader, Sentinels


def client(address: Address, name: str, *, retries: int = 0) -> Redis:
    """A client for commands. `retries` is for one that only reads: a write whose answer was lost would run twice.

    It raises redis-py's errors (`RedisError`) and OSError, whatever the topology. With sentinels it asks them at each
    new connection who is the master. In a cluster it goes where the slot of a command's first key is.
    """
    match address.topology:
        case "sentinel":
            return one.client(address, name, retries, leader=Leader(Sentinels(address)))
        case "cluster":
            return Cluster(address, lambda host: one.client(address.at(host), name, retries))
    return one.client(address, name, retries)
