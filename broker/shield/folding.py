"""Unicode: which different spellings are taken for the same.

Blocked entries are compared wide: as the text stands, and folded. Compatibility forms become their plain letters
(NFKC: `ｒｍ`, `．．`, a decomposed `é`), what is shown as nothing vanishes, and in paths upper and lower case are one:
some filesystem, runtime or agent takes each of these for the plain spelling (APFS, HFS+, NTFS, ext4 with `casefold`,
Python's own identifiers). Allowed entries are compared narrow: exactly, and folded *as well*, so that no folding leads
outside.

A letter of another script that looks alike (Cyrillic `е` in `/еtc`) stays another letter: no filesystem and no shell
takes it for the Latin one, so that nothing blocked is reached by it; an allowed list refuses it like any other name.
"""

import re
import unicodedata
from collections.abc import Iterator

# Unicode's Default_Ignorable_Code_Point.
_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINER = "\u034f"
_MAX_MARKS = 30


def plain(text: str) -> str:
    """Compatibility forms as plain letters, without what is shown as nothing. Takes time in proportion to `text`."""
    if text.isascii():
        return text
    shown = _IGNORED.sub("", text)
    return _IGNORED.sub("", unicodedata.normalize("NFKC", "".join(_parted(shown))))


def fold(text: str) -> str:
    """`plain`, and upper and lower case are the same."""
    return plain(plain(text).casefold())


def _parted(text: str) -> Iterator[str]:
    """`text` with a joiner after each 30 marks in a row (UAX 15, Stream-Safe): to sort a run of marks, as normalising
    does, takes time in the square of its length."""
    marks = 0
    for each in text:
        marks = marks + 1 if unicodedata.combining(each) else 0
        if marks > _MAX_MARKS:
            yield _JOINER
            marks = 1
        yield each
