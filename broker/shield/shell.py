"""A shell's line, taken apart: the simple commands in it, each as its words without quotes.

    cd /data && r''m -rf "$(cat list)"   →   cd /data  ·  cat list  ·  rm -rf $()

It reads what POSIX shells and bash share: quotes (`'…'`, `"…"`, `$'…'`), backslashes, `;` `&` `&&` `|` `||` newlines,
groups, reserved words, assignments before a command, redirections, comments, here-documents, and commands inside of
`$(…)`, backticks, `<(…)` and `${x:-$(…)}`. It knows no values: `$x` stays `$x`, what a command answers is `$()`, and
globs and braces stay as they are.

What it does not understand as a shell does, it reads as more commands, never as fewer: the patterns of a `case` and the
insides of `((…))`, `$((…))` and of an array are commands to it. What it cannot read at all (a quote without its end,
quotes inside of `${…}`, a here-document whose end shells do not agree on, `$((a) ; b)`, 500 commands, 20 levels) raises
`Unreadable`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_COMMANDS = 500
MAX_DEPTH = 20

_BLANKS = re.compile(r"(?:[ \t]|\\\n)+")
_PLAIN = re.compile(r"[^ \t\n'\"\\$`;&|()<>]+")
_EXPANDING = re.compile(r"[\\$`]")
_QUOTED = re.compile(r'[^"\\$`]+')
_BRACED = re.compile(r"[^}'\"\\$`]+")
_SINGLE = re.compile(r"'([^']*)'")
_ANSI = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL)
_BACKTICK = re.compile(r"`((?:[^`\\]|\\.)*)`", re.DOTALL)
_COMMENT = re.compile(r"#[^\n]*")
_REDIRECT = re.compile(r"&>>|&>|<<-|<<<|<<|<>|<&|<|>>|>&|>\||>")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(?:\[[^\]]*\])?\+?=", re.ASCII)
_ESCAPE = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|c(.)|(.))", re.DOTALL
)
_ESCAPED = {"a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_RESERVED = {"!", "{", "}", "if", "then", "elif", "else", "fi", "do", "done", "while", "until", "esac"}
_OPENING = _RESERVED | {"for", "select", "case", "function"}
# `$u` where what follows would belong to its name without the quotes: `"$u"m`.
_VARIABLE = re.compile(r"""\$([A-Za-z_]\w*)(?=['"\\$]+\w)""", re.ASCII)
_DESCRIPTOR = re.compile(r"\d+|\{\w+\}", re.ASCII)
_SHELL = re.compile(r"(?:r?ba|r?k|mk|lk|pdk|ok|r?z|a|da|c|tc|ya|po|fi|hu|pw|)sh[\d.-]*", re.ASCII)
# Other programs that read commands from their input.
_READERS = {"at", "batch", "busybox", "ssh", "su"}


class Unreadable(Exception):  # noqa: N818 (reads as a statement)
    """This is no line that can be judged."""


def is_shell(name: str) -> bool:
    """True for the bare name of a shell, of any version."""
    return _SHELL.fullmatch(name) is not None


def reads_commands(word: str) -> bool:
    """True for a program that may read commands from its input."""
    name = word.rpartition("/")[2].lower()
    return is_shell(name) or name in _READERS


class Simple(NamedTuple):
    """One simple command: `A=1 git log >out 2>&1` has one assignment, two words and two redirections.

    `is_doubtful`: nothing should run it, since it stands where `case` has a pattern, or in `$((…))`.
    """

    words: tuple[str, ...]
    assignments: tuple[str, ...] = ()
    redirections: tuple[str, ...] = ()
    is_doubtful: bool = False


class _Word(NamedTuple):
    text: str
    raw: str  # as it was written


class _Document(NamedTuple):
    """A here-document whose lines are to come."""

    end: str
    is_indented: bool
    is_literal: bool


def commands(line: str) -> list[Simple]:
    """The simple commands of a line, the inner ones of a word before the command it belongs to.

    Takes time in proportion to the line's length. Raises `Unreadable`.
    """
    if "\0" in line:
        raise Unreadable
    found: list[Simple] = []
    _Reader(line, 0, found).read("")
    return found


class _Reader:
    """Reads `text` from `at` on; what is inside of something else is read on the way, one `depth` below."""

    def __init__(self, text: str, depth: int, found: list[Simple]) -> None:
        self.text = text
        self.at = 0
        self.depth = depth
        self.found = found
        self.documents: list[_Document] = []
        self.has_shell = False  # on this line
        self.is_arithmetic = False  # in `((…))`, which may as well be two groups
        self.is_expression = False  # in `$((…))`
        self.is_pattern = False

    def read(self, end: str) -> None:
        """Read commands up to `end`, a `)`, or without one up to the end of the text."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        words: list[_Word] = []
        redirections: list[str] = []
        separator = -1  # where the last one stood
        while character := self._next():
            if redirect := self._redirect(words):
                redirections.append(redirect)
            elif character not in ";&|\n()":
                words.append(self._word())
            else:
                self.at += 1
                self._close(words, redirections)
                if character == ")":
                    self.is_pattern = False
                elif separator == self.at - 2 and self.text[separator : self.at] in (";;", ";&"):
                    self.is_pattern = True
                separator = self.at - 1
                if character == "\n":
                    self._take_documents()
                elif character == "(":
                    self._group()
                elif character == end:
                    self.depth -= 1
                    return
        if end or self.documents:
            raise Unreadable
        self._close(words, redirections)

    def _group(self) -> None:
        """`(…)`; in `((…))` no `<<` is a here-document and no `#` a comment: nothing is skipped."""
        outside = self.is_arithmetic
        self.is_arithmetic = outside or self.text.startswith("((", self.at - 2)
        self.read(")")
        self.is_arithmetic = outside

    def _next(self) -> str:
        """The first character after blanks and a comment; nothing at the end."""
        for skipped in (_BLANKS,) if self.is_arithmetic else (_BLANKS, _COMMENT):
            if match := skipped.match(self.text, self.at):
                self.at = match.end()
        return self.text[self.at : self.at + 1]

    def _close(self, words: list[_Word], redirections: list[str]) -> None:
        """A simple command ends here."""
        while words and (reserved := self._reserved(words)):
            del words[:reserved]
        first = next((index for index, word in enumerate(words) if not _ASSIGNMENT.match(word.raw)), len(words))
        texts = tuple(word.text for word in words)
        if texts or redirections:
            if len(self.found) >= MAX_COMMANDS:
                raise Unreadable
            is_doubtful = self.is_pattern or self.is_expression
            self.found.append(Simple(texts[first:], texts[:first], tuple(redirections), is_doubtful))
        if words and words[0].raw == "case" and words[-1].raw != "esac" and not redirections:
            self.is_pattern = True
        words.clear()
        redirections.clear()

    def _reserved(self, words: list[_Word]) -> int:
        """How many words at the start are the language's own; `esac` ends the patterns, too."""
        match words[0].raw:
            case "function":
                return 2  # a function's body is judged where it is defined
            case "coproc":  # it has a name only before what is reserved
                return 2 if len(words) > 2 and words[2].raw in _OPENING else 1
            case "time":  # elsewhere it is a program
                after = next((index for index, word in enumerate(words[1:], 1) if word.raw[:1] != "-"), 0)
                return after if words[after].raw in _OPENING else 0
            case "for" | "select":  # names and values; what they are expanded from was read
                return next((index for index, word in enumerate(words) if word.raw in ("do", "{")), len(words))
            case "esac":
                self.is_pattern = False
        return int(words[0].raw in _RESERVED)

    def _redirect(self, words: list[_Word]) -> str | None:
        """A redirection with its target, if one stands here: `2>&1`, `> out`."""
        match = _REDIRECT.match(self.text, self.at)
        if match is None or self.text.startswith(("<(", ">("), self.at):
            return None
        before = words[-1].raw if words and self.text.startswith(words[-1].raw, self.at - len(words[-1].raw)) else ""
        number = words.pop().raw if _DESCRIPTOR.fullmatch(before) else ""
        self.at = match.end()
        if self._next() in (*";&|\n()<>", "") and not self.text.startswith(("<(", ">("), self.at):
            raise Unreadable
        target = self._word()
        if match[0] in ("<<", "<<-") and not self.is_arithmetic:
            if "[" in before:
                raise Unreadable  # `a[1<<2]=3` is arithmetic to bash, and a here-document to others
            is_literal = target.raw != target.text
            self.documents.append(_Document(target.text, match[0] == "<<-", is_literal))
        return number + match[0] + ("" if match[0].endswith("&") else " ") + target.text

    def _take_documents(self) -> None:
        """The lines of the here-documents that begin here: data, save for what is expanded in them.

        They are commands to a shell; where one is named on a line so far, they are read so.
        """
        for document in self.documents:
            body = "".join(self._lines(document))
            if self.has_shell:
                _Reader(body, self.depth, self.found).read("")
            elif not document.is_literal:
                _Reader(body, self.depth, self.found).expand()
        self.documents = []
        self.has_shell = False

    def _lines(self, document: _Document) -> Iterator[str]:
        while self.at < len(self.text):
            end = self.text.find("\n", self.at) + 1 or len(self.text)
            line = self.text[self.at : end]
            self.at = end
            if (line.lstrip("\t") if document.is_indented else line).removesuffix("\n") == document.end:
                return
            yield line
        raise Unreadable

    def expand(self) -> None:
        """Read the commands that are expanded in a text with quotes around it."""
        while special := _EXPANDING.search(self.text, self.at):
            self.at = special.start()
            if special[0] == "\\":
                self.at += 2
            else:
                self._expansion()

    def _word(self) -> _Word:
        start = self.at
        parts: list[str] = []
        while (part := self._part()) is not None:
            parts.append(part)
        word = _Word("".join(parts), self.text[start : self.at])
        self.has_shell = self.has_shell or reads_commands(word.text)
        return word

    def _part(self) -> str | None:
        """A piece of a word, without its quotes. None: the word ends here."""
        if plain := _PLAIN.match(self.text, self.at):
            self.at = plain.end()
            return plain[0]
        match self.text[self.at : self.at + 1]:
            case "'":
                return self._take(_SINGLE)[1]
            case '"':
                return self._quotes()
            case "\\":
                return self._backslash()
            case "$" if self.text.startswith("$'", self.at):
                return _ESCAPE.sub(_unescape, self._take(_ANSI)[1])
            case "$" if self.text.startswith('$"', self.at):
                self.at += 1
                return ""
            case "$" | "`":
                return self._expansion()
            case "<" | ">" if self.text.startswith("(", self.at + 1):
                return self._substitution()
        return None

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise Unreadable
        self.at = match.end()
        return match

    def _backslash(self) -> str:
        """What a backslash outside of quotes keeps; nothing of a line's end."""
        kept = self.text[self.at + 1 : self.at + 2]
        self.at += 1 + len(kept)
        return "" if kept == "\n" else kept or "\\"

    def _quotes(self) -> str:
        """`"…"`, in which `$`, backticks and some backslashes still mean something."""
        self.at += 1
        parts: list[str] = []
        while not self.text.startswith('"', self.at):
            if plain := _QUOTED.match(self.text, self.at):
                self.at = plain.end()
                parts.append(plain[0])
            elif self.text.startswith("\\", self.at):
                kept = self.text[self.at + 1 : self.at + 2]
                parts.append(self._backslash() if kept in '"$`\\\n' else "\\" + self._backslash())
            else:
                parts.append(self._expansion())
        self.at += 1
        return "".join(parts)

    def _expansion(self) -> str:
        """At a `$` or a backtick: reads the commands inside, and answers the expansion without them."""
        if self.text.startswith("`", self.at):
            inner = self._take(_BACKTICK)
            _Reader(re.sub(r'\\([`$\\"])', r"\1", inner[1]), self.depth, self.found).read("")
            return "$()"
        if self.text.startswith("$(", self.at):
            return self._substitution()
        if self.text.startswith("${", self.at):
            return self._braces()
        if not self.text.startswith("$", self.at):
            raise Unreadable  # the end of the text, inside of quotes
        if variable := _VARIABLE.match(self.text, self.at):
            self.at = variable.end()
            return "${" + variable[1] + "}"
        self.at += 1
        return "$"

    def _substitution(self) -> str:
        """`$(…)`, `<(…)`, `>(…)`. A here-document over its end is somewhere else in each shell."""
        start = self.at
        documents, self.documents = self.documents, []
        outside = self.is_arithmetic, self.is_expression, self.is_pattern
        self.is_arithmetic = self.is_expression = self.text.startswith("$((", start)
        self.is_pattern = False
        self.at += 3 if self.is_expression else 2
        self.read(")")
        if self.is_expression and not self._passes(")"):
            raise Unreadable  # `$((a) ; b)` are two groups
        self.is_arithmetic, self.is_expression, self.is_pattern = outside
        if self.documents or (documents and "\n" in self.text[start : self.at]):
            raise Unreadable
        self.documents = documents
        return self.text[start : start + 2] + ")"

    def _passes(self, character: str) -> bool:
        is_next = self.text.startswith(character, self.at)
        self.at += is_next
        return is_next

    def _braces(self) -> str:
        self.at += 2
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        parts: list[str] = []
        while not self.text.startswith("}", self.at):
            if plain := _BRACED.match(self.text, self.at):
                self.at = plain.end()
                parts.append(plain[0])
            elif self.text.startswith("\\", self.at):
                parts.append(self._backslash())
            elif self.text.startswith(("$", "`"), self.at):
                parts.append(self._expansion())
            else:
                raise Unreadable
        self.at += 1
        self.depth -= 1
        return "${" + "".join(parts) + "}"


def _unescape(escape: re.Match[str]) -> str:
    """As `$'…'` has it: `\\x72` is `r`."""
    octal, short, four, eight, control, other = escape.groups()
    if other is not None:
        return _ESCAPED.get(other, other)
    if control is not None:
        return chr(ord(control) & 0x1F)
    number = int(octal, 8) & 0xFF if octal else int(short or four or eight, 16)
    return chr(number) if number <= 0x10FFFF else "\ufffd"
