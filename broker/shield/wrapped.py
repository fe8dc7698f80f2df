"""Commands in the words of another (`sudo rm`, `sh -c "rm"`, `find -exec rm {} +`), and those that nobody wrote."""

import re
from collections.abc import Iterator

from .shell import Unreadable, is_shell

# Programs that run the rest of their words, by the number of words of their own before it (options apart).
_PREFIXES = dict.fromkeys((
    "!", "-", "and", "begin", "builtin", "busybox", "caffeinate", "command", "cpulimit", "dbus-run-session", "doas",
    "dumb-init", "env", "exec", "fakeroot", "firejail", "hyperfine", "ionice", "ltrace", "nice", "nocorrect", "noglob",
    "nohup", "not", "nsenter", "numactl", "or", "parallel", "pkexec", "prlimit", "proot", "runuser", "setarch",
    "setpriv", "setsid", "sshpass", "stdbuf", "strace", "sudo", "systemd-run", "time", "tini", "toybox", "unshare",
    "valgrind", "watch", "xargs", "xvfb-run", "{",
), 0) | dict.fromkeys((
    "chroot", "chrt", "flock", "gosu", "repeat", "runcon", "sg", "ssh", "su", "su-exec", "taskset", "timeout",
), 1)  # fmt: skip
# Those of them that make a shell's line of these words.
_JOINING = {"hyperfine", "parallel", "sg", "ssh", "watch"}
# Programs that give a word to a shell: after an option with this letter.
_TEXT_OPTIONS = {"su": "c", "runuser": "c", "script": "c", "flock": "c", "sg": "c", "capsh": "c", "env": "S"}
_LONG_TEXT_OPTIONS = ("--command", "--session-command", "--split-string")
_FIND_OPTIONS = ("-exec", "-execdir", "-ok", "-okdir")
_ASSIGNMENT = re.compile(r"[^=]+=")
_MAX_CANDIDATES = 16
# A value, an answer, a glob, or what `xargs` puts in.
_VAGUE = re.compile(r"[$`*?]|\[.+\]|\{\}")
_VAGUE_FILES = ("<()", "/dev/", "/proc/")

Words = tuple[str, ...]


def name_of(words: Words) -> str:
    """The program that words call, however its path is written."""
    return words[0].rpartition("/")[2].lower().lstrip("=") if words else ""


def is_vague(words: Words, *, is_fed: bool) -> bool:
    """True when nobody has written what is run: by a program whose name is a variable's value, another's answer or a
    glob, or by a shell that reads a file that is none, or its input, unless it `is_fed` with a document."""
    if not words:
        return False
    name = name_of(words)
    if _VAGUE.search(words[0]):
        return True
    if name not in (".", "source") and not is_shell(name):
        return False
    options, operands = _parted(words[1:])
    if any("$" in word for word in options):
        return True
    if any(word in ("--help", "--version") or _is_option(word, "c") for word in options):
        return False
    if not operands or any(_is_option(word, "s") for word in options):
        return not is_fed
    return operands[0].startswith(_VAGUE_FILES) or ("$" in operands[0] and "/" not in operands[0])


def lines_in(words: Words) -> Iterator[str]:
    """The words that a shell is given to read. Raises `Unreadable` where there are too many."""
    name = _plain_name(words)
    if name == "alias":
        yield from (word.partition("=")[2] for word in words[1:])
    elif name in ("eval", "trap"):
        yield " ".join(words[2:] if words[1:2] == ("--",) else words[1:])
    letter = _TEXT_OPTIONS.get(name)
    first = 0 if letter else next((index for index, word in enumerate(words) if is_shell(name_of((word,)))), len(words))
    found = 0
    for index in range(first + 1, len(words)):
        option, equals, value = words[index].partition("=")
        if option in _LONG_TEXT_OPTIONS:
            yield value if equals else " ".join(words[index + 1 : index + 2])
        elif _is_option(words[index], letter or "c"):
            yield from _texts_after(words[index:], words[index].partition(letter)[2] if letter else "")
            found += 1
            if found > _MAX_CANDIDATES:
                raise Unreadable


def joined_in(words: Words) -> Iterator[str]:
    """The lines that a program makes of its words for a shell, `ssh host rm -rf x`, among others that it does not."""
    name = _plain_name(words)
    if name in _JOINING:
        yield from (" ".join(run) for run in _rests(words, _PREFIXES[name]))
        yield from words[words.index(":::") :] if ":::" in words else ()


def runs_in(words: Words) -> Iterator[Words]:
    """The words that another program is called with. Raises `Unreadable` where there are too many.

    Which options take a word of their own is not known here: `sudo -u root rm` may run `root` or `rm`, and both are
    answered.
    """
    name = _plain_name(words)
    if name == "find":
        for index, word in enumerate(words):
            if word in _FIND_OPTIONS:
                yield words[index + 1 :]
    elif name in _PREFIXES:
        yield from _rests(words, _PREFIXES[name])


def _plain_name(words: Words) -> str:
    """`timeout`, also of GNU's `gtimeout` among others."""
    name = name_of(words)
    known = name[1:] if name.startswith("g") else ""
    return known if known == "find" or known in _PREFIXES else name


def _is_option(word: str, letter: str) -> bool:
    return re.match(rf"-[A-Za-z]*{letter}", word) is not None


def _texts_after(words: Words, own: str) -> Iterator[str]:
    """What an option that stands first is given: text in its own word, or the first word after it that is no option."""
    if own:
        yield own
    yield from _parted(words)[1][:1]


def _parted(words: Words) -> tuple[Words, Words]:
    """A shell's options, with what they take, and the words after them."""
    index = 0
    while index < len(words) and words[index][:1] in ("-", "+") and " " not in words[index]:
        if words[index] in ("-", "--"):
            return words[:index], words[index + 1 :]
        index += 2 if words[index][-1] in "oO" else 1  # `-o pipefail`
    return words[:index], words[index:]


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
