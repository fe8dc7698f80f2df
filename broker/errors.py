"""What can go wrong between a program and the broker: one root, and what a caller may do about each."""

from .positions import Position


class TrunklineError(Exception):
    """The root of everything this package raises on purpose."""


class Invalid(TrunklineError):  # noqa: N818 (reads as a statement: `except Invalid`)
    """A value from outside is not what it must be.

    `path` says which one, from the root of what was given (`$.data.step`), `reason` what was expected.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Unavailable(TrunklineError):  # noqa: N818
    """Redis cannot be reached, or refuses to work, and did so for as long as was bearable.

    For a publish its fate is unknown then; calling again with the same events is safe.
    """


class Unreplicated(TrunklineError):  # noqa: N818
    """What was published is in the log, but not known to be at as many replicas as were asked for.

    It has been delivered, and stays unless the master fails before the replicas have it. `positions` is what would have
    been answered. Publishing equal events within five minutes publishes nothing twice: it waits for the replicas on,
    and only what a failover has taken by then is published anew.
    """

    def __init__(self, doubt: str, seconds: float, positions: list[Position | None]) -> None:
        super().__init__(
            f"published, but not safe from a failover within {seconds:g} s: {doubt}; "
            "see INFO replication there, or ask for fewer replicas"
        )
        self.positions = positions


class AgentUnknown(TrunklineError):  # noqa: N818
    """No agent of this id in the workspace: it never published, listened nor was created. The command was not sent."""


class AgentOffline(TrunklineError):  # noqa: N818
    """The agent is known, but nobody listens for its commands. The command was not sent; it may come back."""


class QueueFull(TrunklineError):  # noqa: N818
    """Too much waits already: commands for this agent or for this node's replies, or runs for their workers.

    Nothing was sent.
    """


class UnknownWorkflow(TrunklineError):  # noqa: N818
    """The endpoint has workers, and none of them serves a workflow of this name. Nothing was started."""


class Lost(TrunklineError):  # noqa: N818
    """The run is held by somebody else now, or has ended. The event was not published."""
