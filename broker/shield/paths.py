"""Paths: how an entry of a policy covers one, and every way in which one may be spelled.

    /data           the directory and all below it
    /data/**        the same; `**` stands alone between slashes, for any number of directories, none among them
    /data/*.csv     `*` and `?` do not cross a slash; every other character is itself
    ~, ~/.ssh       under the home of the agent's user

A blocked entry covers what is below what it names, whatever it looks like. An allowed entry with `*` or `?` in it
covers only what it names: `/data/*` is not `/data/a/b`.

A path is judged in each of its *readings*: normalised (`//`, `.`, `..`, a slash at the end), folded and then normalised
(see `folding`), without `/proc/<process>/root` before it, with `~` as the home, and as `resolved` says. It is blocked
when one of them is, and allowed only when all of them are.

`~` needs to know the home. Where nobody said it, `~` is judged strictly: a path under `~` may be in root's, and a
blocked `~/.ssh` is that directory in every home (`/root`, `/home/*`, `/Users/*`). `~name` may be any of these. A path
that is not absolute, has a NUL in it, is `~+` or `~-`, or leaves an unknown home by `..` cannot be judged: that is for
the caller to join and to mend.

`..` is taken as text: where `/data/link` is a link, `/data/link/..` may be elsewhere. Only `resolved` knows.
"""

import re
from collections.abc import Callable, Iterable

from .finding import UNREADABLE, Finding
from .folding import fold
from .patterns import Pattern, encode, quote

Resolve = Callable[[str], str]

_HOMES = ("/root", "/var/root", "/home/*", "/Users/*")
_ROOTS_HOMES = ("/root", "/var/root")
_PROCESS_ROOT = re.compile(r"(?:/proc/[^/]+(?:/task/[^/]+)?/root)+(?=/|$)")
_USER = re.compile(r"~([\w.-]*)(?=/|$)")


class Paths:
    """The section `filesystem` of a policy."""

    def __init__(self, section: dict[str, list[str]], home: str | None, resolve: Resolve | None) -> None:
        self._home = home
        self._allowed, self._blocked = (
            [Entry(text, is_blocked=is_blocked, home=home, resolve=resolve) for text in section.get(name, ())]
            for name, is_blocked in (("allowed_paths", False), ("blocked_paths", True))
        )

    def judge(self, *spellings: str | None) -> Finding | None:
        """`spellings` are of one file; `None` is none."""
        if not self._allowed and not self._blocked:
            return None
        given = [one for one in spellings if one is not None]
        exact = [reading for one in given for reading in _readings(one, self._home)]
        plain = [_readings(fold(one), self._home and fold(self._home)) for one in given]
        folded = [reading for readings in plain for reading in readings]
        guessed = [] if self._home else [where + one[1:] for one in exact if one[0] == "~" for where in _ROOTS_HOMES]
        wide = folded + [normalised(fold(one)) for one in exact + guessed]
        texts = [encode(one) for one in dict.fromkeys(exact + wide)]
        for entry in self._blocked:
            if any(map(entry.covers, exact + guessed)) or any(map(entry.covers_folded, wide)):
                return Finding("blocked", entry.text, texts)
        if not all(plain) or not all(_readings(one, self._home) for one in given):
            return Finding("unreadable", UNREADABLE, [encode(one) for one in given])
        if self._allowed and not self._allows(exact, folded):
            return Finding("allowed", "allowed_paths", texts)
        return None

    def _allows(self, exact: list[str], folded: list[str]) -> bool:
        return all(any(entry.covers(one) for entry in self._allowed) for one in exact) and all(
            any(entry.covers_folded(one) for entry in self._allowed) for one in folded
        )


class Entry:
    """One entry of a policy. `text` is the entry as its author wrote it."""

    __slots__ = ("_exact", "_folded", "text")

    def __init__(self, text: str, *, is_blocked: bool, home: str | None, resolve: Resolve | None) -> None:
        self.text = text
        spellings = list(_spellings(text, is_blocked=is_blocked, home=home, resolve=resolve))
        self._exact = [_compile(one, is_blocked) for one in spellings]
        self._folded = [_compile(fold(one), is_blocked) for one in spellings]

    def covers(self, reading: str) -> bool:
        return _is_one(self._exact, reading)

    def covers_folded(self, reading: str) -> bool:
        """The same of a reading that is folded."""
        return _is_one(self._folded, reading)


def _readings(path: str, home: str | None) -> list[str]:
    """The paths that a spelling may mean, normalised. Nothing: that cannot be told."""
    if "\0" in path:
        return []
    if not path.startswith("~"):
        rooted = [path] if path.startswith("/") else []
    else:
        user = _USER.match(path)
        rooted = [where + path[user.end() :] for where in _homes_of(user[1], home)] if user else []
    return [reading for one in rooted if not _leaves_home(one) for reading in _rooted(one)]


def normalised(path: str) -> str:
    """Without empty components, `.`, `..` and a slash at the end, all by text alone. `~` stays a root of its own."""
    root, *components = path.split("/")
    kept: list[str] = []
    for component in components:
        if component == "..":
            del kept[-1:]
        elif component not in ("", "."):
            kept.append(component)
    return "/".join([root, *kept]) or "/"


def _homes_of(user: str, home: str | None) -> Iterable[str]:
    if user:
        return _ROOTS_HOMES if user == "root" else (f"/home/{user}", f"/Users/{user}")
    return (home or "~",)


def _leaves_home(path: str) -> bool:
    """True when `..` leads above a home that nobody named."""
    depth = 0
    for component in path.split("/")[1:] if path.startswith("~") else ():
        depth += {"..": -1, ".": 0, "": 0}.get(component, 1)
        if depth < 0:
            return True
    return False


def _rooted(path: str) -> Iterable[str]:
    path = normalised(path)
    yield path
    if inner := _PROCESS_ROOT.match(path):
        yield path[inner.end() :] or "/"


def _spellings(text: str, *, is_blocked: bool, home: str | None, resolve: Resolve | None) -> Iterable[str]:
    """The paths that an entry names."""
    homes = [home] if home else ["~", *(_HOMES if is_blocked else ())]
    for one in [where + text[1:] for where in homes] if text.startswith("~") else [text]:
        path = normalised(one)
        yield path
        if resolve is not None and path.startswith("/"):
            plain, globs = _split(path)
            yield normalised(resolve(plain or "/") + globs)


def _split(path: str) -> tuple[str, str]:
    """The directories before the first `*` or `?`, and the rest."""
    components = path.split("/")
    first = next((index for index, one in enumerate(components) if "*" in one or "?" in one), len(components))
    return "/".join(components[:first]), "".join(f"/{one}" for one in components[first:])


def _compile(path: str, is_blocked: bool) -> Pattern:
    components = path.rstrip("/").split("/")
    has_globs = any("*" in one or "?" in one for one in components)
    below = "(?:/.*)?" if is_blocked or not has_globs else ""
    if components[-1] == "**":
        components.pop()
        below = "(?:/.*)?"
    return Pattern("(?s)" + quote(components[0]) + "".join(map(_component, components[1:])) + below)


def _component(component: str) -> str:
    if component == "**":
        return "(?:/.*)?"
    if component == "*":
        return "/[^/]+"
    parts = re.split(r"([*?])", component)
    return "/" + "".join({"*": "[^/]*", "?": "[^/]"}.get(part) or quote(part) for part in parts)


def _is_one(patterns: list[Pattern], path: str) -> bool:
    text = encode(path)
    return any(pattern.is_all_of(text) for pattern in patterns)
