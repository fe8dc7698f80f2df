"""The registry of agents: who they are (`model`), what they may do, and whose they are. `registry` is the way in."""

from .errors import AgentMissing
from .registry import Agents

__all__ = ["AgentMissing", "Agents"]
