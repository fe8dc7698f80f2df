"""The code blocks of the MaxiCore document, cut out of it as they stand.

The document has no fences: a block begins after a line that only names its language and ends before the empty line
that ends a JSON value, or that stands before prose (which begins with a capital letter; code does not).
"""

from functools import cache

import pytest

from ..support import IN_CI, SHARED


def missing(what: str) -> None:
    """Skip the test and say why; in CI, where everything is there, fail."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


@cache
def _lines() -> list[str]:
    found = sorted(SHARED.glob("seeds/000_*.txt"))
    return found[0].read_text(encoding="utf-8").splitlines() if found else []


def block(heading: str, language: str, number: int = 1) -> str:
    """The `number`th block of `language` after the line `heading`. Skips the test where the document is not there."""
    lines = _lines()
    if not lines:
        missing(f"the protocol documents are not beside this checkout ({SHARED.name}/seeds)")
    at = lines.index(heading)
    for _ in range(number):
        at = lines.index(language, at + 1)
    end = at + 1
    while end < len(lines) and not _ends(lines, end, language):
        end += 1
    return "\n".join(lines[at + 1 : end])


def _ends(lines: list[str], at: int, language: str) -> bool:
    return lines[at] == "" and (language == "json" or lines[at + 1][:1].isupper())
