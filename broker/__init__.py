"""The vocabulary of a producer: publish events through Redis, and watch them. Knows Redis and no client's socket."""

from .broker import Broker
from .errors import Invalid, TrunklineError, Unavailable
from .events import Event
from .filters import Filter
from .positions import Position

__all__ = ["Broker", "Event", "Filter", "Invalid", "Position", "TrunklineError", "Unavailable"]
