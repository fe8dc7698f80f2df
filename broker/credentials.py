"""API keys: each opens one endpoint of one workspace, is shown once, and opens nothing any more once it is revoked.

Kept       Redis knows a key by its SHA-256 alone. The key is random, so its hash needs no salt, and finding the record
           under the hash compares no secrets: there is nothing to time.
Slots      An endpoint's hash stands by itself, and workers read it. All that is kept of keys has the tag `{keys}`, so
           that a script changes a key, the list of keys and the revocations together. A check reads both places at
           once.
Revoked    revoke.lua appends to a stream, and each node waits for its next entry (`run`). After any failure a node
           reads all of the stream again: what it missed is there, and to hear of a key twice does no harm.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from enum import Enum, auto
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from .errors import Invalid, TrunklineError, Unavailable
from .keyspace import Keyspace, check_endpoint, check_workspace
from .patience import repeat
from .script import Script

log = logging.getLogger("trunkline.credentials")

PATIENCE_SECONDS = 2.0
# A node that does not see Redis for longer than this does not hear of what was revoked meanwhile.
REVOCATION_SECONDS = 7 * 24 * 3600
MAX_REMEMBERED = 10_000
BLOCK_MS = 1000
READ_ENTRIES = 1000

# 192 bits. Hexadecimal digits are RFC 7230 token characters, and one click selects all of it.
_KEY_BYTES, _ID_BYTES = 24, 8
_EPOCH = date(1970, 1, 1).toordinal()


class EndpointTaken(TrunklineError):  # noqa: N818
    """The endpoint belongs to another workspace since its first key, whatever became of that. No key was made."""


class KeyUnknown(TrunklineError):  # noqa: N818
    """No key has this id."""


class Outcome(Enum):
    """What came of a check."""

    OPENS = auto()
    ENDPOINT_UNKNOWN = auto()  # it never had a key
    KEY_BAD = auto()  # unknown, or revoked
    KEY_ELSEWHERE = auto()  # a good key, of another endpoint


class Verdict(NamedTuple):
    """The outcome; and when the key opens the endpoint, the key's id and the endpoint's workspace."""

    outcome: Outcome
    key_id: str = ""
    workspace: str = ""


class Created(NamedTuple):
    """A new key. Nobody can see `key` again."""

    id: str
    key: str


class Key(msgspec.Struct, frozen=True):
    """What may be told of a key."""

    id: str
    endpoint: str
    workspace: str
    created: datetime
    last_used: date | None
    revoked: datetime | None


class Credentials:
    """The keys of all endpoints.

    What awaits an answer of Redis raises `Unavailable` when there is none within 2 s. A node has `run` running.
    """

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self._redis = redis
        self._keys = keys
        self._mint, self._check, self._revoke = (Script(redis, name) for name in ("mint", "check", "revoke"))
        self._revoked: dict[str, None] = {}  # the last ones, oldest first

    async def create(self, endpoint: str, workspace: str) -> Created:
        """Make a key. The endpoint belongs to `workspace` from now on, unless it did before.

        Raises `EndpointTaken`, or `Invalid` for a name that is none. After `Unavailable` the endpoint may belong to the
        workspace, and `list` may show a key that nobody knows; calling again is safe.
        """
        check_endpoint(endpoint, "endpoint")
        check_workspace(workspace, "workspace")
        created = Created(f"key_{secrets.token_hex(_ID_BYTES)}", f"tlk_{secrets.token_hex(_KEY_BYTES)}")
        hash_ = _hash(created.key)
        async with _redis_away("create a key"):
            if not await self._claim(endpoint, workspace):
                raise EndpointTaken(f"the endpoint {endpoint!r} belongs to another workspace")
            await self._mint.run([self._keys.key(hash_), self._keys.api_keys], [created.id, hash_, endpoint, workspace])
        return created

    async def check(self, endpoint: str, key: str) -> Verdict:
        """Whether `key` opens `endpoint`, in one round trip. The first thing that is wrong is the outcome.

        A key may be revoked between this and the moment when its connection can be found by its id. Whoever opens one
        must ask `is_revoked` then.
        """
        try:
            check_endpoint(endpoint, "endpoint")
        except Invalid:
            return Verdict(Outcome.ENDPOINT_UNKNOWN)
        async with _redis_away("check a key"):
            owner: Any
            owner, found = await asyncio.gather(
                self._redis.hget(self._keys.endpoint(endpoint), "workspace"),
                self._check.run([self._keys.key(_hash(key))], [endpoint]),
            )
        if owner is None:
            return Verdict(Outcome.ENDPOINT_UNKNOWN)
        if found is None:
            return Verdict(Outcome.KEY_BAD)
        id_, its_endpoint, workspace = (field.decode() for field in found)
        if its_endpoint != endpoint:
            return Verdict(Outcome.KEY_ELSEWHERE)
        if workspace != owner.decode():
            # A failover lost the endpoint's first key, and somebody else came before this one: it is not theirs.
            return Verdict(Outcome.KEY_BAD)
        return Verdict(Outcome.OPENS, id_, workspace)

    async def list(self, endpoint: str | None = None, workspace: str | None = None) -> Sequence[Key]:
        """All keys, or those of an endpoint or a workspace; revoked ones too; oldest first."""
        async with _redis_away("list keys"):
            hashes: Any = await self._redis.hvals(self._keys.api_keys)
            async with self._redis.pipeline(transaction=False) as pipe:
                for hash_ in hashes:
                    pipe.hgetall(self._keys.key(hash_.decode()))
                records = await pipe.execute()
        # One that was deleted by hand is none.
        found = sorted((_key(record) for record in records if b"id" in record), key=lambda key: (key.created, key.id))
        return [key for key in found if endpoint in (None, key.endpoint) and workspace in (None, key.workspace)]

    async def revoke(self, key_id: str) -> None:
        """Let a key open nothing any more, and end the connections that it opened, on every node within a second.

        Raises `KeyUnknown`. A key that is revoked already stays so, and nodes hear of it once more.
        """
        async with _redis_away("revoke a key"):
            hash_: Any = await self._redis.hget(self._keys.api_keys, key_id)
            if hash_ is None:
                # Not repeated: it may be a key, given by mistake.
                raise KeyUnknown("no key has this id; `trunkline key list` shows them")
            names = [self._keys.key(hash_.decode()), self._keys.revocations]
            await self._revoke.run(names, [key_id, REVOCATION_SECONDS])

    def is_revoked(self, key_id: str) -> bool:
        """True when `run` has heard that this key is revoked. It remembers the last 10,000."""
        return key_id in self._revoked

    async def run(self, on_revoked: Callable[[str], None]) -> None:
        """Tell of each key that is revoked, by its id, until cancelled; of some more than once.

        At once, or within seconds after an outage. It begins with those of the last days. Survives every failure of
        Redis; keeps one connection of the client for itself.
        """
        last = "0-0"

        async def read() -> None:
            nonlocal last
            after, last = last, "0-0"  # after a failure it begins anew
            last = await self._read(after, on_revoked)

        await repeat(read, log, "cannot read which keys are revoked")

    async def _claim(self, endpoint: str, workspace: str) -> bool:
        """Whether the endpoint is the workspace's: it was, or was nobody's."""
        name = self._keys.endpoint(endpoint)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hsetnx(name, "workspace", workspace)
            pipe.hget(name, "workspace")
            _, owner = await pipe.execute()
        return bool(owner == workspace.encode())

    async def _read(self, last: str, on_revoked: Callable[[str], None]) -> str:
        """Wait a moment for what comes after the position `last`; answers the position after it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            found: Any = await self._redis.xread({self._keys.revocations: last}, READ_ENTRIES, BLOCK_MS)
        for _, entries in found:
            for position, fields in entries:
                self._remember(key_id := fields.get(b"k", b"").decode(errors="replace"))
                on_revoked(key_id)
                last = position.decode()
        return last

    def _remember(self, key_id: str) -> None:
        self._revoked.pop(key_id, None)
        self._revoked[key_id] = None
        if len(self._revoked) > MAX_REMEMBERED:
            del self._revoked[next(iter(self._revoked))]


def _hash(key: str) -> str:
    return sha256(key.encode(errors="surrogatepass")).hexdigest()


def _key(record: Mapping[bytes, bytes]) -> Key:
    """What Redis keeps of a key, told."""
    used, revoked = record.get(b"used"), record.get(b"revoked")
    return Key(
        id=record[b"id"].decode(),
        endpoint=record[b"endpoint"].decode(),
        workspace=record[b"workspace"].decode(),
        created=_moment(record[b"created"]),
        last_used=date.fromordinal(_EPOCH + int(used)) if used else None,
        revoked=_moment(revoked) if revoked else None,
    )


def _moment(milliseconds: bytes) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


@asynccontextmanager
async def _redis_away(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        # Its own words may hold the command, and that a hash: neither is it chained.
        raise Unavailable(f"cannot {what}: no answer from Redis ({type(error).__name__})") from None
