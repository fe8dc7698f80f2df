"""Settling a command: first its reply, then its entry is taken away.

A crash between the two brings the command a second time, but never loses what became of it.
"""

from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ..keyspace import Keyspace
from ..patience import pause
from ..script import Script
from .command import Command, Inbox
from .exchange import Reply, pack_reply

REPLY_SECONDS = 60
MAX_REPLIES = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Settler:
    """Settles the commands of one workspace, over the program's shared client: the listener's own is blocked by reads.

    `now` answers Redis' time (ms) as the listener knows it; reply.lua has the last word.
    """

    def __init__(self, redis: Redis, keys: Keyspace, workspace: str, now: Callable[[], float]) -> None:
        self._reply, self._settle = Script(redis, "reply"), Script(redis, "settle")
        self._keys = keys
        self._workspace = workspace
        self._now = now

    async def settle(self, inbox: Inbox, id_: str, node: str, reply: Reply) -> None:
        """As `Command.done` says."""
        body = pack_reply(reply)
        held = inbox.held.get(id_)
        if held is None or held.is_settling:
            return
        held.is_settling = True
        try:
            seconds = _FIRST_PAUSE
            while held.command.deadline > self._now():
                try:
                    await self._send(held.command, node, reply.key, body)
                except (RedisError, OSError):
                    await pause(seconds)
                    seconds = min(2 * seconds, _LONGEST_PAUSE)
                else:
                    # Held until now: the listener would take it for one whose delivery was lost.
                    inbox.held.pop(id_, None)
                    await pause(0)  # an agent that is being cancelled must not go on with its next command
                    return
        finally:
            held.is_settling = False

    async def _send(self, command: Command, node: str, key: str, body: bytes) -> None:
        stream, waiting = self._keys.commands(self._workspace, command.agent_id), self._keys.waiting(self._workspace)
        await self._reply.run([self._keys.replies(node)], [command.deadline, body, MAX_REPLIES, REPLY_SECONDS])
        await self._settle.run([stream, waiting], [command.id, key])
