"""Dialects: how one kind of client speaks. Each is one file and one line in `ALL`."""

from . import freeagentics, maxicore
from .base import Dialect, Variant

ALL: tuple[Dialect, ...] = (maxicore.MAXICORE, freeagentics.FREEAGENTICS)

__all__ = ["ALL", "Dialect", "Variant"]
