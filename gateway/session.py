"""One client's conversation. Pure: what it says and the time go in, actions come out; nothing waits here.

    new ──authenticate──▶ Verify ──authenticated──▶ Enter ──entered──▶ open ──subscribe, ping, …──▶ Follow, Tell, …
     └──── anything else, or too late ──▶ INVALID_TOKEN, Close    └──turned_away──▶ TOO_MANY_CONNECTIONS, Close

Who was let in by its handshake is open from the beginning (`let_in`).
Times are seconds of one monotonic clock, `lifetime` is what a token has left.
"""

from collections.abc import Mapping
from math import ceil

import msgspec

from broker.catalog import CATALOG
from broker.commands import NAMES, Reply
from broker.errors import Invalid
from broker.events import Event, Packed, pack
from broker.filters import Filter
from broker.keyspace import is_id
from broker.limits import Taken, Window
from broker.positions import Position

from .auth import Claims
from .dialects import Dialect
from .limits import Limits
from .messages import (
    Action,
    Answer,
    Asked,
    Authenticate,
    CancelRun,
    Close,
    Command,
    Configure,
    Disconnect,
    Enter,
    Error,
    Execute,
    Expiring,
    Follow,
    GapSaid,
    Heartbeat,
    Interest,
    NearLimit,
    Notice,
    Ping,
    Pong,
    PongSent,
    PoolSaid,
    Publish,
    Refused,
    Request,
    ResumeRuns,
    RunRequest,
    Said,
    Sample,
    Send,
    Settle,
    StartRun,
    StatusSaid,
    Subscribe,
    Take,
    Tell,
    Tune,
    Unsubscribe,
    Verify,
    Welcome,
)
from .reasons import (
    COMMAND_FAILED,
    COMMAND_TIMEOUT,
    EVENTS_LOST,
    FLOOD,
    FORBIDDEN,
    GOODBYE,
    IDLE,
    INVALID_MESSAGE,
    INVALID_TOKEN,
    NOT_TEXT,
    PONG_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_ERRORS,
    TOO_MANY_MESSAGES,
    UNKNOWN_COMMAND,
    Reason,
)
from .settings import Settings

READ_SCOPE = "events:read"
WRITE_SCOPE = "events:write"
COMMAND_SCOPE = "commands:send"
RUN_SCOPE = "runs:start"

# How full a window of messages is when the client is warned.
WARN_AT = 0.95

# Events of which a newer one replaces an older one.
MERGED = frozenset(name for name, kind in CATALOG.items() if not kind.durable)


