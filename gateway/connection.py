"""One client: performs what its session decides."""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.commands import Command as Order
from broker.commands import Reply
from broker.lines import Gap

from . import frames, places
from .auth import Claims, Denied, UnknownKey, bearer, check_fingerprint, digest
from .dialects import Dialect, Variant
from .door import Entry
from .following import Following
from .groups import Count, Watch, Write
from .inbox import Inbox
from .limits import MINUTE, UNLIMITED, Limits
from .messages import (
    Action,
    Answer,
    Authenticate,
    Close,
    Command,
    Complete,
    Configure,
    Confirmed,
    Enter,
    Error,
    Execute,
    Farewell,
    Follow,
    Heartbeat,
    Interest,
    Knock,
    Notice,
    Ordered,
    PingSent,
    PongSent,
    PoolSaid,
    Publish,
    Request,
    ResumeRuns,
    RunRequest,
    Sample,
    Send,
    Subscribe,
    Take,
    Tell,
    Tune,
    Unsubscribe,
    Verify,
    Welcome,
)
from .reasons import (
    BUG,
    INVALID_TOKEN,
    KEY_REVOKED,
    SLOW_CONSUMER,
    UNAVAILABLE,
    Reason,
)
from .session import Session

if TYPE_CHECKING:
    from .node import Node
    from .wire import Wire

logger = logging.getLogger("trunkline.connection")

_PING = frames.ping()


class Admission(NamedTuple):
    """What the handshake told: who speaks, from where, in which form it wants events; the token if it brought one.

    Who brings a key instead knocks with it, and has an entry once it is let in.
    """

    dialect: Dialect
    variant: Variant
    token: str | None
    address: str
    fingerprint: str | None = None
    version: str | None = None
    may_deflate: bool = False
    knock: Knock | None = None
    entry: Entry | None = None


