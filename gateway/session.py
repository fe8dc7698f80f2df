"""One client's conversation. Pure: what it says and the time go in, actions come out; nothing waits here.

    new ──authenticate──▶ Verify ──authenticated──▶ open ──subscribe, ping, …──▶ Follow, Tell, …
     └──── anything else, or too late ──▶ INVALID_TOKEN, Close

Times are seconds of one monotonic clock, `lifetime` is what a token has left.
"""

from collections.abc import Mapping

from broker.filters import Filter
from broker.positions import Position

from .auth import Claims
from .dialects import Dialect
from .messages import (
    Action,
    Asked,
    Authenticate,
    Close,
    Error,
    Follow,
    GapSaid,
    Heartbeat,
    Interest,
    Ping,
    Pong,
    PongSent,
    Request,
    Subscribe,
    Tell,
    Unsubscribe,
    Verify,
)
from .reasons import (
    EVENTS_LOST,
    FORBIDDEN,
    IDLE,
    INVALID_MESSAGE,
    INVALID_TOKEN,
    NOT_TEXT,
    PONG_TIMEOUT,
    TOO_MANY_ERRORS,
    TOO_MANY_SUBSCRIPTIONS,
    Reason,
    Refused,
)
from .settings import Settings

READ_SCOPE = "events:read"


class Session:
    """State of one conversation. `claims` is None until the client has authenticated."""

    __slots__ = (
        "_asked",
        "_dialect",
        "_errors",
        "_expires_at",
        "_heard_at",
        "_interest",
        "_ping_at",
        "_pings",
        "_resumes",
        "_settings",
        "claims",
    )  # fmt: skip

    def __init__(self, dialect: Dialect, settings: Settings, now: float) -> None:
        self._dialect = dialect
        self._settings = settings
        self.claims: Claims | None = None
        self._expires_at = now + settings.auth_seconds
        self._ping_at = now + settings.heartbeat_seconds
        self._heard_at = now
        self._pings = 0  # unanswered in a row
        self._errors = 0  # in a row
        self._asked: dict[Asked, None] = {}  # equal ones count once, the order is theirs
        self._interest: Interest = frozenset()
        self._resumes = False  # has it ever given a position?

    # -- authentication

    def authenticated(self, claims: Claims, lifetime: float, now: float) -> list[Action]:
        """A token was verified: the first, or one that renews."""
        self.claims = claims
        self._expires_at = now + lifetime
        return self._follow()

    def denied(self, reason: Reason = INVALID_TOKEN) -> list[Action]:
        """A token was not accepted. What it was is not repeated."""
        return [Tell(Error(reason, reason.text)), Close(reason)]

    # -- what the client says

    def receive(self, text: str, now: float) -> list[Action]:
        """One text message."""
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
            return self._grant(request)
        except Refused as refused:
            self._errors = before
            return self._refuse(refused)

    def peek(self, text: str) -> Request | None:
        """What a message asks, without taking it; None when it is not understood."""
        try:
            return self._dialect.decode(text)
        except Refused:
            return None

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
        actions: list[Action] = [Tell(Error(refused.reason, refused.detail))]
        if refused.reason.close_code is not None:
            return [*actions, Close(refused.reason)]
        self._errors += refused.reason is INVALID_MESSAGE
        if self._errors >= self._dialect.limits.max_errors_in_row:
            actions.append(Close(TOO_MANY_ERRORS))
        return actions

    def _grant(self, request: Request) -> list[Action]:
        match request:
            case Authenticate(token):
                return [Verify(token)]
            case Subscribe(asked, since):
                return self._subscribe(asked, since)
            case Unsubscribe(asked):
                return self._unsubscribe(asked)
            case Ping():
                return [Tell(PongSent(None))]
            case Pong():
                return []

    # -- subscriptions: parts of one are ANDed, several are ORed

    def _subscribe(self, asked: Asked, since: str | Mapping[str, str] | None) -> list[Action]:
        assert self.claims is not None
        if READ_SCOPE not in self.claims.scope:
            raise Refused(FORBIDDEN, f"The token's scope has no {READ_SCOPE}")
        workspaces = asked.workspaces or self.claims.workspaces
        if not workspaces <= self.claims.workspaces:
            raise Refused(FORBIDDEN)
        positions = self._positions(workspaces, since)
        before = self._interest
        values = sum(len(part or ()) for one in (*self._asked, asked) for part in one.ids)
        if values > self._dialect.limits.max_filter_values:
            allowed = self._dialect.limits.max_filter_values
            raise Refused(INVALID_MESSAGE, f"$.filters: all subscriptions together may name {allowed} ids")
        self._asked[asked] = None
        if len(self._asked) > self._dialect.limits.max_subscriptions:
            raise Refused(TOO_MANY_SUBSCRIPTIONS)
        if positions is None:
            return self._follow()
        self._resumes = True
        self._interest = self._resolve()
        return [Follow(self._interest, frozenset((_filter(asked, workspaces),)), before, positions)]

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

    def _unsubscribe(self, asked: Asked) -> list[Action]:
        """Remove each subscription that, for each given part, asks only for given values. None is split."""
        assert self.claims is not None
        own = self.claims.workspaces
        self._asked = {kept: None for kept in self._asked if not _covers(asked, kept, own)}
        return self._follow()

    def _follow(self) -> list[Action]:
        """The interest that subscriptions and claims make now, if it is another than before."""
        interest = self._resolve()
        if interest == self._interest:
            return []
        self._interest = interest
        return [Follow(interest)]

    def _resolve(self) -> Interest:
        assert self.claims is not None
        if READ_SCOPE not in self.claims.scope:
            return frozenset()
        own = self.claims.workspaces
        named = ((asked, (asked.workspaces or own) & own) for asked in self._asked)
        return frozenset(_filter(asked, workspaces) for asked, workspaces in named if workspaces)

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
        if self.claims is None:
            return self._expires_at
        return min(self._expires_at, self._ping_at, self._heard_at + self._settings.idle_seconds)

    def tick(self, now: float, delivered_at: float) -> list[Action]:
        """What time has brought; `delivered_at` is when an event went out last."""
        if now >= self._expires_at:
            return self.denied()
        if self.claims is None:
            return []
        self._heard_at = max(self._heard_at, delivered_at)
        if now >= self._heard_at + self._settings.idle_seconds:
            return [Close(IDLE)]
        if now < self._ping_at:
            return []
        if self._pings >= self._dialect.limits.max_pings_unanswered:
            return [Close(PONG_TIMEOUT)]
        self._pings += 1
        self._ping_at = now + self._settings.heartbeat_seconds
        return [Heartbeat()]


def _filter(asked: Asked, workspaces: frozenset[str]) -> Filter:
    return Filter(workspaces=workspaces, agents=asked.agents, subjects=asked.subjects, types=asked.types)


def _covers(asked: Asked, kept: Asked, own: frozenset[str]) -> bool:
    """True when `kept` asks, in every part that `asked` gives, only for values that `asked` gives.

    A subscription that names no workspace asks for the token's `own`.
    """
    parts = (
        (asked.workspaces, kept.workspaces or own),
        (asked.agents, kept.agents),
        (asked.subjects, kept.subjects),
        (asked.types, kept.types),
    )
    return all(given is None or (held is not None and held <= given) for given, held in parts)
