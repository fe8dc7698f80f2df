"""Patterns: RE2, so that no text makes one slow. The one place that knows the library."""

import re2  # type: ignore[import-untyped]

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # it would write to standard error, with the pattern
_OPTIONS.never_capture = True
_OPTIONS.max_mem = 1024 * 1024  # bytes; what a pattern remembers of its texts, of which a policy may have hundreds


class Pattern:
    """One compiled pattern. `^` and `$` are the ends of the text, `.` is no newline, as RE2 has it without flags."""

    __slots__ = ("_compiled", "instructions", "text")

    def __init__(self, text: str) -> None:
        """Raises `ValueError`, with what was expected, for what RE2 does not take."""
        try:
            self._compiled = re2.compile(text, _OPTIONS)
        except (re2.error, UnicodeEncodeError):
            raise ValueError("expected a pattern of RE2's syntax") from None
        self.text = text
        self.instructions = int(self._compiled.programsize)

    def is_in(self, text: bytes) -> bool:
        """True when some part of `text` (`encode`) matches."""
        return self._compiled.search(text) is not None

    def is_all_of(self, text: bytes) -> bool:
        """True when `text` matches from its first to its last byte."""
        return self._compiled.fullmatch(text) is not None


def encode(text: str) -> bytes:
    """As patterns read it. What is no text (a lone surrogate, so a byte that was no UTF-8) becomes `?`: to RE2 it would
    be nothing that `.` matches, and a way around a pattern."""
    return text.encode(errors="replace")


def quote(text: str) -> str:
    """A pattern for this text alone."""
    return str(re2.escape(text))
