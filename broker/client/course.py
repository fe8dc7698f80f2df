"""The course of a watch over its connections. Pure: what happened and the time go in, what to say and to wait come out.

    present a token ──▶ open: subscribe, ping ──▶ receive … ──▶ lost ──▶ wait ──▶ present …
                                     └── nothing comes: a ping ── and again nothing: lost

Confirmed  The pong to our first ping comes when all that was missed has come, and says up to where that is. If we had
           no position to come with, we subscribe again from there: only who resumes is told of a gap.
Lost       Everything that may pass is tried again: with what the gateway asks us to wait (`Retry-After`, a minute at
           most), and full jitter over a bound that doubles, so that those who lost one node do not come back together.
Ended      What does not pass by itself is raised: a token, a filter, an address that is none.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from ..errors import Invalid, TrunklineError, Unavailable
from ..events import Event
from ..lines import Gap
from .places import Places
from .words import PING, PONG, Asked, Error, Ping, Pong, read, subscribe

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 15.0
# Whoever asks for more (a proxy's page of an hour's maintenance) would keep us away from a gateway that is back.
LONGEST_RETRY_AFTER_SECONDS = 60.0

_MESSAGE_TOO_BIG = 1009
# Of what HTTP calls the client's fault, these may pass.
_MAY_PASS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


class Denied(TrunklineError):  # noqa: N818
    """The gateway does not accept the token, or the token does not allow what is watched."""


class Lost(NamedTuple):
    """How a connection ended (`close_code`), or why there was none (HTTP `status`); the `reason` is for people."""

    reason: str
    close_code: int | None = None
    status: int | None = None
    retry_after: float = 0.0


class Heard(NamedTuple):
    """What a message brings its watcher, and what to say to it."""

    item: Event | Gap | None = None
    reply: str | None = None


class Course:
    """One watch. Times are seconds of one monotonic clock."""

    def __init__(
        self, asked: Asked, since: str | Mapping[str, str] | None, patience_seconds: float | None, now: float
    ) -> None:
        self._asked = asked
        self._places = Places(since, asked.workspaces)
        self._patience = patience_seconds
        self._away_since = now
        self.attempts = 0  # in a row, that were not confirmed
        self._token = ""
        self._refused: set[str] = set()  # tokens, since one was accepted
        self._resumes = False  # this connection has been given a position
        self._is_confirmed = False
        self._is_quiet = False

    def present(self, token: str) -> str:
        """The token for the next connection. Raises `Denied` when it was refused, or another was after the first."""
        if not (token.isascii() and token.isprintable() and token):
            raise Invalid("token", "expected ASCII characters in one line")
        if len(self._refused) > 1 or token in self._refused:
            raise Denied("the gateway does not accept the token: it has expired, or is not for this gateway")
        self._token = token
        return token

    def open(self) -> list[str]:
        """What to say on a new connection."""
        self._resumes = self._places.since is not None
        self._is_quiet = False
        return [subscribe(self._asked, self._places.since), PING]

    def receive(self, text: str | bytes) -> Heard:
        """One message. Raises `NoMessage`, `Denied` or `Invalid`: what is watched cannot be."""
        self._is_quiet = False
        match read(text, self._asked.agents):
            case Error(code, reason):
                self._hear_error(code, reason)
                return Heard()
            case Event() as event:
                self._confirm()
                if event.id is not None and not self._places.take(event.workspace_id, event.id):
                    return Heard()
                return Heard(event)
            case Gap() as gap:
                return Heard(gap if self._places.lose(gap.workspace) else None)
            case Ping(complete):
                self._places.complete(complete)
                return Heard(reply=PONG)
            case Pong(complete) if complete is not None:
                self._confirm()
                self._places.complete(complete)
                if not self._resumes:
                    self._resumes = True
                    return Heard(reply=subscribe(self._asked, self._places.since))
        return Heard()

    def _confirm(self) -> None:
        self._is_confirmed = True
        self._refused.clear()

    def _hear_error(self, code: str, reason: str) -> None:
        if code == "INVALID_TOKEN":
            self._refused.add(self._token)  # the end of the connection follows
        elif code == "FORBIDDEN":
            raise Denied(reason)
        elif code in ("INVALID_MESSAGE", "TOO_MANY_SUBSCRIPTIONS"):
            path, _, rest = reason.partition(": ")
            raise Invalid(path if rest else "filters", rest or reason)

    def quiet(self) -> str | None:
        """Nothing has come for a while: what to ask then. None: nobody has answered that, the connection is dead."""
        if self._is_quiet:
            return None
        self._is_quiet = True
        return PING

    def lost(self, lost: Lost, now: float, chance: float) -> float:
        """Seconds until the next attempt; `chance` is from 0 to 1. Raises what does not pass by itself.

        That is `Denied`, `Invalid`, and `Unavailable` when the patience ends before the next attempt.
        """
        if lost.status == HTTPStatus.UNAUTHORIZED:  # as somebody between us and the gateway says it
            self._refused.add(self._token)
        elif lost.status == HTTPStatus.FORBIDDEN:
            raise Denied(lost.reason)
        elif lost.status is not None and lost.status < 500 and lost.status not in _MAY_PASS:
            raise Invalid("url", f"no gateway answers there: {lost.reason}")
        if lost.close_code == _MESSAGE_TOO_BIG:
            raise Invalid("filters", f"too much for one message: {lost.reason}")
        if self._is_confirmed:
            self._is_confirmed, self._away_since, self.attempts = False, now, 0
        if self._token in self._refused:
            return 0.0  # another token decides
        bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self.attempts, 10))
        seconds = min(lost.retry_after, LONGEST_RETRY_AFTER_SECONDS) + chance * bound
        self.attempts += 1
        if self._patience is not None and now + seconds > self._away_since + self._patience:
            raise Unavailable(f"no gateway for {self._patience:g} s: {lost.reason}")
        return seconds
