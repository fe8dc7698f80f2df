"""The sender's end of commands: sends them to agents wherever these live, and hands on what became of them.

A command's fate is told once: by the agent's reply, or as a timeout when its deadline has passed without one; then it
is withdrawn. Replies of all agents come through one stream of this node, read by the owner task over a connection of
its own. After an outage that stream is read again from its beginning: a reply that is no longer waited for is nobody's.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ..address import Address
from ..errors import AgentOffline, AgentUnknown, Invalid, QueueFull, Unavailable
from ..keyspace import Keyspace, check_id, check_workspace
from ..patience import pause
from ..script import Script
from ..topology import clients
from .exchange import Reply, pack_command, unpack_reply

__all__ = ["Commander", "Reply"]

logger = logging.getLogger("trunkline.commander")

MAX_QUEUED = 1000  # commands that wait for one agent
MAX_PENDING = 10_000  # commands of this node whose fate is not known
STREAM_SECONDS = 3600
PATIENCE_SECONDS = 2.0
BLOCK_MS = 250
READ_REPLIES = 500
# A reply that came just in time may take so long to be read.
GRACE_SECONDS = 0.25
_PAUSE_SECONDS = 0.2

T = TypeVar("T")


class _Pending:
    """A command whose fate is not known. Until it is sent it has no `due` moment, and a reply waits."""

    __slots__ = ("agent", "due", "id", "reply", "workspace")

    def __init__(self, workspace: str, agent: str) -> None:
        self.workspace = workspace
        self.agent = agent
        self.id = ""
        self.due = float("inf")
        self.reply: Reply | None = None


class Commander:
    """One node's commands. `run` must be running for `on_reply` to be called."""

    def __init__(
        self, redis: Redis, address: Address, keys: Keyspace, node: str, on_reply: Callable[[Reply], None]
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._node = node
        self._on_reply = on_reply
        self._command, self._settle = Script(redis, "command"), Script(redis, "settle")
        self._count = Script(redis, "waiting")
        self._replies = clients.client(address, "trunkline-replies")
        self._pending: dict[str, _Pending] = {}
        self._ahead: float | None = None  # Redis' clock less our own, seconds

    @property
    def pending(self) -> int:
        """Commands whose fate is not known."""
        return len(self._pending)

    def tick(self, redis_seconds: float) -> None:
        """Redis has just said what time it is."""
        self._ahead = redis_seconds - monotonic()

    async def send(
        self,
        workspace: str,
        agent_id: str,
        name: str,
        parameters: dict[str, Any],
        *,
        request_id: str,
        sender: str,
        seconds: float,
    ) -> str:
        """Send a command that has `seconds` to be settled, in one round trip; answers its key.

        `on_reply` is called with that key once, and not before a caller that awaits this directly knows it.
        Raises, and then it is never called: `Invalid` with what is wrong; `AgentUnknown`, `AgentOffline` and
        `QueueFull` when it was not sent; `Unavailable` when Redis cannot be reached or does not answer within 2 s: the
        agent may have got it then, but does not get it later (as far as `tick` has told Redis' time).
        """
        check_workspace(workspace, "workspace_id")
        check_id(agent_id, "agent_id")
        if not 0 < seconds <= STREAM_SECONDS:
            raise Invalid("seconds", f"expected more than 0 and at most {STREAM_SECONDS}")
        if len(self._pending) >= MAX_PENDING:
            raise QueueFull("too many commands of this node have no reply yet")
        key = secrets.token_hex(8)
        body = pack_command(
            key=key, node=self._node, request_id=request_id, name=name, parameters=parameters, sender=sender
        )
        pending = self._pending[key] = _Pending(workspace, agent_id)
        try:
            names = self._names(workspace, agent_id)
            terms = (round(seconds * 1000), MAX_QUEUED, STREAM_SECONDS)
            outcome, entry = await _answer(
                self._command.run(
                    [*names, self._keys.waiting(workspace), self._keys.deleted(workspace)],
                    [key, *terms, body, self._latest(), agent_id],
                )
            )
            _check(outcome.decode())
        except BaseException:
            self._pending.pop(key, None)
            raise
        pending.id, pending.due = entry.decode(), monotonic() + seconds + GRACE_SECONDS
        if pending.reply is not None:
            asyncio.get_running_loop().call_soon(self._hand_on, pending.reply)
        return key

    def _latest(self) -> str:
        """Until when we wait for an answer, in Redis' time."""
        return "" if self._ahead is None else str(int((monotonic() + PATIENCE_SECONDS + self._ahead) * 1000))

    async def find(self, workspaces: Collection[str], agent_id: str) -> list[str]:
        """In which of `workspaces` the agent is known; one round trip. Raises `Invalid`, `Unavailable`."""
        check_id(agent_id, "agent_id")
        async with self._redis.pipeline(transaction=False) as pipe:
            for workspace in workspaces:
                pipe.exists(*self._names(workspace, agent_id))
            known = await _answer(pipe.execute())
        return [workspace for workspace, count in zip(workspaces, known, strict=True) if count]

    async def waiting(self, workspace: str) -> int:
        """How many commands of the workspace are not settled, their deadline not passed. Raises `Unavailable`."""
        return int(await _answer(self._count.run([self._keys.waiting(workspace)], [])))

    def forget(self, key: str) -> None:
        """Nobody waits for this one's fate any more. The agent may do it all the same."""
        self._pending.pop(key, None)

    async def run(self) -> None:
        """Hand on replies and timeouts, until cancelled. An outage of Redis is waited out; timeouts go on."""
        last, is_lost = "0-0", False
        try:
            while True:
                try:
                    last = await self._read(last)
                except (RedisError, OSError) as error:
                    if not is_lost:
                        logger.warning("cannot read replies to commands, trying again: %s", type(error).__name__)
                    last, is_lost = "0-0", True
                    await pause(_PAUSE_SECONDS)
                else:
                    is_lost = False
                await self._end_overdue()
                await pause(0)
        finally:
            await self._replies.aclose()

    async def _read(self, last: str) -> str:
        """One read of the replies after `last`; answers the newest one's id."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            found: Any = await self._replies.xread({self._keys.replies(self._node): last}, READ_REPLIES, BLOCK_MS)
        for _, entries in found:
            for id_, fields in entries:
                last = id_.decode()
                self._take(fields.get(b"r", b""))
        return last

    def _take(self, raw: bytes) -> None:
        try:
            reply = unpack_reply(raw)
        except Invalid as error:
            logger.error("an entry of the replies is dropped: %s", error.reason)
            return
        pending = self._pending.get(reply.key)
        if pending is None:
            return
        if pending.id:
            self._hand_on(reply)
        elif pending.reply is None:
            pending.reply = reply

    def _hand_on(self, reply: Reply) -> None:
        if self._pending.pop(reply.key, None) is None:
            return
        try:
            self._on_reply(reply)
        except Exception:
            logger.exception("a reply to a command was not taken")

    async def _end_overdue(self) -> None:
        now = monotonic()
        overdue = {key: pending for key, pending in self._pending.items() if pending.due <= now}
        for key in overdue:
            self._hand_on(Reply(key, "timeout"))
        calls = [
            ((self._keys.commands(each.workspace, each.agent), self._keys.waiting(each.workspace)), (each.id, key))
            for key, each in overdue.items()
        ]
        if calls:
            # Left there it does no harm: an agent drops what is past its deadline.
            with suppress(Unavailable):
                await _answer(self._settle.run_many(calls))

    def _names(self, workspace: str, agent: str) -> Sequence[str]:
        """By which an agent is known."""
        keys = self._keys
        return keys.listening(workspace, agent), keys.agent(workspace, agent), keys.commands(workspace, agent)


def _check(outcome: str) -> None:
    match outcome:
        case "unknown":
            raise AgentUnknown("no such agent in this workspace")
        case "offline":
            raise AgentOffline("the agent does not listen for commands")
        case "late":
            raise Unavailable("Redis did not answer in time")
        case "full":
            raise QueueFull("too many commands wait for the agent")


async def _answer(call: Awaitable[T]) -> T:
    """Redis' answer, or `Unavailable` when it has none in time."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await call
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis did not answer: {type(error).__name__}") from error
