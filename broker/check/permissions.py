"""What Trunkline does in Redis, so that it can be tried what its user may not.

Each command is queued in a MULTI that never ends: Redis checks permissions when it queues, so nothing happens. It
works for any user and any version, where ACL DRYRUN needs Redis 7 and a user who may administer users.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..address import Address
from ..keyspace import TABLE, Keyspace
from .facts import Tried

_SAMPLE = "trunkline-check"

# Commands on one key, by what stands behind the key.
_ON_A_KEY: dict[str, tuple[str, ...]] = {
    "DEL": (), "EXISTS": (), "EXPIRE": ("1",), "GET": (), "HDEL": ("f",), "HEXISTS": ("f",), "HGET": ("f",),
    "HGETALL": (), "HINCRBY": ("f", "1"), "HMGET": ("f",), "HSET": ("f", "v"), "HSETNX": ("f", "v"), "HVALS": (),
    "INCR": (), "MGET": (), "PERSIST": (), "PEXPIRE": ("1",), "PTTL": (), "RENAME": ("{key}",), "SADD": ("m",),
    "SET": ("v",), "SMEMBERS": (), "SREM": ("m",), "UNLINK": (), "XACK": ("g", "1-1"), "XADD": ("*", "f", "v"),
    "XCLAIM": ("g", "c", "1", "1-1"), "XDEL": ("1-1",), "XLEN": (), "XPENDING": ("g",), "XRANGE": ("-", "+"),
    "XREVRANGE": ("+", "-"), "XTRIM": ("MAXLEN", "1"), "ZADD": ("1", "m"), "ZCARD": (), "ZCOUNT": ("1", "1"),
    "ZRANGE": ("0", "0"), "ZRANGEBYSCORE": ("1", "1"), "ZREM": ("m",), "ZREMRANGEBYRANK": ("0", "0"),
    "ZREMRANGEBYSCORE": ("1", "1"), "ZREVRANGE": ("0", "0"), "ZSCORE": ("m",),
}  # fmt: skip


class Attempt(NamedTuple):
    """A command to try, and the rule that allows it."""

    words: tuple[str, ...]
    rule: str


def attempts(address: Address, keys: Keyspace) -> Iterator[Attempt]:
    """Everything that is done with the Redis at `address`, but for what no rule can forbid (AUTH, HELLO)."""
    log, channel = keys.log(_SAMPLE), keys.channel(_SAMPLE)
    for name, rest in _ON_A_KEY.items():
        yield _attempt(name, log, *(word.format(key=log) for word in rest))
    yield _attempt("XGROUP", "CREATE", log, "g", "$")
    yield _attempt("XINFO", "GROUPS", log)
    yield _attempt("XREAD", "STREAMS", log, "$")
    yield _attempt("XREADGROUP", "GROUP", "g", "c", "STREAMS", log, ">")
    yield _attempt("EVALSHA", "0" * 40, "1", log)
    yield _attempt("EVAL", "return 1", "1", log)
    for name in ("PING", "TIME"):
        yield _attempt(name)
    yield _attempt("WAIT", "0", "0")
    yield _attempt("SCAN", "0")
    yield Attempt(("CLIENT", "SETNAME", "trunkline-check"), "+client|setname")
    sharded = "S" if keys.is_sharded else ""
    yield _attempt(f"{sharded}PUBLISH", channel, "")
    yield _attempt(f"{sharded}SUBSCRIBE", channel)
    yield _attempt(f"{sharded}UNSUBSCRIBE", channel)
    if address.database:
        yield _attempt("SELECT", str(address.database))
    if address.topology == "sentinel":
        yield _attempt("ROLE")
    if address.topology == "cluster":
        yield _attempt("ASKING")
        yield Attempt(("CLUSTER", "SLOTS"), "+cluster|slots")
        yield Attempt(("CLUSTER", "INFO"), "+cluster|info")
    # A rule may name kinds of keys one by one: each is tried, for reading and writing.
    for row in TABLE:
        if row.type != "channel":
            name = f"{keys.prefix}:{re.sub('<[a-z]+>', _SAMPLE, row.name)}"
            yield _attempt("EXISTS", name)
            yield _attempt("EXPIRE", name, "1")


def _attempt(*words: str) -> Attempt:
    return Attempt(words, f"+{words[0].lower()}")


def judge(tried: Sequence[Attempt], answers: Sequence[str | None], keys: Keyspace) -> Tried:
    """The rules that are missing, in the order of `tried`, and the commands that the server does not know.

    `answers` are the errors, None for a command that was queued. Errors that say nothing of permissions (a slot that is
    elsewhere, full memory) come after it has been granted.
    """
    missing: dict[str, None] = {}
    disabled: dict[str, None] = {}
    for attempt, answer in zip(tried, answers, strict=True):
        words = (answer or "").lower()
        if "unknown command" in words:
            disabled[attempt.words[0].lower()] = None
        elif not words.startswith("noperm"):
            continue
        elif "to run" in words:
            missing[attempt.rule] = None
        elif "channel" in words:
            missing[f"&{keys.prefix}:events:*"] = None
        else:
            missing[f"~{keys.prefix}:*"] = None
    return Tried(tuple(missing), tuple(disabled))


def rules(address: Address, keys: Keyspace) -> list[str]:
    """All the rules that a user needs."""
    needed = dict.fromkeys(attempt.rule for attempt in attempts(address, keys))
    return [f"~{keys.prefix}:*", f"&{keys.prefix}:events:*", *needed]
