"""What connections and agents hold in Redis, and whether anybody still holds it when all of them have gone."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from broker import Broker

from ..agnt5_chaos_worker import ENDPOINT
from .words import WORKSPACES

LEASE_MS = 45_000  # of a connection, unless it is renewed
DIALECTS = ("maxicore", "freeagentics")  # where users are counted


class Held(NamedTuple):
    """What is held now."""

    renewed: int  # leases of connections that were taken or renewed when all was well, and should be given back
    dead: int  # leases that wait for their end: their node was killed, or a fault kept Redis from hearing of it
    present: int  # agents


async def held(broker: Broker, users: Iterable[str], well_ms: float) -> Held:
    """`well_ms`, by Redis' clock: when all faults were over. What they left behind ends a lease's length later at the
    latest: the leases of nodes that were killed or found no Redis when they left, those that a failover brought back,
    and those of calls that stood in a link or a Redis that stood still, and were carried out behind the release."""
    holders = [f"agnt5:endpoint:{ENDPOINT}"]
    for dialect in DIALECTS:
        holders += [f"{dialect}:address:127.0.0.1", *(f"{dialect}:user:{user}" for user in users)]
    ends: list[float] = []
    for holder in holders:
        leases: Any = await broker.redis.zrange(broker.keys.connections(holder), 0, -1, withscores=True)
        ends += [end for _, end in leases]
    now = await redis_ms(broker)
    alive = [end for end in ends if end > now]
    renewed = sum(end > well_ms + LEASE_MS for end in alive)
    present = 0
    for workspace in WORKSPACES:
        present += await broker.redis.zcount(broker.keys.presence(workspace), now, "+inf")
    return Held(renewed, len(alive) - renewed, present)


async def newest(broker: Broker, users: Iterable[str]) -> dict[str, bytes]:
    """The lease of each user's newest connection, by its key: who is killed renews none."""
    keys = [broker.keys.connections(f"{dialect}:user:{user}") for user in users for dialect in DIALECTS]
    found: dict[str, Any] = {key: await broker.redis.zrange(key, -1, -1) for key in keys}
    return {key: leases[0] for key, leases in found.items() if leases}


async def kept(broker: Broker, before: Mapping[str, bytes], now: Mapping[str, bytes]) -> list[str]:
    """The keys whose newest lease is another by now, and that have the one before still."""
    moved = [(key, lease) for key, lease in before.items() if now.get(key) != lease]
    return [key for key, lease in moved if await broker.redis.zscore(key, lease) is not None]


async def redis_ms(broker: Broker) -> float:
    """Redis' own time."""
    seconds, microseconds = await broker.redis.time()
    return float(seconds) * 1000 + float(microseconds) / 1000
