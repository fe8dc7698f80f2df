"""Dialects: how one kind of client speaks. Each is one file and one line in `ALL`."""

from . import maxicore
from .base import Dialect, Variant

ALL: tuple[Dialect, ...] = (maxicore.MAXICORE,)

__all__ = ["ALL", "Dialect", "Variant"]
