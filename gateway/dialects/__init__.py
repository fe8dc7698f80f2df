"""Dialects: how one kind of client speaks. Each is one file and one line in `ALL`."""

from . import agnt5, freeagentics, maxicore
from .base import Dialect, Variant

ALL: tuple[Dialect, ...] = (maxicore.MAXICORE, freeagentics.FREEAGENTICS, agnt5.AGNT5)

__all__ = ["ALL", "Dialect", "Variant"]
