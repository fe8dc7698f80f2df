"""The code blocks of the protocol documents, cut out of them as they stand."""

from functools import cache

import pytest

from ..support import IN_CI, SHARED


def missing(what: str) -> None:
    """Skip the test and say why; in CI, where everything is there, fail."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


@cache
def _found(document: str) -> list[str]:
    found = sorted(SHARED.glob(f"seeds/{document}_*.txt"))
    return found[0].read_text(encoding="utf-8").splitlines() if found else []


def text(document: str) -> list[str]:
    """The lines of a document. Skips the test where it is not there."""
    lines = _found(document)
    if not lines:
        missing(f"the protocol documents are not beside this checkout ({SHARED.name}/seeds)")
    return lines


def block(heading: str, language: str, number: int = 1) -> str:
    """The `number`th block of `language` after the line `heading` of the MaxiCore document.

    It has no fences: a block begins after a line that only names its language and ends before the empty line that ends
    a JSON value, or that stands before prose (which begins with a capital letter; code does not).
    """
    lines = text("000")
    start = end = _start(lines, heading, language, number)
    while end < len(lines) and not _ends(lines, end, language):
        end += 1
    return "\n".join(lines[start:end])


def fenced(heading: str, language: str = "javascript") -> str:
    """The first fenced block of `language` after the line `heading` of the FreeAgentics document."""
    lines = text("003")
    start = _start(lines, heading, f"```{language}")
    return "\n".join(lines[start : lines.index("```", start)])


def glued(heading: str, language: str = "javascript") -> str:
    """The first block of `language` after the line `heading` of the AGNT5 document.

    The name of its language is glued to its first line, and it ends before prose, which begins with a capital letter.
    """
    lines = text("002")
    start = lines.index(heading)
    while not lines[start].startswith(language):
        start += 1
    end = start
    while not lines[end][:1].isupper():
        end += 1
    return "\n".join(lines[start:end]).removeprefix(language)


def _start(lines: list[str], heading: str, mark: str, number: int = 1) -> int:
    at = lines.index(heading)
    for _ in range(number):
        at = lines.index(mark, at + 1)
    return at + 1


def _ends(lines: list[str], at: int, language: str) -> bool:
    return lines[at] == "" and (language == "json" or lines[at + 1][:1].isupper())
