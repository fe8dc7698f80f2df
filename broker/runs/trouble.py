"""How trouble in a workflow is told: to its client as `{"code", "message"}`, to us as a wish to be run again."""

import re
from collections.abc import Iterator
from traceback import walk_tb
from types import TracebackType

from ..errors import Invalid

MAX_MESSAGE_CHARACTERS = 1000
MAX_PLACES = 20

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Retry(Exception):  # noqa: N818
    """Raised by a workflow to be run again, after a pause that grows (or `seconds`), while attempts are left."""

    def __init__(self, message: str = "to be tried again", *, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class InvalidOutput(Invalid):
    """What a step or a run was to give cannot be told: it is no JSON, or too large."""

    code = "INVALID_OUTPUT"


def describe(error: BaseException) -> dict[str, str]:
    """An exception as clients see it: its own `code` if it has a good one, else its class as `VALUE_ERROR`.

    Of its message the first 1,000 characters. Whatever is in an exception, this raises none.
    """
    error = root(error)
    code = getattr(error, "code", None)
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        code = _HUMP.sub("_", type(error).__name__).upper()
    try:
        words = str(error)
    except Exception:
        words = ""
    words = (words or type(error).__name__)[:MAX_MESSAGE_CHARACTERS]
    return {"code": code, "message": words.encode(errors="replace").decode()}


def root(error: BaseException) -> BaseException:
    """What is inside a group of one kind of trouble: a `Retry` only if there is nothing else."""
    while isinstance(error, BaseExceptionGroup):
        error = next((one for one in error.exceptions if not isinstance(root(one), Retry)), error.exceptions[0])
    return error


def place(error: BaseException) -> str:
    """What was raised and through where, for our log. Not its message: a client's words may be in it."""
    where = list(_places(error.__traceback__))[-MAX_PLACES:]
    return f"{type(error).__name__} at {', '.join(where)}" if where else type(error).__name__


def _places(trace: TracebackType | None) -> Iterator[str]:
    """`file:line function` from the outermost call to where it was raised, without calls of ours."""
    for frame, line in walk_tb(trace):
        if frame.f_globals.get("__package__") != __package__:
            yield f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
