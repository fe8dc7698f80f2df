"""An agent's end of commands, as values: the command it is given, and the inbox where its commands wait for it.

A command is *held* from when it was fetched until it is settled or its deadline passes. What is held by a listener that
lives is nobody else's; what a listener left unsettled goes to the next one that listens. The listener (listener.py) is
the one that fetches, keeps and settles.
"""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import Invalid
from .exchange import Reply

# Commands of one agent that are fetched and not settled, at most; the rest waits in Redis.
MAX_HELD = 100

MAX_MESSAGE_CHARACTERS = 1000

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)

Settle = Callable[[Reply], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Command:
    """What an agent is asked to do. Settle it with `done` or `failed`, once.

    `id` is its place in the agent's stream, `name` one of start, stop, restart, update_config, get_status; `sender` is
    the user who sent it, `deadline` when nobody waits for it any more, in Redis' time (ms).
    Delivered at least once: after a crash the same `id` may come again, to whoever listens then.
    """

    id: str
    request_id: str
    workspace_id: str
    agent_id: str
    name: str
    parameters: dict[str, Any] = field(hash=False)
    sender: str
    deadline: int
    _key: str = field(repr=False)
    _settle: Settle = field(repr=False, compare=False)

    async def done(self, result: dict[str, Any] | None = None) -> None:
        """Say that it is done. After `get_status` the `result` is needed, and shown: `{"new_status": "idle", …}`.

        Does nothing when it is settled already or its deadline has passed; while Redis is away it goes on trying until
        then. Raises `Invalid` for a result that is no dict of JSON values or has more than 64 KB.
        """
        await self._settle(Reply(self._key, "done", result=result))

    async def failed(self, code: str, message: str) -> None:
        """Say that it could not be done. The sender is shown both; of `message` the first 1,000 characters.

        As `done` otherwise. Raises `Invalid` for a code that is not of the form `CONFIG_REJECTED`.
        """
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise Invalid("code", "expected capital letters, digits and _, at most 64, as CONFIG_REJECTED")
        # Often the words of an exception: whatever is in them, it must not raise another.
        words = str(message)[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()
        await self._settle(Reply(self._key, "failed", code, words))


class Held:
    """A command in an inbox, and who has taken it."""

    __slots__ = ("command", "is_settling", "taker")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.taker: object | None = None
        self.is_settling = False


class Inbox:
    """The held commands of one agent. All who listen for the agent in this process take from it."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.held: dict[str, Held] = {}  # by their ids, in the order in which they came
        self.takers: set[object] = set()
        self.stirred = asyncio.Event()  # something came, or the listener has ended
        self.is_joined = False  # Redis knows that we listen, since the connection was made
        self.is_deleted = False  # there is no such agent any more
        self._queue: deque[Held] = deque()

    @property
    def room(self) -> int:
        return MAX_HELD - len(self.held)

    def put(self, command: Command) -> None:
        if command.id not in self.held:
            held = self.held[command.id] = Held(command)
            self._queue.append(held)
            self.stirred.set()

    def take(self, taker: object, now: float) -> Command | None:
        """The next command for `taker` at `now` (Redis' time, ms)."""
        while self._queue:
            held = self._queue.popleft()
            if self.held.get(held.command.id) is held and held.command.deadline > now:
                held.taker = taker
                return held.command
        return None

    def leave(self, taker: object) -> bool:
        """What `taker` did not settle goes to the others; True when there are none."""
        self.takers.discard(taker)
        left = [held for held in self.held.values() if held.taker is taker]
        for held in left:
            held.taker = None
        self._queue.extendleft(reversed(left))
        self.stirred.set()
        return not self.takers

    def overdue(self, now: float) -> Iterator[Command]:
        return (held.command for held in self.held.values() if held.command.deadline <= now)
