"""Limits that hold over the fleet: places of connections (`leases`) and messages per time (`windows`).

Redis decides (`decisions`), one script and one round trip for each; without it the node does, by its own count.
"""

from .leases import Leases, Pace, Place, Verdict
from .window import Taken, Window
from .windows import Windows

__all__ = ["Leases", "Pace", "Place", "Taken", "Verdict", "Window", "Windows"]
