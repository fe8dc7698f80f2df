"""Policies as their authors write them: what is taken, and what is said of the rest.

    {"version": "2.0",
     "filesystem": {"allowed_paths": ["/project/**"], "blocked_paths": ["/root", "~/.ssh"]},
     "commands": {"allowed_patterns": ["^python .*", "^git .*"], "blocked_patterns": ["rm -rf"]},
     "network": {"allowed_hosts": ["*.example.com:443"], "blocked_hosts": ["10.0.0.0/8"]}}

Every section and every list may be left out. An unknown name is refused: a misspelled list would protect nothing.
"""

from collections.abc import Callable
from typing import Any

from ..errors import Invalid
from .hosts import Entry
from .patterns import Pattern

VERSION = "2.0"
MAX_ENTRIES = 256
MAX_PATH_CHARACTERS = 1024
MAX_PATTERN_CHARACTERS = 1000
# What a pattern may cost per byte of text grows with its program: `rm -rf` has 10 instructions, `\p{L}+` 1,200.
MAX_INSTRUCTIONS = 2000
MAX_LIST_INSTRUCTIONS = 20_000  # of all patterns of a list together: each is held against each command

_MAX_NAME_CHARACTERS = 64

# Raises `ValueError` for an entry that cannot be; answers the instructions that it costs.
Check = Callable[[str], int]


def validate(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy as it is stored: a copy with its `version`, entries as they were given.

    Raises `Invalid` with the path of what is wrong: `$.filesystem.allowed_paths[0]`.
    """
    given = _object(policy, "$", {*_SECTIONS, "version"})
    if given.get("version", VERSION) != VERSION:
        raise Invalid("$.version", f'expected "{VERSION}"')
    return {"version": VERSION} | {
        name: _section(given[name], f"$.{name}", lists) for name, lists in _SECTIONS.items() if name in given
    }


def _section(given: object, path: str, lists: dict[str, Check]) -> dict[str, list[str]]:
    entries = _object(given, path, set(lists))
    return {name: _entries(entries[name], f"{path}.{name}", check) for name, check in lists.items() if name in entries}


def _object(given: object, path: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Invalid(path, f"expected an object, got {type(given).__name__}")
    if unknown := next((name for name in given if name not in known), None):
        name = str(unknown)[:_MAX_NAME_CHARACTERS]
        raise Invalid(f"{path}.{name}", f"expected one of {', '.join(sorted(known))}")
    return given


def _entries(given: object, path: str, check: Check) -> list[str]:
    if not isinstance(given, list):
        raise Invalid(path, f"expected a list, got {type(given).__name__}")
    if len(given) > MAX_ENTRIES:
        raise Invalid(path, f"expected at most {MAX_ENTRIES} entries")
    instructions = 0
    for index, entry in enumerate(given):
        where = f"{path}[{index}]"
        if not isinstance(entry, str):
            raise Invalid(where, f"expected str, got {type(entry).__name__}")
        try:
            instructions += check(entry)
        except ValueError as error:
            raise Invalid(where, str(error)) from None
        if instructions > MAX_LIST_INSTRUCTIONS:
            raise Invalid(where, f"expected at most {MAX_LIST_INSTRUCTIONS} instructions of RE2's in one list")
    return list(given)


def _check_path(entry: str) -> int:
    if entry != "~" and not entry.startswith(("/", "~/")):
        raise ValueError("expected an absolute path, or one under ~")
    if len(entry) > MAX_PATH_CHARACTERS or not entry.isprintable():
        raise ValueError(f"expected at most {MAX_PATH_CHARACTERS} printable characters")
    for component in entry.split("/"):
        if component == "..":
            raise ValueError("expected a path without ..")
        if "**" in component and component != "**":
            raise ValueError("expected ** alone between slashes")
    return 0


def _check_pattern(entry: str) -> int:
    if not 1 <= len(entry) <= MAX_PATTERN_CHARACTERS:
        raise ValueError(f"expected 1 to {MAX_PATTERN_CHARACTERS} characters")
    instructions = Pattern(entry).instructions
    if instructions > MAX_INSTRUCTIONS:
        raise ValueError(f"expected a pattern of at most {MAX_INSTRUCTIONS} instructions of RE2's")
    return instructions


def _check_host(entry: str) -> int:
    Entry(entry)
    return 0


_SECTIONS: dict[str, dict[str, Check]] = {
    "filesystem": dict.fromkeys(("allowed_paths", "blocked_paths"), _check_path),
    "commands": dict.fromkeys(("allowed_patterns", "blocked_patterns"), _check_pattern),
    "network": dict.fromkeys(("allowed_hosts", "blocked_hosts"), _check_host),
}
