"""A look at every server behind a URL, through connections of our own, that leaves nothing behind."""

import asyncio
import secrets
from collections.abc import Sequence
from ipaddress import ip_address
from time import monotonic, time
from typing import Any

import hiredis
from redis.exceptions import RedisError

from ..address import Address
from ..errors import Unavailable
from ..keyspace import TABLE, Keyspace
from ..resp import NOBODY, Connection, ask, connect
from ..script import Script
from ..topology import Host, clients
from ..topology.cluster import Map
from ..topology.sentinel import ANSWER_SECONDS, Sentinels
from ..topology.slots import SLOTS
from .facts import Clock, Facts, Latency, Server, Tried
from .permissions import attempts, judge

PINGS = 100
PUBLISHES = 20
CLOCK_READINGS = 5
# For all servers together.
LOOK_SECONDS = 60.0
# What is left of a look that was interrupted goes by itself.
LEFT_SECONDS = 60
MAX_SCANS, SCAN_KEYS = 20, 1000

_CONFIG = (
    "appendfsync",
    "save",
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "cluster-require-full-coverage",
)
_KINDS = frozenset(row.name.partition(":")[0] for row in TABLE)


async def gather(address: Address, keys: Keyspace) -> Facts:
    """The facts; that nothing answers is one of them."""
    facts = Facts(
        name=str(address),
        topology=address.topology,
        prefix=keys.prefix,
        user=address.username or "default",
        is_encrypted=address.ssl is not None,
        is_local=address.path is not None,
    )
    try:
        hosts, without_owner = await _masters(address)
        async with asyncio.timeout(LOOK_SECONDS):
            strangers: set[str] = set()
            servers, unreachable = await _look_at(address, hosts, keys, strangers)
            # Of one Redis nobody would hear of a failover.
            followers = [] if address.topology == "one" else [host for each in servers for host in _replicas(each)]
            replicas, cut_off = await _look_at(address, followers, keys)
        sentinels = await _sentinels(address) if address.topology == "sentinel" else {}
    except (Unavailable, OSError) as error:  # TimeoutError is an OSError
        return facts._replace(problem=str(error) or f"Redis has not answered within {LOOK_SECONDS:g} s")
    if not servers:
        return facts._replace(problem=unreachable[0])
    facts = facts._replace(
        is_local=facts.is_local or all(_is_local(host.name) for host in (*address.hosts, *hosts)),
        servers=tuple(servers),
        replicas=tuple(replicas),
        unreachable=(*unreachable, *cut_off),
        slots_without_owner=without_owner,
        sentinels=sentinels,
        strangers=tuple(sorted(strangers)),
    )
    try:
        return facts._replace(publish=await _publish(address, keys))
    except (RedisError, OSError) as error:
        return facts._replace(publish_problem=str(error) or type(error).__name__)


async def _masters(address: Address) -> tuple[list[Host], int]:
    """Who takes writes, and how many slots of a cluster have nobody who does."""
    match address.topology:
        case "sentinel":
            return [await Sentinels(address).master()], 0
        case "cluster":
            nodes = Map(address)
            await nodes.refresh()
            return nodes.slots.masters, sum(nodes.slots.owner(slot) is None for slot in range(SLOTS))
    return list(address.hosts), 0


async def _sentinels(address: Address) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for host in address.hosts:
        try:
            await ask(address.sentinel(host), "SENTINEL", "CKQUORUM", address.service, seconds=ANSWER_SECONDS)
        except Unavailable as error:
            found[str(host)] = str(error)
        else:
            found[str(host)] = None
    return found


async def _look_at(
    address: Address, hosts: Sequence[Host], keys: Keyspace, strangers: set[str] | None = None
) -> tuple[list[Server], list[str]]:
    """The servers, and why some of `hosts` could not be looked at.

    `strangers` takes the keys under our prefix that are none of ours; a replica's are those of its master.
    """
    servers, unreachable = [], []
    for host in hosts:
        try:
            connection, _ = await connect(address.at(host), NOBODY, "trunkline-check")
        except Unavailable as error:
            unreachable.append(str(error))
            continue
        try:
            if strangers is not None:
                strangers.update(await _strangers(connection, keys))
            servers.append(await _look(connection, address.at(host), address, keys))
        finally:
            connection.close("looked at")
    return servers, unreachable