class Session:
    """State of one conversation. `claims` is None until the client has authenticated."""

    __slots__ = (
        "_dialect",
        "_errors",
        "_expires_at",
        "_followed",
        "_has_entered",
        "_heard_at",
        "_is_warned",
        "_limits",
        "_metrics_seconds",
        "_opened_at",
        "_ping_at",
        "_pings",
        "_refused",
        "_resumes",
        "_sample_at",
        "_settings",
        "_subscriptions",
        "_window",
        "claims",
    )  # fmt: skip

    def __init__(self, dialect: Dialect, limits: Limits, settings: Settings, now: float) -> None:
        self._dialect = dialect
        self._limits = limits
        self._settings = settings
        self.claims: Claims | None = None
        self._has_entered = False
        self._opened_at = now
        self._expires_at = now + settings.auth_seconds
        self._is_warned = not limits.warn_seconds  # that its token expires
        self._ping_at = now + settings.heartbeat_seconds
        self._heard_at = now
        self._pings = 0  # unanswered in a row
        self._errors = 0  # in a row
        self._subscriptions = dialect.subscriptions(limits)
        self._followed: tuple[Interest, Interest] = frozenset(), frozenset()  # followed, and sampled
        self._resumes = False  # has it ever given a position?
        self._metrics_seconds = 0.0  # between two samples; 0: all are delivered
        self._sample_at = 0.0
        self._window: Window | None = None
        self._refused = 0  # messages, in this window

    # -- authentication

    def authenticated(self, claims: Claims, lifetime: float, now: float) -> list[Action]:
        """A token was verified: the first, or one that renews."""
        before, self.claims = self.claims, claims
        if before is not None and (
            claims.subject != before.subject or self._agent_of(claims) != self._agent_of(before)
        ):
            return self.denied()  # whose connection it is, and with whose it is counted, does not change
        self._expires_at = now + lifetime
        self._is_warned = not self._limits.warn_seconds
        if self._has_entered:
            return self._follow()
        return [Enter()] if before is None else []  # one that is looking for its place goes on

    def let_in(self, claims: Claims) -> list[Action]:
        """A key opened its endpoint in the handshake. What happens there it follows as soon as it has a run."""
        self.claims = claims
        self._has_entered = True
        self._expires_at = claims.expires_at
        self._is_warned = True
        assert claims.agent_id is not None
        nothing_yet = Filter(workspaces=claims.workspaces, agents=frozenset((claims.agent_id,)), subjects=frozenset())
        self._followed = frozenset((nothing_yet,)), frozenset()
        return [Follow(self._followed[0])]

    @property
    def agent(self) -> tuple[str, str] | None:
        """The workspace and the id of the agent whose own connection this is."""
        return self._agent_of(self.claims) if self.claims is not None else None

    def _agent_of(self, claims: Claims) -> tuple[str, str] | None:
        if not self._dialect.agents_speak or claims.agent_id is None or WRITE_SCOPE not in claims.scope:
            return None
        if len(claims.workspaces) != 1 or not is_id(claims.agent_id):
            return None  # no agent has such a token
        return next(iter(claims.workspaces)), claims.agent_id

    def denied(self, reason: Reason = INVALID_TOKEN) -> list[Action]:
        """A token was not accepted. What it was is not repeated."""
        return [Tell(Error(reason, reason.text, retry_after=reason.retry_after)), Close(reason)]

    def entered(self, welcome: Welcome, pool: PoolSaid | None) -> list[Action]:
        """It has a place."""
        self._has_entered = True
        return [Tell(welcome), *([Tell(pool)] if pool is not None else [])]

    def turned_away(self, retry_after: float) -> list[Action]:
        """It has none, or has lost it."""
        reason = TOO_MANY_CONNECTIONS
        return [Tell(Error(reason, reason.text, retry_after=retry_after)), Close(reason)]

    # -- what the client says

    def arrive(self, text: str, now: float, *, may_wait: bool = True) -> list[Action]:
        """One text message: count it, then `receive` it. What is refused does not count.

        One that may not wait is not counted among its user's: for that somebody must be asked.
        """
        limit, seconds = self._limits.pace
        if not self._has_entered or (limit is None and self._limits.max_user_messages_per_minute is None):
            return self.receive(text, now)
        actions: list[Action] = []
        if limit is not None:
            if self._window is None:
                self._window = Window(seconds)
            taken = self._window.count(1, limit, now)
            if not taken.is_granted:
                self._refused += 1
                is_flood = self._refused >= limit + self._limits.flood_margin
                return self._refuse_message(text, taken, now, is_flood=is_flood)
            if taken.used == 1:
                self._refused = 0
            actions = _warned(taken, limit, is_users=False)
        if may_wait and self._limits.max_user_messages_per_minute is not None:
            return [*actions, Take(text)]
        return actions + self.receive(text, now)

    def taken(self, text: str, taken: Taken, now: float) -> list[Action]:
        """A message was counted among all of its user's."""
        limit = self._limits.max_user_messages_per_minute
        if not taken.is_granted or limit is None:
            return self._refuse_message(text, taken, now, is_flood=False)
        return _warned(taken, limit, is_users=True) + self.receive(text, now)

    def _refuse_message(self, text: str, taken: Taken, now: float, *, is_flood: bool) -> list[Action]:
        if not is_flood and isinstance(self.peek(text), Authenticate | Disconnect):
            return self.receive(text, now)  # neither costs anybody anything, and without them it would end badly
        self._heard(now)
        if is_flood:
            return [Tell(Error(FLOOD, FLOOD.text, retry_after=taken.resets_in)), Close(FLOOD)]
        reason = TOO_MANY_MESSAGES
        return [Tell(Error(reason, reason.text, self.peek(text), taken.resets_in))]

    def receive(self, text: str, now: float) -> list[Action]:
        """One text message that may be taken."""
        try:
            request = self._dialect.decode(text)
        except Refused as refused:
            self._heard(now)
            return self.denied() if self.claims is None else self._refuse(refused)
        if self.claims is None:
            self._heard(now)
            return [Verify(request.token)] if isinstance(request, Authenticate) else self.denied()
        self._errors, before = 0, self._errors
        self._pings = 0
        if not isinstance(request, Pong):
            self._heard_at = now
        try:
            return self._grant(request, now)
        except Refused as refused:
            self._errors = before
            refused.request = request
            return self._refuse(refused)

    def peek(self, text: str) -> Request | None:
        """What a message asks, without taking it; None when it is not understood."""
        try:
            return self._dialect.decode(text)
        except Refused as refused:
            return refused.request

    def receive_pong(self) -> None:
        """A pong frame: it answers, and says nothing else."""
        self._pings = 0

    def receive_ping(self, now: float) -> None:
        """A ping frame."""
        self._heard(now)

    def receive_binary(self) -> list[Action]:
        return [Close(NOT_TEXT)]

    def _heard(self, now: float) -> None:
        self._heard_at, self._pings = now, 0

    def _refuse(self, refused: Refused) -> list[Action]:
        """Say why; too many in a row are no accident."""
        actions: list[Action] = [Tell(Error(refused.reason, refused.detail, refused.request))]
        if refused.reason.close_code is not None:
            return [*actions, Close(refused.reason)]
        self._errors += refused.reason is INVALID_MESSAGE
        if self._errors >= self._limits.max_errors_in_row:
            actions.append(Close(TOO_MANY_ERRORS))
        return actions

    def _grant(self, request: Request, now: float) -> list[Action]:
        match request:
            case Authenticate(token):
                return [Verify(token)]
            case Subscribe(asked, since):
                return self._subscribe(asked, since)
            case Unsubscribe(asked):
                assert self.claims is not None
                self._subscriptions.unsubscribe(asked, self.claims.workspaces)
                return self._follow(self._subscriptions.confirmed())
            case Configure():
                return self._configure(request, now)
            case Command():
                return self._command(request)
            case StartRun() | CancelRun() | ResumeRuns():
                return self._execute(request)
            case Said():
                return [Publish(request, self._pack(request))]
            case Settle():
                self._own_agent()
                return [Answer(request)]
            case Ping():
                return [Tell(self.pong(now))]
            case Pong():
                return []
            case Disconnect():
                return [Close(GOODBYE)]

    def pong(self, now: float) -> PongSent:
        return PongSent(now - self._opened_at)

    # -- subscriptions

    def _subscribe(self, asked: Asked, since: str | Mapping[str, str] | None) -> list[Action]:
        assert self.claims is not None
        own = self.claims.workspaces
        if READ_SCOPE not in self.claims.scope:
            raise Refused(FORBIDDEN, f"The token's scope has no {READ_SCOPE}")
        workspaces = asked.workspaces or own
        if not workspaces <= own:
            raise Refused(FORBIDDEN)
        positions = self._positions(workspaces, since)
        self._subscriptions.subscribe(asked)
        said = self._subscriptions.confirmed()
        if positions is None:
            return self._follow(said)
        self._resumes = True
        (before, _), self._followed = self._followed, self._resolve()
        interest, sampled = self._followed
        fresh = self._subscriptions.alone(asked, own)
        return [Follow(interest, fresh, before, positions, sampled, said)]

    def _positions(self, workspaces: frozenset[str], since: str | Mapping[str, str] | None) -> Mapping[str, str] | None:
        """The positions to resume from, by workspace."""
        assert self.claims is not None
        if since is None:
            return None
        if isinstance(since, str):
            if len(workspaces) > 1:
                raise Refused(
                    INVALID_MESSAGE, "$.since: expected an object {workspace_id: position} for several workspaces"
                )
            return dict.fromkeys(workspaces, since)
        if not since.keys() <= self.claims.workspaces:
            raise Refused(FORBIDDEN, "$.since: the token does not name this workspace")
        return since

    def _follow(self, said: Notice | None = None) -> list[Action]:
        """What subscriptions and claims make now, if it is another than before; then `said`."""
        followed = self._resolve()
        if followed == self._followed:
            return [Tell(said)] if said is not None else []
        self._followed = followed
        interest, sampled = followed
        return [Follow(interest, sampled=sampled, said=said)]

    def _resolve(self) -> tuple[Interest, Interest]:
        """What is delivered as it comes, and what is sampled."""
        assert self.claims is not None
        if READ_SCOPE not in self.claims.scope:
            return frozenset(), frozenset()
        interest = self._subscriptions.interest(self.claims.workspaces)
        return _parted(interest) if self._metrics_seconds else (interest, frozenset())

    def _configure(self, asked: Configure, now: float) -> list[Action]:
        actions: list[Action] = []
        if asked.buffer_events is not None or asked.is_compressed is not None:
            actions.append(Tune(asked.buffer_events, asked.is_compressed))
        if asked.metrics_seconds is not None:
            self._metrics_seconds = asked.metrics_seconds
            self._sample_at = now + asked.metrics_seconds
            actions += self._follow()
        return actions

    # -- commands

    def _command(self, command: Command) -> list[Action]:
        assert self.claims is not None
        own = self.claims.workspaces
        if COMMAND_SCOPE not in self.claims.scope:
            raise Refused(FORBIDDEN, f"The token's scope has no {COMMAND_SCOPE}")
        if command.workspace is not None and command.workspace not in own:
            raise Refused(FORBIDDEN, "$.data.workspace_id: the token does not name this workspace")
        if command.name not in NAMES:
            raise Refused(UNKNOWN_COMMAND, f"$.data.command: expected one of {', '.join(NAMES)}")
        return [Send(command, own if command.workspace is None else frozenset((command.workspace,)))]

    def unsent(self, command: Command, reason: Reason, detail: str = "") -> list[Action]:
        """A command did not reach its agent."""
        return [Tell(Error(reason, detail or reason.text, command))]

    def replied(self, command: Command, reply: Reply) -> list[Action]:
        """What became of a command. Only who asks for a status hears of success: the rest shows in events."""
        if reply.outcome == "failed":
            return self.unsent(command, COMMAND_FAILED._replace(code=reply.code or COMMAND_FAILED.code), reply.message)
        if reply.outcome == "timeout":
            return self.unsent(command, COMMAND_TIMEOUT)
        if command.name != "get_status":
            return []
        status = reply.result or {}
        if not isinstance(status.get("new_status"), str):
            return self.unsent(command, COMMAND_FAILED, "The agent did not tell its status")
        return [Tell(StatusSaid(command.agent, status))]

    # -- what an agent says

    def _own_agent(self) -> tuple[str, str]:
        """Raises `Refused` for everybody else."""
        if self.agent is None:
            raise Refused(INVALID_MESSAGE, f"$.type: only an agent's own token with {WRITE_SCOPE} may say this")
        return self.agent

    def _pack(self, said: Said) -> Packed:
        """The event of this agent that it says. Raises `Refused`."""
        workspace, agent = self._own_agent()
        for name, own in (("agent_id", agent), ("workspace_id", workspace)):
            if said.fields.get(name, own) != own:
                raise Refused(FORBIDDEN, f"$.{name}: the token is for another")
        event = Event(
            type=said.kind, workspace_id=workspace, agent_id=agent, data=said.fields, timestamp=said.timestamp
        )
        try:
            return pack(event)
        except Invalid as error:
            path = error.path if said.is_nested else error.path.replace("$.data", "$", 1)
            raise Refused(INVALID_MESSAGE, f"{path}: {error.reason}") from None

    # -- runs

    def _execute(self, request: RunRequest) -> list[Action]:
        assert self.claims is not None
        if RUN_SCOPE not in self.claims.scope:
            raise Refused(FORBIDDEN, f"The key's scope has no {RUN_SCOPE}")
        self._resumes |= isinstance(request, ResumeRuns)
        return [Execute(request)]

    def refused(self, request: Request, reason: Reason, detail: str = "") -> list[Action]:
        """What was asked about runs, or said by an agent, cannot be."""
        return self._refuse(Refused(reason, detail, request))

    # -- what became of its events

    def gap(self, workspace: str, since: Position, oldest: str | None, *, is_reset: bool) -> list[Action]:
        """Events were lost for good. A client that resumes is told; to others only the end of the connection says so.

        After a reset nothing is known to be missing: a client that keeps no positions loses nothing by staying.
        """
        if self._resumes:
            return [Tell(GapSaid(workspace, since, oldest))]
        return [] if is_reset else [Close(EVENTS_LOST)]

    # -- time

    def due(self) -> float:
        """When `tick` is needed next."""
        if not self._has_entered:
            # Not as late as its token may end: the wheel keeps who has gone until the latest moment that it was told.
            return min(self._expires_at, self._ping_at)
        due = min(self._expires_at if self._is_warned else self._expires_at - self._limits.warn_seconds, self._ping_at)
        if not self._limits.may_idle:
            due = min(due, self._heard_at + self._settings.idle_seconds)
        return min(due, self._sample_at) if self._followed[1] else due

    def tick(self, now: float, delivered_at: float) -> list[Action]:
        """What time has brought; `delivered_at` is when an event went out last."""
        if now >= self._expires_at:
            return self.denied()
        if not self._has_entered:  # the greeting comes first
            return []
        self._heard_at = max(self._heard_at, delivered_at)
        if not self._limits.may_idle and now >= self._heard_at + self._settings.idle_seconds:
            return [Close(IDLE)]
        actions: list[Action] = []
        if not self._is_warned and now >= self._expires_at - self._limits.warn_seconds:
            self._is_warned = True
            actions.append(Tell(Expiring(self._expires_at - now)))
        if self._followed[1] and now >= self._sample_at:
            self._sample_at = now + self._metrics_seconds
            actions.append(Sample())
        if now >= self._ping_at:
            if self._pings >= self._limits.max_pings_unanswered:
                return [Close(PONG_TIMEOUT)]
            self._pings += 1
            self._ping_at = now + self._settings.heartbeat_seconds
            actions.append(Heartbeat())
        return actions


def _warned(taken: Taken, limit: int, *, is_users: bool) -> list[Action]:
    """Warn once in a window: counts go up by one, so exactly one of them is the first at the mark."""
    if taken.used != ceil(limit * WARN_AT):
        return []
    return [Tell(NearLimit(taken.used, limit, taken.resets_in, is_users))]


def _parted(interest: Interest) -> tuple[Interest, Interest]:
    """What is delivered as it comes, and what may be merged to the newest."""
    kept: set[Filter] = set()
    sampled: set[Filter] = set()
    for wanted in interest:
        types = CATALOG.keys() if wanted.types is None else wanted.types
        for part, filters in ((types - MERGED, kept), (types & MERGED, sampled)):
            if part:
                filters.add(msgspec.structs.replace(wanted, types=frozenset(part)))
    return frozenset(kept), frozenset(sampled)
