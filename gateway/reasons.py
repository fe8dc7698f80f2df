"""What a client may hear when it cannot have its way: one table, which every dialect puts into its own words."""

from typing import NamedTuple

from . import frames


class Reason(NamedTuple):
    """`code` names it in errors and metrics, `text` is for people; without a `close_code` the connection stays."""

    code: str
    text: str
    close_code: int | None = None


INVALID_TOKEN = Reason("INVALID_TOKEN", "Token expired or invalid", frames.POLICY_VIOLATION)
INVALID_MESSAGE = Reason("INVALID_MESSAGE", "The message cannot be understood")
FORBIDDEN = Reason("FORBIDDEN", "$.filters.workspace_id: the token does not name this workspace")
TOO_MANY_SUBSCRIPTIONS = Reason("TOO_MANY_SUBSCRIPTIONS", "Too many concurrent subscriptions", frames.POLICY_VIOLATION)

# Farewells: nothing is said but the close frame, unless a dialect has words for it.
TOO_MANY_ERRORS = Reason("TOO_MANY_ERRORS", "too many invalid messages in a row", frames.POLICY_VIOLATION)
PONG_TIMEOUT = Reason("PONG_TIMEOUT", "PONG_TIMEOUT", frames.POLICY_VIOLATION)
IDLE = Reason("IDLE", "idle", frames.NORMAL_CLOSURE)
NOT_TEXT = Reason("NOT_TEXT", "text messages only", frames.UNSUPPORTED_DATA)
SLOW_CONSUMER = Reason("SLOW_CONSUMER", "slow consumer: resume from the last event_id", frames.TRY_AGAIN_LATER)
EVENTS_LOST = Reason("EVENTS_LOST", "events were lost: connect again", frames.TRY_AGAIN_LATER)
GOING_AWAY = Reason("GOING_AWAY", "the server is going away: connect again", frames.SERVICE_RESTART)
BUG = Reason("BUG", "", frames.INTERNAL_ERROR)


class Refused(Exception):  # noqa: N818 (a statement, not a fault of ours)
    """A client's wish that is not granted, and why. `detail` names the field or the fix; it never repeats a secret."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.text)
        self.reason = reason
        self.detail = detail or reason.text
