"""Commands: which patterns of a policy a line is searched for, and in what spellings of it.

A *blocked* pattern is searched in the line as it stands, in the line *flattened* (no quotes, no backslashes, one blank
for many, `$IFS` a blank, compatibility forms plain; also with expansions as nothing, and with braces as blanks), and in
each simple command (see `shell`), also one that another runs (`sudo`, `env A=1`, `xargs`, `find -exec`, `timeout 5`:
see `wrapped`) or that is given to a shell (`sh -c "…"`, `eval "…"`, `bash <<< "…"`). Each simple command is searched as
it is written, without its assignments and redirections, and with the bare name of its program: `^rm` finds
`X=1 /bin/rm`. A pattern without `^` is found in what is only said, too: `rm -rf` stops `git commit -m "no rm -rf"`.

An *allowed* pattern is searched in each simple command as it is written, assignments before and redirections after it,
words with blanks in quotes. All of them must have one, those in `$(…)` and in `sh -c "…"` too, but what `sudo` and its
like run is part of their own command: `^sudo apt-get ` allows that, `^git ` no `sudo git`.

Where anything is blocked, a program that nobody has written is a violation: its name is a variable's value, another
command's answer or a glob (`a=rm; $a -rf`, `$(echo rm)`, `/bin/r?`), or it is a shell that reads its input or a file
that is none (`base64 -d | sh`, `bash <(curl …)`). So is a line that cannot be read, is longer than 64 Ki characters, or
has more than 500 commands in it.

Not seen through: variables and globs in a command's other words (`rm $x`), aliases and functions that were defined
before, programs that run others and are not in `wrapped` (`docker exec`, `git -c alias.x=!…`, `make`, `sudo -s`),
scripts in files or of other languages (`python -c`), other spellings of options (`rm -r -f`), shells that are not
POSIX-like. A here-document is read as commands where a shell is named on its first line, else only for what is expanded
in it. Nothing here looks at the paths that a command names: whoever runs it judges them as `Read` and `Write`.
"""

import re
from collections.abc import Callable, Iterable

from .finding import UNREADABLE, Finding
from .folding import plain
from .patterns import Pattern, encode
from .shell import MAX_COMMANDS, MAX_DEPTH, Simple, Unreadable, commands, reads_commands
from .wrapped import Words, is_vague, joined_in, lines_in, name_of, runs_in

MAX_LINE_CHARACTERS = 64 * 1024

_MAX_DEPTH = 8
_MAX_SHOWN = 2 * MAX_LINE_CHARACTERS
# In characters that are judged: bounds what wrappers in wrappers cost.
_MAX_WORK = 2 * MAX_LINE_CHARACTERS
_WORK_OF_ONE = _MAX_WORK // (4 * MAX_COMMANDS)
_IFS = re.compile(r"\$IFS\b|\$\{IFS\b[^$}]*\}")
_QUOTES = re.compile(r"\\\n|[\\'\"]")
_BLANKS = re.compile(r"[^\S\n]+")
# What may expand to nothing, or, as a default, to what stands in it.
_EXPANSION = re.compile(
    r"\$\{[^$}][^-=+/$}]*[-=+]([^$}]*)\}|\$\{[^$}][^/$}]*/[^/$}]*/([^$}]*)\}|\$\{[^$}]*\}|"
    r"\$[A-Za-z_]\w*|\$[\d@*!-]|\$\([^()$]*\)|`[^`$]*`",
    re.ASCII,
)
_BRACES = str.maketrans("{},", "   ")
_BRACE = re.compile(r"\{(?:([^{},]*(?:,[^{},]*)+)|([A-Za-z])\.\.([A-Za-z]))\}")
_MAX_SPREAD = 64
# A redirection of the input: from a document of the command's own (and its text, if it stands here), or from elsewhere.
_INPUT = re.compile(r"0?<(<(?:-|< (.*))?)?", re.DOTALL)
_CHANGING = re.compile(r"[$`{]")
_NEEDS_QUOTES = re.compile(r"[\s'\"]")


class Commands:
    """The section `commands` of a policy."""

    def __init__(self, section: dict[str, list[str]]) -> None:
        self._allowed = [Pattern(text) for text in section.get("allowed_patterns", ())]
        self._blocked = [Pattern(text) for text in section.get("blocked_patterns", ())]

    def judge(self, line: str | tuple[str, ...]) -> Finding | None:
        """`line` is a shell's, or the words of a program."""
        if not self._allowed and not self._blocked:
            return None
        text = line if isinstance(line, str) else " ".join(line)
        start = text[:MAX_LINE_CHARACTERS]
        shown = plain(start)
        found = _Found()
        is_line = bool(text) and start == text and len(shown) <= _MAX_SHOWN and "\0" not in text
        is_readable = is_line and found.read(line)
        spellings = [start, *_flattened(shown[:_MAX_SHOWN]), *found.blocked]
        texts = [encode(one) for one in dict.fromkeys(spellings)]
        if blocked := next((pattern for pattern in self._blocked if any(map(pattern.is_in, texts))), None):
            return Finding("blocked", blocked.text, texts)
        if not is_readable or (self._blocked and found.is_vague):
            return Finding("unreadable", UNREADABLE, texts)
        if self._allowed and not self._allows([encode(one) for one in dict.fromkeys(found.allowed)]):
            return Finding("allowed", "allowed_patterns", texts)
        return None

    def _allows(self, texts: list[bytes]) -> bool:
        """True when there is a command, and each has a pattern."""
        return bool(texts) and all(any(pattern.is_in(text) for pattern in self._allowed) for text in texts)


