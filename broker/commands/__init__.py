"""Commands: what users ask of agents. `commander` is the sender's end, `listener` the agent's, `exchange` between."""

from .command import Command
from .exchange import NAMES, Reply

__all__ = ["NAMES", "Command", "Reply"]
