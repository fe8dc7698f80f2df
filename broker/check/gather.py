"""A look at every server behind a URL, through connections of our own, that leaves nothing behind."""

import asyncio
import secrets
from collections.abc import Sequence
from ipaddress import ip_address
from time import monotonic, time
from typing import Any

import hiredis
from redis.exceptions import RedisError

from .. import address as addresses
from ..address import Address
from ..errors import Unavailable
from ..keyspace import TABLE, Keyspace
from ..resp import Connection, ask, connect
from ..script import Script
from ..topology import Host
from ..topology.cluster import Map
from ..topology.sentinel import ANSWER_SECONDS, Sentinels
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

SLOTS = 16384
_CONFIG = ("appendfsync", "save", "client-output-buffer-limit", "min-replicas-to-write")
_KINDS = frozenset(row.name.partition(":")[0] for row in TABLE)


class _Nobody:
    """Nothing is pushed to who subscribes to nothing."""

    def on_pushes(self, pushes: Sequence[list[Any]]) -> None: ...

    def on_lost(self, reason: str) -> None: ...


async def gather(address: Address, keys: Keyspace) -> Facts:
    """The facts; that nothing answers is one of them."""
    facts = Facts(
        name=str(address),
        topology=address.topology,
        prefix=keys.prefix,
        user=address.username or "default",
        is_encrypted=address.ssl is not None,
        is_local=address.path is not None or all(_is_local(host.name) for host in address.hosts),
    )
    try:
        hosts, without_owner = await _masters(address)
        async with asyncio.timeout(LOOK_SECONDS):
            found = [await _look(address, host, keys) for host in hosts]
        sentinels = await _sentinels(address) if address.topology == "sentinel" else {}
    except (Unavailable, OSError) as error:  # TimeoutError is an OSError
        return facts._replace(problem=str(error) or f"Redis has not answered within {LOOK_SECONDS:g} s")
    strangers = tuple(sorted({name for _, names in found for name in names}))
    facts = facts._replace(
        servers=tuple(server for server, _ in found),
        slots_without_owner=without_owner,
        sentinels=sentinels,
        strangers=strangers,
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


async def _look(address: Address, host: Host, keys: Keyspace) -> tuple[Server, list[str]]:
    """One server, and the keys under our prefix that are none of ours."""
    connection, _ = await connect(address.at(host), _Nobody(), "trunkline-check")
    try:
        hello: dict[bytes, Any] = (await connection.call(("HELLO", 3)))[0]
        config = await connection.call(*(("CONFIG", "GET", name) for name in _CONFIG))
        server = Server(
            name=str(address.at(host)),
            version=hello[b"version"].decode(),
            mode=hello[b"mode"].decode(),
            is_master=hello.get(b"role") == b"master",  # a Sentinel of 6.2 names none
            info=_info((await connection.call(("INFO",)))[0]),
            config=None if any(map(_is_error, config)) else _texts(config),
            tried=await _try(connection, address, keys),
            pings=await _pings(connection),
            clock=await _clock(connection),
        )
        return server, await _strangers(connection, keys)
    finally:
        connection.close("looked at")


def _info(answer: Any) -> dict[str, str] | None:
    """`used_memory:1024` lines."""
    if _is_error(answer):
        return None
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


def _texts(answers: Sequence[dict[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for answer in answers for name, value in answer.items()}


def _is_error(answer: object) -> bool:
    return isinstance(answer, hiredis.ReplyError)


async def _try(connection: Connection, address: Address, keys: Keyspace) -> Tried | None:
    """What our user lacks, and what the server does not know; None when that cannot be tried. Nothing of it is done."""
    (begun,) = await connection.call(("MULTI",))
    if _is_error(begun):
        return None  # each would be done
    tried = list(attempts(address, keys))
    *answers, _ = await connection.call(*(attempt.words for attempt in tried), ("DISCARD",))
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
    async with addresses.client(address, "trunkline-check") as redis:
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
