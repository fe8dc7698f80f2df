"""The sender's end of runs: starts, cancels and finds them, from any process."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Literal, NamedTuple, TypeVar

from redis.exceptions import RedisError

from ..broker import Broker
from ..errors import Invalid, Lost, QueueFull, Unavailable, UnknownWorkflow
from ..events import Event, pack
from ..keyspace import check_endpoint, check_id, check_workspace
from ..patience import pause
from ..positions import Position
from ..producer import Fence
from ..script import Script
from .exchange import KEYS_SECONDS, LEASE_SECONDS, MAX_SECONDS, Execution, digest, execution_id, pack_body
from .hold import Reason

MAX_QUEUED = 10_000
PATIENCE_SECONDS = 2.0
_PAUSE_SECONDS = 0.05

T = TypeVar("T")


class Submitted(NamedTuple):
    """A run that was accepted. `is_new` is False when its client had started it before.

    What is said of it comes after `since` in the workspace's log; `deadline` is in Unix seconds by Redis' clock. Both
    are those of its start.
    """

    execution_id: str
    is_new: bool
    since: Position
    deadline: float


class _Known(NamedTuple):
    """A run that may have to be ended, the keys for it, and the name under which we would hold it."""

    workspace: str
    execution: str
    endpoint: str
    name: str
    connection: str
    run: str
    held: str
    holder: str


class Runs:
    """Starts and ends runs. `max_queued` runs of one endpoint may wait for a worker."""

    def __init__(self, broker: Broker, *, max_queued: int = MAX_QUEUED) -> None:
        self._broker = broker
        self._keys = broker.keys
        self._max_queued = max_queued
        self._submit = Script(broker.redis, "submit")
        self._cancel, self._expire = Script(broker.redis, "cancel"), Script(broker.redis, "expire")

    async def submit(  # noqa: PLR0917 (in the order of a client's message)
        self,
        workspace: str,
        endpoint: str,
        name: str,
        parameters: dict[str, Any],
        metadata: dict[str, Any],
        connection_id: str | None,
        *,
        seconds: float,
        max_attempts: int,
        execution: str | None = None,
    ) -> Submitted:
        """Queue a run of the workflow `name` that has `seconds` from now to end, waiting and retries included.

        With a `connection_id` and a `metadata["idempotency_key"]` that were given together before, for this endpoint
        and in the last 24 h, it is the run that was started then, and nothing happens. Who wants to know the run's id
        before it starts chooses it by `execution_id`, of those three, and gives it as `execution`.
        Raises `Invalid` with what is wrong, also where that run has another name, other parameters or other metadata;
        `UnknownWorkflow` when there are live workers and none has served this one in the last minute; and `QueueFull`:
        nothing was started then. After `Unavailable` it may have been; calling again is safe with the same key or
        `execution`.
        """
        check_workspace(workspace, "workspace_id")
        check_endpoint(endpoint, "endpoint")
        check_id(name, "name")
        if connection_id is not None:
            check_id(connection_id, "connection_id")
        if not 0 < seconds <= MAX_SECONDS:
            raise Invalid("seconds", f"expected more than 0 and at most {MAX_SECONDS}")
        if max_attempts < 1:
            raise Invalid("max_attempts", "expected at least 1")
        body = pack_body(parameters, metadata)
        connection = connection_id or ""
        if execution is None:
            execution = execution_id(endpoint, connection, metadata.get("idempotency_key"))
        check_id(execution, "execution")
        name_ = self._keys
        keys = [name_.run(workspace, execution), name_.runs(workspace, endpoint), name_.served(workspace, endpoint)]
        keys += [name_.queued(workspace), name_.workspace(workspace)]
        if connection:
            keys.append(name_.connection(workspace, endpoint, connection))
        terms = (self._max_queued, round(seconds * 1000), max_attempts, body, digest(name, body), KEYS_SECONDS)
        arguments = (execution, secrets.token_hex(8), endpoint, name, connection, *terms)
        answer = await _answer(lambda: self._submit.run(keys, arguments))
        match [word.decode() for word in answer]:
            case ["full"]:
                raise QueueFull("too many runs of this endpoint wait for a worker")
            case ["unserved"]:
                raise UnknownWorkflow(f"no workflow {name!r} at this endpoint")
            case ["other"]:
                raise Invalid("metadata.idempotency_key", "was used for another run")
            case [word, since, deadline]:
                return Submitted(execution, word == "started", Position(since), _seconds(deadline))
        raise AssertionError(answer)

    async def cancel(self, workspace: str, execution_id: str) -> Literal["cancelled", "told", "ended", "unknown"]:
        """End a run. One that waits ends at once; where it runs its worker is told, and the end comes as an event.

        `ended`: it had ended before, `unknown`: it never was, or ended more than 24 h ago. Raises `Unavailable`, and
        calling again is safe.
        """
        known = await self._find(workspace, execution_id)
        if known is None:
            return "unknown"
        keys = [known.run, self._keys.runs(workspace, known.endpoint), known.held]
        keys += [self._keys.cancels(workspace, known.endpoint), self._keys.queued(workspace)]
        arguments = (execution_id, known.holder, round(LEASE_SECONDS * 1000))
        outcome = (await _answer(lambda: self._cancel.run(keys, arguments))).decode()
        if outcome != "held":
            return outcome  # type: ignore[no-any-return]
        return "cancelled" if await self._end(known, "cancelled", {}) else "ended"

    async def expire(self, workspace: str, execution_id: str) -> bool:
        """End a run whose deadline has passed, where no worker does: it waits, or its holder's lease has ended.

        Its end is `execution_failed` with `DEADLINE_EXCEEDED`. True when it has ended, now or before; False when it is
        not due by Redis' clock, or somebody holds it. Raises `Unavailable`, and calling again is safe.
        """
        known = await self._find(workspace, execution_id)
        if known is None:
            return True
        keys = (known.run, self._keys.runs(workspace, known.endpoint), known.held, self._keys.queued(workspace))
        arguments = (execution_id, known.holder, round(LEASE_SECONDS * 1000))
        outcome = (await _answer(lambda: self._expire.run(keys, arguments))).decode()
        if outcome == "held":
            return await self._end(known, "failed", {"error": Reason.DEADLINE.error})
        return bool(outcome == "ended")

    async def waiting(self, workspace: str) -> int:
        """How many runs of all endpoints wait: queued, or given back. Raises `Invalid`, `Unavailable`."""
        key = self._keys.queued(check_workspace(workspace, "workspace_id"))
        return int(await _answer(lambda: _typed(self._broker.redis.zcard(key))))

    async def of_connection(self, workspace: str, endpoint: str, connection_id: str) -> list[Execution]:
        """What a client's connection has started, newest last; at most 1,000. Raises `Invalid`, `Unavailable`."""
        check_workspace(workspace, "workspace_id")
        check_endpoint(endpoint, "endpoint")
        check_id(connection_id, "connection_id")
        redis, key = self._broker.redis, self._keys.connection(workspace, endpoint, connection_id)
        ids = [id_.decode() for id_ in await _answer(lambda: _typed(redis.zrange(key, 0, -1)))]

        async def states() -> list[list[Any]]:
            async with redis.pipeline(transaction=False) as pipe:
                for id_ in ids:
                    pipe.hmget(self._keys.run(workspace, id_), ["name", "state", "since", "deadline"])
                return await pipe.execute()

        found = await _answer(states) if ids else []
        return [
            Execution(id_, name.decode(), state.decode(), Position(since.decode()), _seconds(deadline))
            for id_, (name, state, since, deadline) in zip(ids, found, strict=True)
            if name is not None
        ]

    async def _find(self, workspace: str, execution_id: str) -> "_Known | None":
        check_workspace(workspace, "workspace_id")
        check_id(execution_id, "execution_id")
        run = self._keys.run(workspace, execution_id)
        found = await _answer(lambda: _typed(self._broker.redis.hmget(run, ["endpoint", "name", "connection"])))
        if found[0] is None:
            return None
        endpoint, name, connection = (word.decode() for word in found)
        held = self._keys.held(workspace, endpoint)
        return _Known(workspace, execution_id, endpoint, name, connection, run, held, secrets.token_hex(8))

    async def _end(self, known: "_Known", state: str, details: dict[str, Any]) -> bool:
        """Say the end of a run that we hold; False when it is another's by now, or ended.

        Should we die or give up now, a worker does it when our lease ends.
        """
        said = {"execution_id": known.execution, "name": known.name} | details
        if known.connection:
            said["connection_id"] = known.connection
        event = Event(type=f"execution_{state}", workspace_id=known.workspace, agent_id=known.endpoint, data=said)
        end = self._keys.end(known.workspace, known.execution)
        fence = Fence(known.run, known.held, end, known.holder, known.execution, state)
        promise = self._broker.producer.send(pack(event), fence)
        await asyncio.wait((promise,), timeout=PATIENCE_SECONDS)
        if not promise.done():
            promise.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise Unavailable(f"Redis took no publish for {PATIENCE_SECONDS:g} s")
        return not isinstance(promise.exception(), Lost)


async def _answer(call: Callable[[], Awaitable[T]]) -> T:
    """Redis' answer; every call here may be made again. Raises `Unavailable` when there is none in time."""
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(deadline - monotonic(), 0)):
                return await call()
        except (RedisError, OSError) as error:
            if monotonic() + _PAUSE_SECONDS >= deadline:
                raise Unavailable(f"Redis did not answer: {type(error).__name__}") from error
            await pause(_PAUSE_SECONDS)


def _seconds(milliseconds: str | bytes) -> float:
    return int(milliseconds) / 1000


def _typed(call: Any) -> Awaitable[Any]:
    """redis-py's types do not say that its asyncio client's answers are awaited."""
    return call  # type: ignore[no-any-return]
