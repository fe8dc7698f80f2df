"""Paths: how an entry of a policy covers one, and every way in which one may be spelled.

    /data           the directory and all below it
    /data/**        the same; `**` stands alone between slashes, for any number of directories, none among them
    /data/*.csv     `*` and `?` do not cross a slash; every other character is itself
    ~, ~/.ssh       under the home of the agent's user

A blocked entry covers what is below what it names, whatever it looks like, and for a `Write` also the directories above
it (up to a `**`): who moves or removes `/home/joe` does so to `/home/joe/.ssh`. An allowed entry with `*` or `?` in it
covers only what it names: `/data/*` is not `/data/a/b`.

A path is judged in each of its *readings*: normalised (`//`, `.`, `..`, a slash at the end), folded and then normalised
(see `folding`), with `/proc/<process>/root` as the link to the root that it is, with `~` as the home, and as `resolved`
says. It is blocked when one of them is, and allowed only when all of them are.

`~` needs to know the home. Where nobody said it, `~` is judged strictly: a path under `~` may be in root's, and a
blocked `~/.ssh` is that directory in every home (`/root`, `/home/*`, `/Users/*`).

What cannot be judged is for the caller to mend: a path that is not absolute, has a NUL in it or more than 32 Ki
characters, `~ann`, `~+` and `~-`, `..` above a home that nobody named, and without `resolved` what leads through a
link of the kernel's (`/proc/self/cwd`, `/proc/self/fd/3`).

Not seen without `resolved`: other links. `..` is taken as text: where `/data/link` is one, `/data/link/..` may be
elsewhere. Not seen at all: hard links and mounts, and what changes between the question and the deed.
"""

import re
from collections.abc import Callable, Iterable

from .finding import UNREADABLE, Finding
from .folding import fold
from .patterns import Pattern, encode, quote

Resolve = Callable[[str], str]

_MAX_CHARACTERS = 32 * 1024
_HOMES = ("/root", "/var/root", "/home/*", "/Users/*")
_ROOTS_HOMES = ("/root", "/var/root")
_HOME = re.compile(r"~(root)?(?=/|$)")


class Paths:
    """The section `filesystem` of a policy."""

    def __init__(self, section: dict[str, list[str]], home: str | None, resolve: Resolve | None) -> None:
        self._home = home
        self._allowed, self._blocked = (
            [Entry(text, is_blocked=is_blocked, home=home, resolve=resolve) for text in section.get(name, ())]
            for name, is_blocked in (("allowed_paths", False), ("blocked_paths", True))
        )

    def judge(self, path: str, resolved: str | None, *, is_write: bool) -> Finding | None:
        """`resolved`, if it is told, is the same file."""
        if not self._allowed and not self._blocked:
            return None
        given = [path] if resolved is None else [path, resolved]
        if max(map(len, given)) > _MAX_CHARACTERS:
            return Finding("unreadable", UNREADABLE, [])
        rooted = [self._rooted(one) for one in given]
        folded = [self._rooted(fold(one)) for one in given]
        exact, plain = _readings(rooted), _readings(folded)
        near = [*exact, *self._guessed(exact)]
        wide = dict.fromkeys([*plain, *(normalised(fold(one)) for one in near)])
        near_texts, wide_texts = [encode(one) for one in near], [encode(one) for one in wide]
        texts = near_texts + wide_texts
        for entry in self._blocked:
            if entry.covers_any(near_texts, wide_texts) or (is_write and entry.is_below_any(wide_texts)):
                return Finding("blocked", entry.text, texts)
        is_vague = resolved is None and None in map(followed, rooted[0] + folded[0])
        if is_vague or not all(rooted) or not all(folded):
            return Finding("unreadable", UNREADABLE, texts)
        if self._allowed and not self._allows(exact, plain):
            return Finding("allowed", "allowed_paths", texts)
        return None

    def _allows(self, exact: list[str], folded: list[str]) -> bool:
        return all(any(entry.covers_any([encode(one)], []) for entry in self._allowed) for one in exact) and all(
            any(entry.covers_any([], [encode(one)]) for entry in self._allowed) for one in folded
        )

    def _rooted(self, path: str) -> list[str]:
        """The absolute paths that a spelling may be. Nothing: that cannot be told."""
        if path.startswith("/"):
            rooted = [path]
        elif home := _HOME.match(path):
            rooted = [where + path[home.end() :] for where in (_ROOTS_HOMES if home[1] else (self._home or "~",))]
        else:
            return []
        return [one for one in rooted if "\0" not in one and not _leaves_home(one)]

    def _guessed(self, readings: list[str]) -> list[str]:
        """Where those under an unknown home may be."""
        return [where + one[1:] for one in readings if one.startswith("~") for where in _ROOTS_HOMES]


