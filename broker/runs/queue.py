"""The worker's end of runs, as Redis sees it: read what is queued, hold, keep and give back."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ..errors import Invalid
from ..keyspace import Keyspace
from ..producer import Fence
from ..script import Script
from .exchange import KEYS_SECONDS, LEASE_SECONDS, Claimed, Fate, read_claim

SERVED_SECONDS = 15.0
# How long it is known what workers served that are gone: as long as a restart may take.
REMEMBERED_SECONDS = 60.0
# How long a lease is renewed after its run's deadline.
GRACE_SECONDS = 5.0
# How long workers have to come back after Redis was away, before others take over what they held.
RETURN_SECONDS = 5.0
BLOCK_MS = 500
CANCELS_BLOCK_MS = 1000

# How a read fails when the stream or its group is gone, before or while it blocks.
_GONE = ("NOGROUP", "UNBLOCKED")


class Ready(NamedTuple):
    """A run that may be had, and the entry that brought it, if one did."""

    entry: str
    execution: str


class Beat(NamedTuple):
    """What a beat found: `held`, `cancel`, `late` or `lost` for each run; and what nobody looks after."""

    states: list[str]
    due: list[Ready]


class Queue:
    """The runs of one endpoint. Each method is one round trip, and raises redis-py's errors."""

    def __init__(self, redis: Redis, keys: Keyspace, workspace: str, endpoint: str, *, worker: str = "") -> None:
        """Of a new worker, or of the one with the id `worker`."""
        self.id = worker or secrets.token_hex(8)
        self.workspace, self.endpoint = workspace, endpoint
        self._redis, self._names = redis, keys
        self._runs, self._held = keys.runs(workspace, endpoint), keys.held(workspace, endpoint)
        self._served, self._queued = keys.served(workspace, endpoint), keys.queued(workspace)
        self._cancels, self._returned = keys.cancels(workspace, endpoint), keys.returned(workspace, endpoint)
        self._beat, self._claim = Script(redis, "beat_runs"), Script(redis, "claim")
        self._release = Script(redis, "release")

    def over(self, redis: Redis) -> "Queue":
        """The same worker's, over another client."""
        return Queue(redis, self._names, self.workspace, self.endpoint, worker=self.id)

    async def read(self, count: int) -> list[Ready]:
        """What waits, at most `count`; nothing when nothing came within `BLOCK_MS`, or the queue is not made yet."""
        try:
            found: Any = await self._redis.xreadgroup("workers", self.id, {self._runs: ">"}, count, block=BLOCK_MS)
        except ResponseError as error:
            if not str(error).startswith(_GONE):
                raise
            await self.beat((), (), ())
            return []
        return [
            Ready(entry.decode(), fields.get(b"x", b"").decode()) for _, entries in found for entry, fields in entries
        ]

    async def claim(self, wanted: Sequence[Ready], holders: Sequence[str]) -> list[Claimed | None]:
        """Hold runs, each as its holder; None for each that is not to be had. Safe to call again."""
        lease, pairs = _ms(LEASE_SECONDS), list(zip(wanted, holders, strict=True))
        answers = await self._claim.run_many(
            [
                (
                    (
                        self._names.run(self.workspace, ready.execution),
                        self._runs,
                        self._held,
                        self._served,
                        self._queued,
                        self._returned,
                    ),
                    (ready.execution, ready.entry, holder, lease),
                )
                for ready, holder in pairs
            ]
        )
        return [_claimed(ready, holder, answer) for (ready, holder), answer in zip(pairs, answers, strict=True)]

    async def beat(self, names: Iterable[str], executions: Sequence[str], holders: Sequence[str]) -> Beat:
        """Say that this worker lives, serves `names` and holds `executions`, each as its holder."""
        keys = [self._runs, self._held, self._served, self._returned]
        keys += [self._names.run(self.workspace, execution) for execution in executions]
        served = list(names)
        terms: tuple[str | int, ...] = (
            self.id,
            _ms(LEASE_SECONDS),
            _ms(SERVED_SECONDS),
            _ms(REMEMBERED_SECONDS),
            _ms(RETURN_SECONDS),
            _ms(GRACE_SECONDS),
            KEYS_SECONDS,
            len(served),
            *served,
        )
        pairs: list[str] = [word for pair in zip(executions, holders, strict=True) for word in pair]
        states, due = await self._beat.run(keys, (*terms, *pairs))
        words = [word.decode() for word in due]
        return Beat([state.decode() for state in states], list(map(Ready, words[::2], words[1::2])))

    async def release(self, execution: str, holder: str, attempt: Fate, *, seconds: float) -> None:
        """Give a run back, for who comes `seconds` from now; does nothing when it is another's."""
        keys = (self._names.run(self.workspace, execution), self._runs, self._held, self._queued)
        await self._release.run(keys, (execution, holder, attempt, _ms(seconds), KEYS_SECONDS))

    async def cancels(self, last: str) -> tuple[str, list[str]]:
        """What is to stop, since the entry `last`; and the newest entry."""
        found: Any = await self._redis.xread({self._cancels: last}, block=CANCELS_BLOCK_MS)
        entries = [entry for _, entries in found for entry in entries]
        return (entries[-1][0].decode() if entries else last), [fields[b"x"].decode() for _, fields in entries]

    def fence(self, claimed: Claimed) -> Fence:
        """What lets the events of a run pass while we hold it."""
        run, end = (name(self.workspace, claimed.execution) for name in (self._names.run, self._names.end))
        return Fence(run, self._held, end, claimed.holder, claimed.execution)


def _claimed(ready: Ready, holder: str, answer: list[bytes]) -> Claimed | None:
    try:
        return read_claim(ready.execution, holder, answer)
    except Invalid:
        return None  # made by nobody of ours; its keys expire


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
