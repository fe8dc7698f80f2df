"""Unicode: which different spellings are taken for the same.

Blocked entries are compared wide: as the text stands, and folded. Compatibility forms become their plain letters (NFKC:
`ｒｍ`, `．．`, a decomposed `é`), invisible format characters vanish, and in paths upper and lower case are one: some
filesystem, runtime or agent takes each of these for the plain spelling (APFS, HFS+, NTFS, Python's own identifiers).
Allowed entries are compared narrow: exactly, and folded *as well*, so that no folding leads outside.

A letter of another script that looks alike (Cyrillic `е` in `/еtc`) stays another letter: no filesystem and no shell
takes it for the Latin one, so that nothing blocked is reached by it; an allowed list refuses it like any other name.
"""

import unicodedata
from functools import lru_cache


def plain(text: str) -> str:
    """Compatibility forms as plain letters, invisible format characters left out."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", "".join(each for each in text if not _is_invisible(each)))


def fold(text: str) -> str:
    """`plain`, and upper and lower case are the same."""
    return plain(plain(text).casefold())


@lru_cache(maxsize=4096)
def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf"