class _Found:
    """Collects the spellings of simple commands, as many as are bearable."""

    def __init__(self) -> None:
        self.blocked: list[str] = []
        self.allowed: list[str] = []
        self.is_vague = False  # some of what is run is not written here
        self._left = _MAX_WORK

    def read(self, line: str | tuple[str, ...]) -> bool:
        """Collect from a line, or from the words of a program. False: not understood to its end."""
        try:
            if isinstance(line, str):
                self.add_line(line, 0)
            else:
                self.add(Simple(line), 0)
        except Unreadable:
            return False
        return True

    def add_line(self, line: str, depth: int) -> None:
        for simple in commands(line):
            self.add(simple, depth)

    def add(self, simple: Simple, depth: int) -> None:
        self.allowed.append(_written(simple))
        self.blocked.append(self.allowed[-1])
        inputs = [match for match in map(_INPUT.match, simple.redirections) if match]
        is_fed, was_vague = bool(inputs) and all(match[1] for match in inputs), self.is_vague
        if any(map(reads_commands, simple.words)):
            for text in (match[2] for match in inputs if match[2]):
                self.add_line(text, depth + 1)
        for words in _variants(simple.words):
            self.add_words(words, depth, is_fed=is_fed)
        if simple.is_doubtful:
            self.is_vague = was_vague

    def add_words(self, words: Words, depth: int, *, is_fed: bool = False) -> None:
        self._left -= _WORK_OF_ONE + sum(map(len, words))
        if self._left < 0 or depth > _MAX_DEPTH:
            raise Unreadable
        if not words:
            return
        self.is_vague = self.is_vague or is_vague(words, is_fed=is_fed)
        self.blocked += _bare(words)
        for line in lines_in(words):
            self.add_line(line, depth + 1)
        own = len(self.allowed)
        for line in joined_in(words):
            self.add_line(line, depth + 1)
        del self.allowed[own:]  # part of their own command, as what `sudo` runs
        for run in runs_in(words):
            self.add_words(run, depth + 1, is_fed=is_fed)


def _written(simple: Simple) -> str:
    """`A=1 git commit -m 'two words' > log`."""
    return " ".join([*map(_quoted, simple.assignments), *map(_quoted, simple.words), *simple.redirections])


def _quoted(word: str) -> str:
    if word and not _NEEDS_QUOTES.search(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def _variants(words: Words) -> Iterable[Words]:
    """Words as a shell may make others of them: split at `$IFS`, with expansions as nothing, and with braces spread."""
    if not _CHANGING.search("".join(words)):
        return [words]
    split = _respelled(words, lambda word: _IFS.sub(" ", word))
    emptied = _respelled(split, _emptied)
    return dict.fromkeys([words, split, emptied, _respelled(emptied, _spread)])


def _respelled(words: Words, respell: Callable[[str], str]) -> Words:
    """Words that are changed by `respell` are split again, and may vanish. One with blanks in it was in quotes."""
    changing = (_CHANGING.search(word) and not _NEEDS_QUOTES.search(word) for word in words)
    return tuple(
        part
        for word, changes in zip(words, changing, strict=True)
        for part in (respell(word).split() if changes else [word])
    )


def _spread(word: str) -> str:
    """A word's braces as a shell spreads them: `-r{f,}` is `-rf -r`. Raises `Unreadable` for more than 64 words."""
    waiting, done = [word], []
    while waiting:
        one = waiting.pop()
        brace = _BRACE.search(one)
        if brace is None:
            done.append(one)
        else:
            waiting += [one[: brace.start()] + part + one[brace.end() :] for part in reversed(_parts(brace))]
        if len(waiting) + len(done) > _MAX_SPREAD:
            raise Unreadable
    return " ".join(done)


def _parts(brace: re.Match[str]) -> list[str]:
    if brace[1] is not None:
        return brace[1].split(",")
    first, last = ord(brace[2]), ord(brace[3])
    return [chr(each) for each in range(first, last + 1)] or [chr(each) for each in range(first, last - 1, -1)]


def _bare(words: Words) -> list[str]:
    """A simple command's words alone, and with the bare name of its program."""
    spellings = [" ".join(words), " ".join([name_of(words), *words[1:]])]
    return [*spellings, *(_BLANKS.sub(" ", plain(one)).strip() for one in spellings)]


def _flattened(text: str) -> Iterable[str]:
    """A line without the arts of quoting: by text alone, so that no error of reading it counts."""
    flat = _QUOTES.sub("", _IFS.sub(" ", text))
    emptied = _emptied(flat)
    return (_BLANKS.sub(" ", one).strip() for one in (flat, emptied, emptied.translate(_BRACES)))


def _emptied(text: str) -> str:
    """What remains where all that is expanded is empty: `r$@m` is `rm`. A default stays: `${x:-rm}` is `rm`."""
    for _ in range(MAX_DEPTH):
        before, text = text, _EXPANSION.sub(lambda found: found[1] or found[2] or "", text)
        if text == before:
            break
    return text