class Connection:
    """A session, its socket, its inbox and what it follows."""

    __slots__ = (
        "_address",
        "_denied_for",
        "_fingerprint",
        "_following",
        "_inbox",
        "_is_gone",
        "_key",
        "_lease",
        "_node",
        "_wire",
        "dialect",
        "session",
        "wheel_tick",
    )

    def __init__(self, node: "Node", wire: "Wire", admission: Admission, now: float) -> None:
        self._node = node
        self._wire = wire
        self.dialect = admission.dialect
        deflated = admission.dialect.deflated if admission.may_deflate else None
        self._following = Following(node, admission.variant, deflated)
        self._address = admission.address
        self._fingerprint = admission.fingerprint
        self.session = Session(admission.dialect, self._limits, node.settings, now)
        self._lease: str | None = None
        self._key: str | None = None  # the id of the key that let it in
        self._inbox = Inbox(wire, self)
        self._is_gone = False
        self._denied_for = ""
        self.wheel_tick = -1

    @property
    def write(self) -> Write:
        """The transport's own: the hub calls it for every delivery."""
        return self._wire.write

    @property
    def count(self) -> Count | None:
        """Heard by the hub of a client that has bounded what may wait for it."""
        return partial(self._following.count, self) if self._following.buffer is not None else None

    @property
    def _limits(self) -> Limits:
        return self._node.limits[self.dialect.name]

    # -- what the socket brings

    def start(self, admission: Admission) -> None:
        """The handshake is done."""
        self._node.wheel.put(self, self.session.due())
        if admission.entry is not None:
            self._let_in(admission.entry)
        elif admission.token is not None:
            self.verify(admission.token)
        elif not self.dialect.token_later:
            self.perform(self.session.denied())

    def receive(self, text: str) -> None:
        self._inbox.receive(text)

    def receive_close(self, code: int) -> None:
        self._inbox.receive_close(code)

    def wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` before anything else that the client says."""
        self._inbox.wait(work)

    def take(self, text: str, at: float, *, may_wait: bool = True) -> None:
        """Do what a message asks that came `at`."""
        self.perform(self.session.arrive(text, at, may_wait=may_wait))

    def overtakes(self, text: str) -> bool:
        """True for a message that must not wait for those before it."""
        if self.session.claims is None:
            return False
        request = self.session.peek(text)
        if isinstance(request, Authenticate):
            return True  # a token renewed in time must not expire while it waits
        # What waits for Redis may wait for long: what does not build on it is answered.
        return self.is_stuck and not isinstance(request, Subscribe | Unsubscribe | Configure | ResumeRuns)

    @property
    def is_following(self) -> bool:
        """True while a change of what is delivered is under way."""
        return self._following.changes > 0

    @property
    def is_stuck(self) -> bool:
        """True while such a change waits for a Redis that is away."""
        return self.is_following and not self._node.has_redis

    @property
    def is_waiting(self) -> bool:
        """True while a request waits for somebody, and the next ones for it."""
        return self._inbox.is_waiting

    def look_again(self) -> None:
        """Redis has gone: some of what waits need not wait any more."""
        self._inbox.look_again()

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
        if self.is_waiting:
            self.session.receive_pong()  # it is us who do not read: silence is no fault of the client's
        self.perform(self.session.tick(now, self._node.hub.delivered_at(self)))

    def gap(self, gap: Gap) -> None:
        """Events of what this client watches are lost for good."""
        if self.watch is not None and not self.watch.runs:
            return  # it waits for none
        is_harmless = gap.is_reset and self.watch is None  # with its history Redis has lost the runs
        self.perform(self.session.gap(gap.workspace, gap.since, gap.oldest, is_reset=is_harmless))
        if self.watch is not None:
            self._node.executions.missed(self.watch)

    # -- actions

    def perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if self._is_gone:
                return
            self._perform(action)
        if not self._is_gone:
            self._node.wheel.put(self, self.session.due())

    def _perform(self, action: Action) -> None:
        match action:
            case Tell(notice):
                self.tell(notice)
            case Follow():
                self._following.follow(self, action)
            case Sample():
                self._node.hub.take_sample(self, self._node.now())
            case Heartbeat():
                self._wire.write(_PING)
                self.say(PingSent(self._complete))
            case Take(text):
                self.wait(self._take(text))
            case Send(command, workspaces):
                self._send(command, workspaces)
            case Execute(request):
                self._execute(request)
            case Publish(said, packed):
                self.wait(self._node.residents.publish(self, said, packed))
            case Answer(settle):
                self.wait(self._node.residents.settle(self, settle))
            case Tune():
                self._following.tune(self, action)
            case Verify(token):
                self.verify(token)
            case Enter():
                self._enter()
            case Close(reason):
                if reason is INVALID_TOKEN:
                    otherwise = "missing" if self.session.claims is None else "expired"
                    self._node.metrics.auth_failures.add(self._denied_for or otherwise)
                self.close(reason)

    # -- who it is

    def verify(self, token: str) -> None:
        """Check a token, and tell the session."""
        try:
            claims = self._node.verifier.verify(bearer(token), time.time())
        except Denied as denied:
            self._denied(denied)
        except UnknownKey:
            self.wait(self._verify_with_new_keys(token))
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
        try:
            check_fingerprint(claims, self._fingerprint)
        except Denied as denied:
            self._denied(denied)
            return
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
            self.say(Farewell(reason))
            self._wire.close(reason.close_code or frames.NORMAL_CLOSURE, reason.text)

    def tell(self, notice: Notice) -> None:
        """Say it with what only this connection knows."""
        match notice:
            case PongSent() | Confirmed():
                notice = notice._replace(complete=self._complete)
            case Error(request=request):
                given = request.request_id if isinstance(request, Command) else None
                notice = notice._replace(reference=given or _request_id())
        self.say(notice)

    def say(self, notice: Notice) -> None:
        """Say it as it is."""
        words = self.dialect.say(notice, time.time())
        if words is not None:
            self._wire.write(self._following.variant.frame(words))

    @property
    def _complete(self) -> Complete:
        """Up to where this connection has all it asked for."""
        claims = self.session.claims
        return self._following.complete(claims.workspaces) if claims is not None else None

    # -- its place among others

    def _enter(self) -> None:
        """Find a place, where connections are counted."""
        claims = self.session.claims
        assert claims is not None
        wanted = places.wanted(self.dialect.name, self._limits, claims.user, self._address)
        if wanted:
            self._lease = secrets.token_hex(8)
            self._node.leased[self._lease] = self
            self.wait(self._find_place(self._lease, wanted))
        else:
            self._entered(None)

    async def _find_place(self, lease: str, wanted: places.Wanted) -> None:
        verdict = await self._node.leases.admit(lease, *wanted)
        if verdict.is_admitted:
            self._entered(verdict.counts[0] if verdict.counts else None)
        else:
            self._node.metrics.refused.add(self.dialect.name, places.limit_name(verdict.full))
            self.perform(self.session.turned_away(verdict.retry_after))

    def _entered(self, active: int | None) -> None:
        claims, allowed = self.session.claims, self._limits.max_connections_per_user
        assert claims is not None
        client = digest(f"{claims.user} {self._fingerprint or ''}")[:12]
        pool = None
        if active is not None and allowed is not None:
            name = digest(f"{self.dialect.name} {claims.user}")[:12]
            pool = PoolSaid(f"pool_{name}", active, allowed if allowed < UNLIMITED else None)
        self.perform(self.session.entered(Welcome(f"client_{client}", f"session_{secrets.token_hex(8)}"), pool))
        if self.session.agent is not None:
            self.wait(self._node.residents.come(self, *self.session.agent))

    def lose_place(self) -> None:
        """Its lease had ended before it could be renewed, and others have taken its place."""
        self.perform(self.session.turned_away(MINUTE))

    def _let_in(self, entry: Entry) -> None:
        """A key has opened its endpoint."""
        claims = entry.claims
        assert claims.agent_id is not None
        (workspace,) = claims.workspaces
        if entry.lease is not None:
            self._lease = entry.lease
            self._node.leased[entry.lease] = self
        self._following.watch_runs(workspace, claims.agent_id)
        self.perform(self.session.let_in(claims))
        self._key = claims.subject
        self._node.door.enter(self, claims.subject)

    def revoke(self) -> None:
        """The key that let it in is revoked."""
        self.close(KEY_REVOKED)

    async def _take(self, text: str) -> None:
        """Count a message among all of its user's."""
        claims, limit = self.session.claims, self._limits.max_user_messages_per_minute
        assert claims is not None
        assert limit is not None
        taken = await self._node.windows.take(f"{self.dialect.name}:{claims.user}", limit, MINUTE)
        self.perform(self.session.taken(text, taken, self._node.now()))

    # -- commands

    def _send(self, command: Command, workspaces: frozenset[str]) -> None:
        claims = self.session.claims
        assert claims is not None
        named = command._replace(request_id=command.request_id or _request_id())
        if self.is_stuck:
            self.unsent(named, UNAVAILABLE, "")  # done late, it would be a surprise
            return
        self.wait(self._node.orders.send(self, named, workspaces, claims.subject))

    def unsent(self, command: Command, reason: Reason, detail: str) -> None:
        """A command has not reached its agent."""
        self.perform(self.session.unsent(command, reason, detail))

    def replied(self, command: Command, reply: Reply) -> None:
        """An agent has settled a command of this client, or has let its time pass."""
        self.perform(self.session.replied(command, reply))

    # -- runs

    def _execute(self, request: RunRequest) -> None:
        watch = self._following.watch
        assert watch is not None
        if self.is_stuck or not (self._node.is_redis_up or isinstance(request, ResumeRuns)):
            self._node.executions.refuse(self, request, UNAVAILABLE)  # done late, it would be a surprise
        else:
            self.wait(self._node.executions.perform(self, watch, request))

    async def catch_up(self, runs: Mapping[str, float], since: str, *, is_checked: bool = False) -> None:
        """Follow these runs, each with its deadline, from the position `since` on."""
        await self._following.catch_up(self, runs, since, is_checked=is_checked)

    def refused(self, request: Request, reason: Reason, detail: str) -> None:
        """What was asked about runs, or said by an agent, cannot be."""
        self.perform(self.session.refused(request, reason, detail))

    # -- of an agent's own

    def order(self, command: Order) -> None:
        """Its agent is to do this."""
        if not self._is_gone:
            self.say(Ordered(command))

    def dismiss(self) -> None:
        """There is no such agent any more: its token is none."""
        self._denied_for = "deleted"
        if not self._is_gone:
            self.perform(self.session.denied())

    # -- what it is delivered

    def place(self, interest: Interest) -> None:
        """A replay has ended: from now on this is what is delivered."""
        self._following.place(self, interest)

    @property
    def backlog(self) -> int:
        """Bytes that wait for this client."""
        return self._wire.backlog

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
    def watch(self) -> Watch | None:
        """Its runs, where it follows runs."""
        return self._following.watch

    @property
    def is_full(self) -> bool:
        """True when a replay should let it drain first."""
        return self._wire.backlog > self._node.settings.max_backlog_bytes // 4

    def may_see(self, workspace: str) -> bool:
        """True when its token, the newest one, names the workspace."""
        return self.session.claims is not None and workspace in self.session.claims.workspaces

    @property
    def is_gone(self) -> bool:
        return self._is_gone

    # -- leaving

    def leave(self) -> None:
        """Nothing more is delivered, nothing more is taken."""
        if self._is_gone:
            return
        self._is_gone = True
        self._following.end(self)
        self._node.wheel.remove(self)
        self._inbox.end()

    def lost(self, code: int) -> None:
        """The socket is closed."""
        self.leave()
        # Whom a restart of ours sends away may come back at once.
        self.give_back(refund=self._node.is_draining and code == frames.SERVICE_RESTART)
        self._node.residents.leave(self)
        if self._key is not None:
            self._node.door.leave(self, self._key)
        self._node.disconnected(self, code)

    def give_back(self, *, refund: bool = False) -> None:
        """Its place is another's, and with `refund` its admission too. To do so again changes nothing."""
        if self._lease is not None:
            self._node.leased.pop(self._lease, None)
            self._node.leases.release(self._lease, refund=refund)


def _request_id() -> str:
    return f"req_{secrets.token_hex(6)}"
