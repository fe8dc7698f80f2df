"""Commands in the words of another: `sudo rm`, `sh -c "rm"`, `find -exec rm {} +`."""

import re
from collections.abc import Iterator

from .shell import SHELLS, Unreadable

# Programs that run the rest of their words, by the number of words of their own before it (options apart).
_PREFIXES = dict.fromkeys((
    "builtin", "busybox", "caffeinate", "command", "doas", "env", "exec", "ionice", "ltrace", "nice", "nohup",
    "nsenter", "parallel", "pkexec", "prlimit", "runuser", "setarch", "setpriv", "setsid", "stdbuf", "strace", "sudo",
    "systemd-run", "time", "toybox", "unshare", "valgrind", "watch", "xargs", "xvfb-run",
), 0) | dict.fromkeys((
    "chroot", "chrt", "coproc", "flock", "gtimeout", "ssh", "su", "taskset", "timeout",
), 1)  # fmt: skip
# Programs that give words to a shell: after an option with this letter, or all of them.
_TEXT_OPTIONS = dict.fromkeys(SHELLS, "c") | {"su": "c", "runuser": "c", "script": "c", "flock": "c", "env": "S"}
_TEXTS = {"eval", "trap", "alias"}
_LONG_TEXT_OPTIONS = ("--command", "--session-command", "--split-string")
_FIND_OPTIONS = ("-exec", "-execdir", "-ok", "-okdir")
_ASSIGNMENT = re.compile(r"\w+=", re.ASCII)
_MAX_CANDIDATES = 16

Words = tuple[str, ...]


def name_of(words: Words) -> str:
    """The program that words call, however its path is written."""
    return words[0].rpartition("/")[2].lower() if words else ""


def lines_in(words: Words) -> Iterator[str]:
    """The words that a shell is given to read."""
    name = name_of(words)
    if name in _TEXTS:
        yield " ".join(words[1:])
    letter = _TEXT_OPTIONS.get(name)
    for index, word in enumerate(words[1:] if letter else (), 1):
        option, equals, value = word.partition("=")
        if option in _LONG_TEXT_OPTIONS:
            yield value if equals else " ".join(words[index + 1 : index + 2])
        elif re.match(rf"-[A-Za-z]*{letter}", word):
            yield from _texts_after(words[index:], "" if name in SHELLS else word.partition(letter or "")[2])
            return


def _texts_after(words: Words, own: str) -> Iterator[str]:
    """What an option that stands first is given: text in its own word, or the first word after it that is no option."""
    if own:
        yield own
    rest = iter(words)
    for word in rest:
        if word[:1] not in ("-", "+") or " " in word:
            yield word
            return
        if word[-1] in "oO":  # `-o pipefail`
            next(rest, None)


def runs_in(words: Words) -> Iterator[Words]:
    """The words that another program is called with.

    Which options take a word of their own is not known here: `sudo -u root rm` may run `root` or `rm`, and both are
    answered.
    """
    name = name_of(words)
    if name == "find":
        for index, word in enumerate(words):
            if word in _FIND_OPTIONS:
                yield words[index + 1 :]
    elif name in _PREFIXES:
        yield from _rests(words, _PREFIXES[name])


def _rests(words: Words, own: int) -> Iterator[Words]:
    found = 0
    for index in range(1, len(words)):
        word = words[index]
        if word.startswith("-") or _ASSIGNMENT.match(word):
            continue
        yield words[index:]
        found += 1
        if found > _MAX_CANDIDATES:
            raise Unreadable
        if not words[index - 1].startswith("-") or words[index - 1] == "--":
            own -= 1
            if own < 0:
                return