async def _look(connection: Connection, here: Address, address: Address, keys: Keyspace) -> Server:
    """One server. It leaves the connection within a MULTI, to be closed."""
    hello: dict[bytes, Any] = (await connection.call(("HELLO", 3)))[0]
    info, *config = await connection.call(("INFO",), *(("CONFIG", "GET", name) for name in _CONFIG))
    pings, clock = await _pings(connection), await _clock(connection)
    (begun,) = await connection.call(("MULTI",))
    looks = {"+info": info, "+config|get": config[0], "+multi": begun}
    return Server(
        name=str(here),
        version=hello[b"version"].decode(),
        mode=hello[b"mode"].decode(),
        is_master=hello.get(b"role") == b"master",  # a Sentinel of 6.2 names none
        info=None if _is_error(info) else _info(info),
        config=None if any(map(_is_error, config)) else _texts(config),
        tried=None if _is_error(begun) else await _try(connection, address, keys),
        pings=pings,
        clock=clock,
        unseen={rule: str(answer) for rule, answer in looks.items() if _is_error(answer)},
    )


def _info(answer: Any) -> dict[str, str]:
    """`used_memory:1024` lines."""
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


def _replicas(server: Server) -> list[Host]:
    """Who follows it, of lines as `slave0:ip=127.0.0.1,port=6380,state=online,…`."""
    lines = [line for name, line in (server.info or {}).items() if name.startswith("slave") and "ip=" in line]
    found = [dict(part.partition("=")[::2] for part in line.split(",")) for line in lines]
    return [Host(replica["ip"], int(replica["port"])) for replica in found]


def _texts(answers: Sequence[dict[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for answer in answers for name, value in answer.items()}


def _is_error(answer: object) -> bool:
    return isinstance(answer, hiredis.ReplyError)


async def _try(connection: Connection, address: Address, keys: Keyspace) -> Tried:
    """What our user lacks, and what the server does not know. Within a MULTI: nothing of it is done."""
    tried = list(attempts(address, keys))
    answers = await connection.call(*(attempt.words for attempt in tried))
    return judge(tried, [str(answer) if _is_error(answer) else None for answer in answers], keys)


async def _pings(connection: Connection) -> Latency:
    seconds = []
    for _ in range(PINGS):
        start = monotonic()
        await connection.call(("PING",))
        seconds.append(monotonic() - start)
    return Latency.of(seconds)


async def _clock(connection: Connection) -> Clock:
    """By the reading that took the shortest time."""
    readings = []
    for _ in range(CLOCK_READINGS):
        before = time()
        (answer,) = await connection.call(("TIME",))
        after = time()
        if _is_error(answer):
            return Clock(0.0, 0.0)  # it is among the permissions that are missing
        readings.append(Clock(int(answer[0]) + int(answer[1]) / 1e6 - (before + after) / 2, (after - before) / 2))
    return min(readings, key=lambda reading: reading.doubt)


async def _strangers(connection: Connection, keys: Keyspace) -> list[str]:
    """Keys under our prefix whose kind we do not have, among the first that a scan finds."""
    found, cursor = [], b"0"
    for _ in range(MAX_SCANS):
        (answer,) = await connection.call(("SCAN", cursor, "MATCH", f"{_quoted(keys.prefix)}:*", "COUNT", SCAN_KEYS))
        if _is_error(answer):
            break
        cursor, names = answer
        found += [
            name.decode(errors="replace")
            for name in names
            if name[len(keys.prefix.encode()) + 1 :].partition(b":")[0].decode(errors="replace") not in _KINDS
        ]
        if cursor == b"0":
            break
    return found


def _quoted(prefix: str) -> str:
    """As a pattern that means itself."""
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in prefix)


async def _publish(address: Address, keys: Keyspace) -> Latency:
    """Seconds that a call of publish.lua takes, in a workspace of our own. Raises redis-py's errors."""
    workspace, seconds = f"check-{secrets.token_hex(8)}", []
    names = [keys.log(workspace), keys.workspace(workspace), keys.producer(workspace, "check")]
    names += [keys.agent(workspace, "")]
    fixed: list[Any] = [PUBLISHES, *[LEFT_SECONDS] * 3, keys.publish]
    fixed += [keys.channel(workspace), 1, keys.channel(workspace, "")]
    body = f'"type":"task.started","workspace_id":"{workspace}","task_id":"check","data":{{}}}}'
    async with clients.client(address, "trunkline-check") as redis:
        script = Script(redis, "publish")
        try:
            for number in range(PUBLISHES + 1):
                start = monotonic()
                await script.run(names, [number + 1, *fixed, 1, "0", body])
                seconds.append(monotonic() - start)
        finally:
            await redis.delete(*names)
    return Latency.of(seconds[1:])  # the first has sent the script


def _is_local(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
