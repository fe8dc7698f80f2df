"""The vocabulary of producers, agents and workers: publish events through Redis, obey commands, run workflows.

Knows no socket.
"""

from .broker import Broker
from .commands import Command
from .errors import Invalid, TrunklineError, Unavailable, Unreplicated
from .events import Event
from .filters import Filter
from .positions import Position
from .runs import Retry, Run, Runs, Worker

__all__ = [
    "Broker",
    "Command",
    "Event",
    "Filter",
    "Invalid",
    "Position",
    "Retry",
    "Run",
    "Runs",
    "TrunklineError",
    "Unavailable",
    "Unreplicated",
    "Worker",
]
