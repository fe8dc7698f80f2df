"""What a client can ask and be told, and what a session has done about it: the words between dialects and the core."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from broker.commands.command import Command as Order
from broker.events import Packed
from broker.filters import Filter

from .reasons import Reason


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What one subscribe or unsubscribe names. None: not given.

    Where a dialect repeats what is subscribed, `words` are the types in their order, each with the client's own word
    for it, and `named` the agents in theirs.
    """

    workspaces: frozenset[str] | None = None
    agents: frozenset[str] | None = None
    subjects: frozenset[str] | None = None
    types: frozenset[str] | None = None
    severities: frozenset[str] | None = None
    components: frozenset[str] | None = None
    words: tuple[tuple[str, str], ...] = ()
    named: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[frozenset[str] | None, ...]:
        return self.workspaces, self.agents, self.subjects


# -- a client comes


class Knock(NamedTuple):
    """An API key and the endpoint that it shall open; `answer` is the subprotocol to speak then."""

    endpoint: str
    key: str
    answer: str

    def __repr__(self) -> str:
        return f"Knock(endpoint={self.endpoint!r})"


# -- a client asks


class Authenticate(NamedTuple):
    token: str


class Subscribe(NamedTuple):
    """`since` is a position, or one for each workspace."""

    asked: Asked
    since: str | Mapping[str, str] | None = None


class Unsubscribe(NamedTuple):
    asked: Asked


class Configure(NamedTuple):
    """What is given changes for this connection: seconds between two updates of metrics, events that may wait."""

    metrics_seconds: float | None = None
    buffer_events: int | None = None
    is_compressed: bool | None = None


class Command(NamedTuple):
    """For an agent. `workspace` is needed where agents of several workspaces have this id."""

    agent: str
    name: str
    parameters: dict[str, Any]
    request_id: str | None = None
    workspace: str | None = None


class Ping(NamedTuple):
    """Wants a pong."""


class Pong(NamedTuple):
    """Answers a ping of ours."""


class Disconnect(NamedTuple):
    """Wants to be closed."""


class StartRun(NamedTuple):
    """Begin an execution of the workflow `name`. `connection` is the client's name for itself, over reconnects."""

    name: str
    parameters: dict[str, Any]
    metadata: dict[str, Any]
    connection: str | None = None


class CancelRun(NamedTuple):
    execution: str


class ResumeRuns(NamedTuple):
    """Go on with what `connection` has started: first what came after `since`, or all of it."""

    connection: str
    since: str | None = None


class Said(NamedTuple):
    """An agent says an event of its own. With `is_nested` its fields stood in `data`, else beside `type`."""

    kind: str
    fields: dict[str, Any]
    timestamp: Any = None
    is_nested: bool = False


class Settle(NamedTuple):
    """An agent says what became of a command: a result, or an error's code and message."""

    command_id: str
    result: dict[str, Any] | None = None
    error: tuple[str, str] | None = None


RunRequest = StartRun | CancelRun | ResumeRuns
Request = (
    Authenticate | Subscribe | Unsubscribe | Configure | Command | RunRequest | Said | Settle | Ping | Pong | Disconnect
)


class Refused(Exception):  # noqa: N818 (a statement, not a fault of ours)
    """A client's wish that is not granted, and why. `detail` names the field or the fix; it never repeats a secret.

    `request` is what it asked, as far as that was understood.
    """

    def __init__(self, reason: Reason, detail: str = "", request: Request | None = None) -> None:
        super().__init__(detail or reason.text)
        self.reason = reason
        self.detail = detail or reason.text
        self.request = request


# -- a client is told

# The position up to which a connection is complete: of its workspace, or of each of its workspaces.
Complete = str | dict[str, str] | None


class Error(NamedTuple):
    """`request` is what was asked, as far as it was understood; `retry_after` in how many seconds to try again.

    `reference` names what was asked: the client's own id for it, or one of ours.
    """

    reason: Reason
    detail: str
    request: Request | None = None
    retry_after: float | None = None
    reference: str | None = None


