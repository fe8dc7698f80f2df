"""What a client says, taken in order: while one message waits for somebody (a key set, a subscription in Redis, a
replay, a worker's queue), the next ones wait for it; when those are many, the socket is not read. Each is counted by
the time at which it came.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from .wire import Wire

# More than a client may say in a second, so that one that says too much is found to.
MAX_PENDING = 256
MAX_PENDING_CHARACTERS = 256 * 1024


class Said(NamedTuple):
    """A message, or the code of a close, and when it came."""

    what: str | int
    at: float


class Reader(Protocol):
    """Who takes what was said."""

    @property
    def is_gone(self) -> bool:
        """True when nothing more is taken."""

    @property
    def is_following(self) -> bool:
        """True while a change of what is delivered is under way."""

    @property
    def is_stuck(self) -> bool:
        """True while such a change waits for a Redis that is away."""

    def take(self, text: str, at: float, *, may_wait: bool = True) -> None:
        """Do what a message asks that came `at`; what must wait for somebody goes to `Inbox.wait`."""

    def overtakes(self, text: str) -> bool:
        """True for a message that must not wait for those before it."""


class Inbox:
    """The messages of one client that wait, and the work they wait for."""

    __slots__ = ("_characters", "_pending", "_reader", "_task", "_tasks", "_wire")

    def __init__(self, wire: "Wire", reader: Reader) -> None:
        self._wire = wire
        self._reader = reader
        self._pending: deque[Said] | None = None
        self._characters = 0  # that had to wait since nothing did
        self._task: asyncio.Task[None] | None = None  # the last one of `_tasks`
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def is_waiting(self) -> bool:
        """True while a request waits for somebody, and the next ones for it."""
        return self._pending is not None

    def receive(self, text: str) -> None:
        self._receive(text, monotonic())

    def _receive(self, text: str, at: float) -> None:
        if self._pending is None:
            self._reader.take(text, at)
        elif self._reader.overtakes(text):
            self._reader.take(text, at, may_wait=False)
        else:
            self._pending.append(Said(text, at))
            self._characters += len(text)
            if len(self._pending) >= MAX_PENDING or self._characters >= MAX_PENDING_CHARACTERS:
                self._wire.pause_reading()

    def receive_close(self, code: int) -> None:
        """The client leaves. What it asked before that is done first; only for events it does not wait."""
        is_last = not self._pending
        if self._pending is None or (is_last and self._reader.is_following) or self._reader.is_stuck:
            self._wire.answer_close(code)
        else:
            self._pending.append(Said(code, monotonic()))

    def look_again(self) -> None:
        """Redis has gone: some of what waits need not wait any more."""
        if self._pending and self._reader.is_stuck:
            waiting = list(self._pending)
            self._pending.clear()
            self._characters = 0
            for said in waiting:
                self._hear(said)

    def wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` before anything else that the client says."""
        self._pending = self._pending if self._pending is not None else deque()
        # While something waits already, only a renewal of the token leads here: what it changes follows.
        self._task = asyncio.create_task(self._work(self._task, work))
        self._tasks = (*self._tasks, self._task)
        self._task.add_done_callback(lambda _: work.close())  # a task that is cancelled early has not begun it
        if self._reader.is_stuck:
            asyncio.get_running_loop().call_soon(self.look_again)

    def end(self) -> None:
        """Take nothing more."""
        self._pending = None
        self._reader = _NOBODY  # it holds us: each would keep the other until the collector of cycles looks
        # All of them, now: one that goes on would write to a closed socket, or find a place that nobody gives back.
        for task in self._tasks:
            task.cancel()

    def _hear(self, said: Said) -> None:
        if isinstance(said.what, int):
            self.receive_close(said.what)
        else:
            self._receive(said.what, said.at)

    async def _work(self, before: "asyncio.Task[None] | None", work: Coroutine[Any, Any, None]) -> None:
        this = asyncio.current_task()
        assert this is not None
        try:
            if before is not None:
                await asyncio.wait((before,))
            await work
        except Exception:
            self._wire.fail("waiting for a request")
            return
        finally:
            self._tasks = tuple(task for task in self._tasks if task is not this)
            if self._task is this:
                self._task = None
        if self._task is None and not self._reader.is_gone:
            self._go_on()

    def _go_on(self) -> None:
        """Take what came meanwhile, until something waits again."""
        pending, self._pending = self._pending or deque(), None
        try:
            while pending and not self.is_waiting and not self._reader.is_gone:
                self._hear(pending.popleft())
        except Exception:
            self._wire.fail("taking a message that had waited")
            return
        if self.is_waiting:
            self._pending = pending
        else:
            self._characters = 0
            self._wire.resume_reading()


class _Nobody:
    is_gone = True
    is_following = False
    is_stuck = False

    def take(self, text: str, at: float, *, may_wait: bool = True) -> None: ...

    def overtakes(self, text: str) -> bool:
        return False


_NOBODY = _Nobody()
