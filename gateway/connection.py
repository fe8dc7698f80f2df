"""One client: performs what its session decides. All that waits for somebody waits here."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.lines import Gap

from . import frames
from .auth import Claims, Denied, UnknownKey, bearer
from .dialects import Dialect, Variant
from .hub import Write, agents_of, wants
from .messages import (
    Action,
    Authenticate,
    Close,
    Complete,
    Follow,
    Heartbeat,
    Interest,
    Ping,
    PingSent,
    PongSent,
    Tell,
    Verify,
)
from .reasons import BUG, INVALID_TOKEN, SLOW_CONSUMER, Reason
from .session import Session

if TYPE_CHECKING:
    from .node import Node
    from .wire import Wire

logger = logging.getLogger("trunkline.connection")

MAX_PENDING = 32

_PING = frames.ping()


class Admission(NamedTuple):
    """What the handshake told: who speaks, in which form it wants events, and the token if it brought one."""

    dialect: Dialect
    variant: Variant
    token: str | None


class Connection:
    """A session, its socket and its place in the hub.

    What the client says is taken in order: while one message waits for somebody (a key set, a subscription in Redis, a
    replay), the next ones wait in `_pending`; when those are many, the socket is not read.
    """

    __slots__ = (
        "_denied_for",
        "_is_gone",
        "_node",
        "_pending",
        "_task",
        "_variant",
        "_wants",
        "_wire",
        "dialect",
        "interest",
        "session",
        "wheel_tick",
    )

    def __init__(self, node: "Node", wire: "Wire", admission: Admission, now: float) -> None:
        self._node = node
        self._wire = wire
        self.dialect = admission.dialect
        self._variant = admission.variant
        self.session = Session(admission.dialect, node.settings, now)
        self.interest: Interest = frozenset()
        self._wants = wants(frozenset())
        self._pending: deque[str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_gone = False
        self._denied_for = ""
        self.wheel_tick = -1

    @property
    def write(self) -> Write:
        """The transport's own: the hub calls it for every delivery."""
        return self._wire.write

    # -- what the socket brings

    def start(self, token: str | None) -> None:
        """The handshake is done; `token` came with it."""
        self._node.wheel.put(self, self.session.due())
        if token is not None:
            self.verify(token)

    def receive(self, text: str) -> None:
        if self._pending is not None:
            request = self.session.peek(text) if self.session.claims is not None else None
            if isinstance(request, Ping) and not self._node.feed.is_connected:
                # Redis is away, and nobody knows how long: at least say that we are here.
                self._say(self.dialect.say(PongSent(None)))
                return
            if isinstance(request, Authenticate):
                # A token renewed in time must not expire while it waits.
                self.perform(self.session.receive(text, self._node.now()))
                return
            self._pending.append(text)
            if len(self._pending) >= MAX_PENDING:
                self._wire.pause_reading()
        else:
            self.perform(self.session.receive(text, self._node.now()))

    def receive_ping(self) -> None:
        self.session.receive_ping(self._node.now())

    def receive_pong(self) -> None:
        self.session.receive_pong()

    def receive_binary(self) -> None:
        self.perform(self.session.receive_binary())

    def too_slow(self) -> None:
        self._node.metrics.slow_consumers.add(self.dialect.name)
        self.close(SLOW_CONSUMER)

    # -- what the node brings

    def tick(self, now: float) -> None:
        """Time has come for the session."""
        if self._is_gone:
            return
        if self._pending is not None:
            self.session.receive_pong()  # it is us who do not read: silence is no fault of the client's
        self.perform(self.session.tick(now, self._node.hub.delivered_at(self)))

    def gap(self, gap: Gap) -> None:
        """Events of what this client watches are lost for good."""
        self.perform(self.session.gap(gap.workspace, gap.since, gap.oldest, is_reset=gap.is_reset))

    # -- actions

    def perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if self._is_gone:
                return
            match action:
                case Tell(notice):
                    if isinstance(notice, PongSent):
                        notice = PongSent(self._complete())
                    self._say(self.dialect.say(notice))
                case Follow():
                    self._follow(action)
                case Heartbeat():
                    self._wire.write(_PING)
                    self._say(self.dialect.say(PingSent(self._complete())))
                case Verify(token):
                    self.verify(token)
                case Close(reason):
                    if reason is INVALID_TOKEN:
                        otherwise = "missing" if self.session.claims is None else "expired"
                        self._node.metrics.auth_failures.add(self._denied_for or otherwise)
                    self.close(reason)
        if not self._is_gone:
            self._node.wheel.put(self, self.session.due())

    def verify(self, token: str) -> None:
        """Check a token, and tell the session."""
        try:
            claims = self._node.verifier.verify(bearer(token), time.time())
        except Denied as denied:
            self._denied(denied)
        except UnknownKey:
            self._wait(self._verify_with_new_keys(token))
        else:
            self._authenticated(claims)

    async def _verify_with_new_keys(self, token: str) -> None:
        await self._node.verifier.refresh()
        try:
            claims = self._node.verifier.verify(bearer(token), time.time())
        except (Denied, UnknownKey) as error:
            self._denied(error if isinstance(error, Denied) else Denied("key"))
        else:
            self._authenticated(claims)

    def _authenticated(self, claims: Claims) -> None:
        now = self._node.now()
        self.perform(self.session.authenticated(claims, claims.expires_at - time.time(), now))

    def _denied(self, denied: Denied) -> None:
        self._denied_for = denied.cause
        logger.debug("a token was not accepted: %s", denied.cause)
        self.perform(self.session.denied())

    def fail(self) -> None:
        """A bug of ours, told elsewhere, ends this connection."""
        self.close(BUG)

    def close(self, reason: Reason) -> None:
        if not self._is_gone:
            self._wire.close(reason.close_code or frames.NORMAL_CLOSURE, reason.text)

    def _say(self, words: bytes | None) -> None:
        if words is not None:
            self._wire.write(frames.text(words))

    # -- following an interest

    def _follow(self, follow: Follow) -> None:
        """Deliver what `follow` says: at once when all its channels are joined, else as soon as they are."""
        needed = wants(follow.interest)
        logger.debug("a client follows %d filters on %d channels", len(follow.interest), len(needed))
        joined = self._node.feed.want(needed - self._wants)
        self._node.feed.unwant(self._wants - needed)
        self._wants = needed
        if follow.since is not None:
            self._wait(self._node.replays.resume(self, self._variant, follow, joined))
        elif joined is not None:
            self._wait(self._follow_later(follow.interest, joined))
        else:
            self.place(follow.interest)

    async def _follow_later(self, interest: Interest, joined: "asyncio.Future[None]") -> None:
        await joined
        self.place(interest)

    def place(self, interest: Interest) -> None:
        """From now on this is what is delivered."""
        if not self._is_gone:
            self.interest = interest
            self._node.hub.place(self, self._variant, interest, self._node.now())

    def _complete(self) -> Complete:
        """Up to where this connection has all it asked for: one position, or one for each workspace of its token."""
        claims = self.session.claims
        if claims is None or not self.interest or self.is_waiting:
            return None  # while something is under way nobody can say
        positions: dict[str, str] = {}
        for workspace in {workspace for wanted in self.interest for workspace in wanted.workspaces}:
            position = self._node.feed.position(workspace, agents_of(self.interest, workspace))
            if position is not None:
                positions[workspace] = position
        if len(claims.workspaces) > 1:
            return positions
        return next(iter(positions.values()), None)

    # -- waiting

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` before anything else that the client says."""
        if self._task is not None:
            # Only a renewal of the token leads here: it is taken while nothing else waits, and what it changes follows.
            work = _in_turn(self._task, work)
        self._pending = self._pending if self._pending is not None else deque()
        self._task = asyncio.create_task(self._work(work))

    async def _work(self, work: Coroutine[Any, Any, None]) -> None:
        this = asyncio.current_task()
        try:
            await work
        except Exception:
            self._wire.fail("waiting for a request")
            return
        finally:
            if self._task is this:
                self._task = None
        if self._task is None and not self._is_gone:
            self._go_on()

    def _go_on(self) -> None:
        """Take what came meanwhile, until something waits again."""
        pending, self._pending = self._pending or deque(), None
        try:
            while pending and not self.is_waiting and not self._is_gone:
                self.perform(self.session.receive(pending.popleft(), self._node.now()))
        except Exception:
            self._wire.fail("taking a message that had waited")
            return
        if self.is_waiting:
            self._pending = pending
        else:
            self._wire.resume_reading()

    @property
    def is_waiting(self) -> bool:
        """True while a request waits for somebody, and the next ones for it."""
        return self._pending is not None

    async def drained(self) -> bool:
        """Wait until what was written has mostly left. False when the client is gone, or takes nothing for too long."""
        bound = self._node.settings.max_backlog_bytes // 8
        deadline, least = self._node.now() + self._node.settings.slow_close_seconds, self._wire.backlog
        while not self._is_gone and (backlog := self._wire.backlog) > bound:
            if backlog < least:
                deadline, least = self._node.now() + self._node.settings.slow_close_seconds, backlog
            elif self._node.now() > deadline:
                self.too_slow()
                break
            await asyncio.sleep(0.01)
        return not self._is_gone

    @property
    def is_full(self) -> bool:
        """True when a replay should let it drain first."""
        return self._wire.backlog > self._node.settings.max_backlog_bytes // 4

    @property
    def is_gone(self) -> bool:
        return self._is_gone

    # -- leaving

    def leave(self) -> None:
        """Nothing more is delivered, nothing more is taken."""
        if self._is_gone:
            return
        self._is_gone = True
        self._node.hub.remove(self)
        self._node.feed.unwant(self._wants)
        self._node.wheel.remove(self)
        if self._task is not None:
            self._task.cancel()

    def lost(self, code: int) -> None:
        """The socket is closed."""
        self.leave()
        self._node.disconnected(self, code)


async def _in_turn(first: "asyncio.Task[None]", then: Coroutine[Any, Any, None]) -> None:
    await asyncio.wait((first,))
    await then
