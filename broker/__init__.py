"""The vocabulary of producers and agents: publish events through Redis, watch them, obey commands. Knows no socket."""

from .broker import Broker
from .commands import Command
from .errors import Invalid, TrunklineError, Unavailable
from .events import Event
from .filters import Filter
from .positions import Position

__all__ = ["Broker", "Command", "Event", "Filter", "Invalid", "Position", "TrunklineError", "Unavailable"]