class Entry:
    """One entry of a policy. `text` is the entry as its author wrote it."""

    __slots__ = ("_above", "_exact", "_folded", "text")

    def __init__(self, text: str, *, is_blocked: bool, home: str | None, resolve: Resolve | None) -> None:
        self.text = text
        spellings = list(_spellings(text, is_blocked=is_blocked, home=home, resolve=resolve))
        self._exact = [_compile(one, is_blocked) for one in spellings]
        self._folded = [_compile(fold(one), is_blocked) for one in spellings]
        self._above = [_compile_above(fold(one)) for one in spellings] if is_blocked else []

    def covers_any(self, exact: Iterable[bytes], folded: Iterable[bytes]) -> bool:
        """True when one of the readings is covered; `folded` are compared with what the entry folds to."""
        return _is_one(self._exact, exact) or _is_one(self._folded, folded)

    def is_below_any(self, folded: Iterable[bytes]) -> bool:
        """True when one of the readings is a directory above what a blocked entry names."""
        return _is_one(self._above, folded)


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


def followed(path: str) -> str | None:
    """As `normalised`, through the kernel's links to the root. None: through one of those that lead anywhere."""
    if not path.startswith("/"):
        return normalised(path)
    kept: list[str] = []
    for component in path.split("/"):
        if component == "..":
            del kept[-1:]
        elif component not in ("", "."):
            kept.append(component)
        match kept:
            case ["proc", _, "root"] | ["proc", _, "task", _, "root"]:
                kept.clear()
            case ["proc", _, "cwd" | "exe"] | ["proc", _, "task", _, "cwd" | "exe"]:
                return None
            case ["proc", _, "fd" | "map_files", _] | ["proc", _, "task", _, "fd", _] | ["dev", "fd", _]:
                return None
    return "/" + "/".join(kept)


def _readings(rooted: Iterable[list[str]]) -> list[str]:
    """The paths that spellings may mean, each once."""
    every = [reading for some in rooted for one in some for reading in (normalised(one), followed(one))]
    return list(dict.fromkeys(one for one in every if one is not None))


def _leaves_home(path: str) -> bool:
    """True when `..` leads above a home that nobody named."""
    depth = 0
    for component in path.split("/")[1:] if path.startswith("~") else ():
        depth += {"..": -1, ".": 0, "": 0}.get(component, 1)
        if depth < 0:
            return True
    return False


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
    first = next((index for index, one in enumerate(components) if _has_glob(one)), len(components))
    return "/".join(components[:first]), "".join(f"/{one}" for one in components[first:])


def _has_glob(component: str) -> bool:
    return "*" in component or "?" in component


def _compile(path: str, is_blocked: bool) -> Pattern:
    components = path.rstrip("/").split("/")
    below = "(?:/.*)?" if is_blocked or not any(map(_has_glob, components)) else ""
    if components[-1] == "**":
        components.pop()
        below = "(?:/.*)?"
    return Pattern("(?s)" + quote(components[0]) + "".join(map(_component, components[1:])) + below)


def _compile_above(path: str) -> Pattern:
    """A pattern for the directories above a path; above a `**` only for those before it."""
    root, *components = path.rstrip("/").split("/")
    above, end = "", ""
    for component in components[: components.index("**") if "**" in components else -1]:
        above, end = f"{above}(?:{_component(component)}", f"{end})?"
    return Pattern(f"(?s){quote(root)}(?:/|{above}{end})")


def _component(component: str) -> str:
    if component == "**":
        return "(?:/.*)?"
    if component == "*":
        return "/[^/]+"
    parts = re.split(r"([*?])", component)
    return "/" + "".join({"*": "[^/]*", "?": "[^/]"}.get(part) or quote(part) for part in parts)


def _is_one(patterns: list[Pattern], readings: Iterable[bytes]) -> bool:
    return any(pattern.is_all_of(one) for one in readings for pattern in patterns)