class Welcome(NamedTuple):
    """It has authenticated and may stay."""

    client: str
    session: str


class PoolSaid(NamedTuple):
    """How many connections its user has over all nodes, and may have (None: any number)."""

    pool: str
    active: int
    allowed: int | None


class Confirmed(NamedTuple):
    """What is subscribed now, in the client's own words; no agents: all of them."""

    words: Sequence[str]
    agents: Sequence[str]
    complete: Complete = None


class PingSent(NamedTuple):
    complete: Complete


class PongSent(NamedTuple):
    """`seconds` is how long the connection has lasted."""

    seconds: float
    complete: Complete = None


class GapSaid(NamedTuple):
    """What came after `since` is no longer all there; the oldest that is there is `oldest`."""

    workspace: str
    since: str
    oldest: str | None


class StatusSaid(NamedTuple):
    """An agent's answer to who asked for its status."""

    agent: str
    data: dict[str, Any]


class Ordered(NamedTuple):
    """What an agent is to do, for the agent."""

    command: Order


class NearLimit(NamedTuple):
    """Of `limit` messages per minute `used` are used up, by this connection or by all of its user's."""

    used: int
    limit: int
    resets_in: float
    is_users: bool


class Expiring(NamedTuple):
    """Its token has so many seconds left."""

    seconds: float


class Farewell(NamedTuple):
    """It is going to be closed."""

    reason: Reason


Notice = (
    Error
    | Welcome
    | PoolSaid
    | Confirmed
    | PingSent
    | PongSent
    | GapSaid
    | StatusSaid
    | Ordered
    | NearLimit
    | Expiring
    | Farewell
)


# -- a session has decided

Interest = frozenset[Filter]


class Verify(NamedTuple):
    """Check this token, and tell the session with `authenticated` or `denied`."""

    token: str


class Enter(NamedTuple):
    """Find it a place among its user's connections, and tell the session with `entered` or `turned_away`."""


class Take(NamedTuple):
    """Count one message of its user, and tell the session with `taken`."""

    text: str


class Tell(NamedTuple):
    """Send this, in the dialect's words."""

    notice: Notice


class Heartbeat(NamedTuple):
    """Send a ping of each kind that the dialect has."""


class Follow(NamedTuple):
    """Deliver `interest` from now on. `since`: first what `fresh` matches and `before` did not.

    A position that `is_checked` need not be one from which history can go on: what it misses was told.
    Of `sampled` only the newest is delivered, at a `Sample`. `said` is sent as soon as live events are delivered, or
    before the first that is replayed.
    """

    interest: Interest
    fresh: Interest = frozenset()
    before: Interest = frozenset()
    since: Mapping[str, str] | None = None
    sampled: Interest = frozenset()
    said: Notice | None = None
    is_checked: bool = False


class Sample(NamedTuple):
    """Deliver the newest of what is sampled."""


class Tune(NamedTuple):
    """Deliver in this way from now on; None: as before."""

    buffer_events: int | None
    is_compressed: bool | None


class Send(NamedTuple):
    """Send a command to its agent in one of `workspaces`, and tell the session with `unsent` or `replied`."""

    command: Command
    workspaces: frozenset[str]


class Execute(NamedTuple):
    """Do what is asked about runs of the client's endpoint, and tell the session with `refused` if that cannot be."""

    request: RunRequest


class Publish(NamedTuple):
    """Publish what the agent has said, packed, and tell the session with `refused` if that cannot be."""

    said: Said
    packed: Packed


class Answer(NamedTuple):
    """Settle a command of the agent's, and tell the session with `refused` if that cannot be."""

    settle: Settle


class Close(NamedTuple):
    """Say farewell with this."""

    reason: Reason


Action = Verify | Enter | Take | Tell | Heartbeat | Follow | Sample | Tune | Send | Execute | Publish | Answer | Close
