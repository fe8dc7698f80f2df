"""What a client can ask and be told, and what a session has done about it: the words between dialects and the core."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from broker.filters import Filter

from .reasons import Reason


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What one subscribe or unsubscribe names. None: not given."""

    workspaces: frozenset[str] | None = None
    agents: frozenset[str] | None = None
    subjects: frozenset[str] | None = None
    types: frozenset[str] | None = None

    @property
    def ids(self) -> tuple[frozenset[str] | None, ...]:
        return self.workspaces, self.agents, self.subjects


# -- a client asks


class Authenticate(NamedTuple):
    token: str


class Subscribe(NamedTuple):
    """`since` is a position, or one for each workspace."""

    asked: Asked
    since: str | Mapping[str, str] | None = None


class Unsubscribe(NamedTuple):
    asked: Asked


class Ping(NamedTuple):
    """Wants a pong."""


class Pong(NamedTuple):
    """Answers a ping of ours."""


Request = Authenticate | Subscribe | Unsubscribe | Ping | Pong


# -- a client is told

# The position up to which a connection is complete: of its workspace, or of each of its workspaces.
Complete = str | dict[str, str] | None


class Error(NamedTuple):
    reason: Reason
    detail: str


class PingSent(NamedTuple):
    complete: Complete


class PongSent(NamedTuple):
    complete: Complete


class GapSaid(NamedTuple):
    """What came after `since` is no longer all there; the oldest that is there is `oldest`."""

    workspace: str
    since: str
    oldest: str | None


Notice = Error | PingSent | PongSent | GapSaid


# -- a session has decided

Interest = frozenset[Filter]


class Verify(NamedTuple):
    """Check this token, and tell the session with `authenticated` or `denied`."""

    token: str


class Tell(NamedTuple):
    """Send this, in the dialect's words."""

    notice: Notice


class Heartbeat(NamedTuple):
    """Send a ping of each kind that the dialect has."""


class Follow(NamedTuple):
    """Deliver `interest` from now on. `since`: first what `fresh` matches and `before` did not."""

    interest: Interest
    fresh: Interest = frozenset()
    before: Interest = frozenset()
    since: Mapping[str, str] | None = None


class Close(NamedTuple):
    """Say farewell with this."""

    reason: Reason


Action = Verify | Tell | Heartbeat | Follow | Close
