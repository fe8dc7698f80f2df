"""What the registry says of agents that are not there."""

from ..errors import TrunklineError


class AgentMissing(TrunklineError):  # noqa: N818 (reads as a statement: `except AgentMissing`)
    """There is no such agent in any of the workspaces, or no agent for this pairing key. Nothing has happened."""
