"""Shields: what a policy may hold, and a table of what each lets pass and stops, attacks among them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.catalog import CATALOG
from broker.errors import Invalid
from broker.shield import ALLOWED, Action, Command, Execute, Network, Policy, Read, Violation, Write, validate
from broker.shield.folding import fold
from broker.shield.patterns import Pattern

# The seed's example of a PUT.
SEED: dict[str, Any] = {
    "filesystem": {"allowed_paths": ["/project/**"], "blocked_paths": ["/root", "~/.ssh"]},
    "commands": {"allowed_patterns": ["^python .*", "^git .*"], "blocked_patterns": ["rm -rf"]},
}
LISTS = {"filesystem": "paths", "commands": "patterns", "network": "hosts"}
HOME = "/home/joe"


def shield(section: str, allowed: list[str] | None = None, blocked: list[str] | None = None, **options: Any) -> Policy:
    """A policy of one section."""
    lists = {f"allowed_{LISTS[section]}": allowed, f"blocked_{LISTS[section]}": blocked}
    return Policy({section: {name: given for name, given in lists.items() if given is not None}}, **options)


def verdict(policy: Policy, action: Action) -> str | None:
    """The pattern that stops an action; None: it may be done."""
    verdict = policy.check(action)
    return verdict.pattern if isinstance(verdict, Violation) else None


# -- paths

FILES = shield(
    "filesystem",
    ["/data", "/project/**", "/logs/*.txt", "~/work"],
    ["/root", "/etc", "~/.ssh", "/data/*.key"],
    home=HOME,
)
NOT_LISTED, UNREADABLE = "allowed_paths", "unreadable"
# Where a `Write` fails though nothing else does: these directories hold what is blocked.
ABOVE = {"/data": "/data/*.key", "/data/": "/data/*.key", "/data/..": "/root"}
PATHS = [
    ("/data/report.csv", None, "below an allowed directory"),
    ("/data", None, "the allowed directory itself"),
    ("/data/", None, "a slash at the end says nothing"),
    ("//data///report.csv", None, "many slashes are one"),
    ("/data/./a/../report.csv", None, "the detour stays inside"),
    ("/database/x", NOT_LISTED, "a name that begins with an allowed one is another name"),
    ("/project", None, "`/project/**` is the directory and all below it"),
    ("/project/a/b/c", None, "`**` crosses slashes"),
    ("/projects", NOT_LISTED, "`/project/**` needs a slash"),
    ("/logs/a.txt", None, "`*` is any name"),
    ("/logs/a/b.txt", NOT_LISTED, "`*` does not cross a slash"),
    ("/logs/a.txt/b", NOT_LISTED, "an allowed entry with `*` covers only what it names"),
    ("/logs", NOT_LISTED, "what is allowed below a directory is not the directory"),
    ("/data/a.key", "/data/*.key", "a blocked entry wins over the allowed list"),
    ("/data/a.key/x", "/data/*.key", "a blocked entry covers what is below, `*` or not"),
    ("/data/a/b.key", None, "`*` does not cross a slash in a blocked entry either"),
    ("/root", "/root", "the blocked directory itself"),
    ("/root/a", "/root", "below a blocked directory"),
    ("/data/../etc/passwd", "/etc", "`..` leads out"),
    ("/data/../../../../etc/passwd", "/etc", "`..` above the root is the root"),
    ("/data/./../etc//passwd", "/etc", "all arts at once"),
    ("/etc/", "/etc", "a slash at the end hides nothing"),
    ("/data/..", NOT_LISTED, "that is the root, which nobody allowed"),
    ("/ETC/passwd", "/etc", "some filesystems take upper for lower case"),
    ("/ｅｔｃ/passwd", "/etc", "full-width letters fold to plain ones"),
    ("/data/．．/etc/passwd", "/etc", "full-width dots fold to `..`"),
    ("/data／..／etc/passwd", "/etc", "a full-width slash folds to a plain one"),
    ("/e\u200btc/passwd", "/etc", "some filesystems ignore what is invisible"),
    ("/e\ufe0ftc/passwd", "/etc", "a variation selector"),
    ("/e\u034ftc/passwd", "/etc", "a grapheme joiner"),
    ("/data/\u2025/etc", "/etc", "a two dot leader folds to `..`"),
    ("/\u0435tc/passwd", NOT_LISTED, "a Cyrillic letter is another one: nothing blocked, and nothing allowed"),
    ("/data/%2e%2e/etc/passwd", None, "a file of this name: no filesystem knows %2e"),
    ("/proc/self/root/etc/passwd", "/etc", "the kernel's own link to the root"),
    ("/proc/1/root/proc/self/root/etc", "/etc", "twice"),
    ("/proc/self/root/../etc/passwd", "/etc", "the root's `..` is the root"),
    ("/data/../proc/self/task/7/root/etc", "/etc", "a thread's"),
    ("/proc/self/cwd/passwd", UNREADABLE, "the kernel's link to where nobody knows"),
    ("/data/../dev/fd/3/passwd", UNREADABLE, "the same"),
    ("/proc/self/root/data/x", NOT_LISTED, "leads inside, but is spelled outside"),
    ("~/.ssh/id_rsa", "~/.ssh", "the home's own spelling"),
    ("/home/joe/.ssh", "~/.ssh", "and without it"),
    ("/home/joe/work/../.ssh/x", "~/.ssh", "`..` below the home"),
    ("~/work/a", None, "allowed below the home"),
    ("/home/joe/work/a", None, "the same file"),
    ("~/other", NOT_LISTED, "not all of the home is allowed"),
    ("~/../../etc/passwd", "/etc", "`..` above the home"),
    ("~root", "/root", "another user's home"),
    ("~root/.bashrc", "/root", "and below it"),
    ("~ann/work", UNREADABLE, "another user's home is known to the system alone"),
    ("~joe/.ssh", UNREADABLE, "and may be ours"),
    ("~+/x", UNREADABLE, "the shell's own directory is known to the shell alone"),
    ("data/x", UNREADABLE, "relative: only the caller knows to what"),
    ("", UNREADABLE, "no path"),
    ("/data/" + "a" * 32768, UNREADABLE, "longer than any path"),
    ("/data/a\0/../../etc", UNREADABLE, "C sees another path than Python"),
    ("/data/a\n/etc/passwd", None, "one file below /data, with a newline in its name"),
    ("/data/\udcff", None, "a byte that is no text is still below /data"),
    ("/etc/\udcff", "/etc", "and hides nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "pattern", "why"), PATHS, ids=[repr(path[:50]) for path, _, _ in PATHS])
def test_a_path_is_stopped_however_it_is_spelled(path: str, pattern: str | None, why: str) -> None:
    assert verdict(FILES, Read(path)) == pattern, why
    assert verdict(FILES, Write(path)) == ABOVE.get(path, pattern), why
    assert verdict(FILES, Execute(path)) == pattern, why


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/", "~/.ssh"),
        ("/home", "~/.ssh"),
        ("/home/joe/", "~/.ssh"),
        ("/HOME/joe/x/..", "~/.ssh"),
        ("/home/joe/.cache", None),
        ("/data", "/data/*/keys/**/x"),
        ("/data/a", "/data/*/keys/**/x"),
        ("/data/a/keys", "/data/*/keys/**/x"),
        ("/data/a/keys/b", None),
        ("/data/a/locks", None),
    ],
)
def test_who_moves_or_removes_a_directory_does_so_to_what_is_blocked_in_it(path: str, pattern: str | None) -> None:
    policy = shield("filesystem", None, ["~/.ssh", "/data/*/keys/**/x"], home=HOME)
    assert verdict(policy, Write(path)) == pattern
    assert verdict(policy, Read(path)) is None


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("~/.ssh/id", "~/.ssh"),
        ("/home/ann/.ssh/id", "~/.ssh"),
        ("/Users/ann/.ssh", "~/.ssh"),
        ("/root/.ssh", "~/.ssh"),
        ("/srv/ann/.ssh", "allowed_paths"),
        ("~/work/a", None),
        ("~/x/../work/a", None),
        ("~/../work/a", "unreadable"),
        ("~/x/../../work", "unreadable"),
        ("~/．．/work/a", "unreadable"),
        ("/home/ann/work/a", "allowed_paths"),
        ("/home/ann", "allowed_paths"),
    ],
)
def test_a_home_that_nobody_named_is_judged_strictly(path: str, pattern: str | None) -> None:
    assert verdict(shield("filesystem", ["~/work"], ["~/.ssh"]), Read(path)) == pattern


def test_a_path_under_an_unknown_home_may_be_under_roots() -> None:
    assert verdict(shield("filesystem", None, ["/root"]), Read("~/x")) == "/root"
    assert verdict(shield("filesystem", None, ["/root"], home=HOME), Read("~/x")) is None


def test_a_home_is_an_absolute_path() -> None:
    with pytest.raises(Invalid, match=r"^home: "):
        Policy({}, home="home/joe")
    assert verdict(shield("filesystem", None, ["~/.ssh"], home="/srv/joe/"), Read("/srv/joe/.ssh")) == "~/.ssh"


def test_a_link_of_the_kernel_s_is_judged_by_where_it_leads() -> None:
    assert verdict(FILES, Read("/proc/self/cwd/x", "/data/x")) == "allowed_paths"
    assert verdict(FILES, Read("/proc/self/cwd/x", "/etc/x")) == "/etc"
    assert verdict(shield("filesystem", None, ["/etc"]), Read("/proc/self/fd/3", "/data/x")) is None


def test_a_link_is_judged_by_where_it_leads(tmp_path: Any) -> None:
    data, secret, link = tmp_path / "data", tmp_path / "secret", tmp_path / "alias"
    data.mkdir()
    secret.mkdir()
    (data / "door").symlink_to(secret)
    link.symlink_to(data)
    policy = shield("filesystem", [str(link)], [str(secret)], resolve=os.path.realpath)

    def pattern(path: object) -> str | None:
        return verdict(policy, Read(str(path), os.path.realpath(str(path))))

    assert pattern(link / "file") is None, "the policy's own link is followed too"
    assert pattern(data / "file") is None
    assert pattern(link / "door" / "file") == str(secret)
    assert pattern(link / "door" / ".." / "file") == "allowed_paths", "`..` of a link is where the link leads"
    assert verdict(policy, Read(str(link / "x"), "/elsewhere/x")) == "allowed_paths", "both must be allowed"


def test_an_allowed_list_of_letters_that_fold_allows_exactly_them() -> None:
    policy = shield("filesystem", ["/daté"])
    assert verdict(policy, Read("/daté/x")) is None
    assert verdict(policy, Read("/date\u0301/x")) == "allowed_paths"
    assert verdict(policy, Read("/DATÉ/x")) == "allowed_paths"
    assert verdict(shield("filesystem", None, ["/daté"]), Read("/date\u0301/x")) == "/daté"


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("/", ["/", "/a", "/a/b"], ["~"]),
        ("/**", ["/", "/a/b"], []),
        ("/*", ["/a"], ["/", "/a/b"]),
        ("/a?", ["/ab"], ["/a", "/abc", "/a/b"]),
        ("/a/**/b", ["/a/b", "/a/x/b", "/a/x/y/b"], ["/a/xb", "/ab", "/a/x"]),
        ("/a/**/*.py", ["/a/x.py", "/a/b/c/x.py"], ["/a/x.pyc", "/x.py"]),
        ("/[id]/{a,b}", ["/[id]/{a,b}/x"], ["/i/a"]),
        ("/a.c", ["/a.c"], ["/abc"]),
    ],
)
def test_globs(entry: str, inside: list[str], outside: list[str]) -> None:
    policy = shield("filesystem", [entry])
    assert [path for path in inside if verdict(policy, Read(path))] == []
    assert [path for path in outside if not verdict(policy, Read(path))] == []


# -- commands

NO_RM = shield("commands", None, ["^rm -rf"])
BLOCKED_LINES = [
    ("rm -rf /", "as it stands"),
    ("  rm -rf /", "blanks before"),
    ("rm  -rf /", "blanks between"),
    ("rm\t-rf /", "a tab"),
    ("r''m -rf /", "empty quotes"),
    ('"rm" -rf /', "quotes"),
    ("r\\m -rf /", "a backslash"),
    ("r\\\nm \\\n-rf /", "a line goes on"),
    ("$'\\x72m' -rf /", "ANSI-C quoting"),
    ("$'\\162\\155' -rf /", "in octal"),
    ('$"rm" -rf /', "a translated string"),
    ("r$@m -rf /", "an expansion of nothing"),
    ("r${x}m -rf /", "a variable without value"),
    ("${x:-rm} -rf /", "its default"),
    ("$(true)rm -rf x", "a command without an answer"),
    ("$x sudo rm -rf x", "nothing, before a command that runs another"),
    ("ls; {sudo,rm,-rf,x}", "that command, spread"),
    ("rm$IFS-rf$IFS/", "$IFS is a blank"),
    ("rm${IFS}-rf${IFS%??}/", "in braces"),
    ("{rm,-rf,/}", "braces are spread"),
    ("/bin/rm -rf /", "a program by its path"),
    ("/usr/bin/../bin/rm -rf /", "by another"),
    ("RM -rf /", "some filesystems take upper for lower case"),
    ("ｒｍ -rf /", "full-width letters fold to plain ones"),
    ("r\u200bm -rf /", "invisible characters vanish"),
    ("cd /; rm -rf x", "after `;`"),
    ("true && rm -rf x", "after `&&`"),
    ("false || rm -rf x", "after `||`"),
    ("ls | rm -rf x", "after `|`"),
    ("ls & rm -rf x", "after `&`"),
    ("ls\nrm -rf x", "on a line of its own"),
    ("(rm -rf x)", "in a subshell"),
    ("{ rm -rf x; }", "in a group"),
    ("if true; then rm -rf x; fi", "after a reserved word"),
    ("for i in 1; do rm -rf x; done", "in a loop"),
    ("case x in x) rm -rf x;; esac", "in a case"),
    ("f() { rm -rf x; }; f", "in a function"),
    ("function f { rm -rf x; }", "in bash's"),
    ("! rm -rf x", "after `!`"),
    ("echo $(rm -rf x)", "in a substitution"),
    ('echo "a $(rm -rf x)"', "in one in quotes"),
    ("echo `rm -rf x`", "in backticks"),
    ("echo `echo \\`rm -rf x\\``", "in backticks in backticks"),
    ("echo ${a:-$(rm -rf x)}", "in a default"),
    ("cat <(rm -rf x)", "in a process substitution"),
    ("ls > >(rm -rf x)", "as the target of a redirection"),
    ("X=1 rm -rf x", "after an assignment"),
    (">/dev/null rm -rf x", "after a redirection"),
    ('sh -c "rm -rf x"', "given to a shell"),
    ('bash -lc "rm -rf x"', "after other options"),
    ('bash -o pipefail -xco posix "rm -rf x"', "after options with words of their own"),
    ("bash -c \"bash -c 'rm -rf x'\"", "twice"),
    ("eval 'rm -rf' x", "eval"),
    ("env X=1 rm -rf x", "env"),
    ("env -S 'rm -rf x'", "env that splits"),
    ("sudo rm -rf x", "sudo"),
    ("sudo -u root -- rm -rf x", "sudo with options"),
    ("su root -c 'rm -rf x'", "su"),
    ("nohup nice -n 5 rm -rf x", "one in another"),
    ("timeout -k 5 10 rm -rf x", "a wrapper with words of its own"),
    ("echo x | xargs -n 1 rm -rf", "xargs"),
    ("find . -exec rm -rf {} +", "find"),
    ("busybox rm -rf x", "busybox"),
    ("command rm -rf x", "the shell's own"),
    ("trap 'rm -rf x' EXIT", "for later"),
    ("bash <<E\nrm -rf x\nE", "a here-document for a shell"),
    ("cat <<E\n$(rm -rf x)\nE", "expanded in a here-document"),
    ("cat <<'E'\nit's\nE\nrm -rf x", "after a here-document"),
    ("echo $((1<<2))\nrm -rf x\n2\n", "a shift is no here-document"),
    ("echo$IFS#; rm -rf x", "no comment to a shell"),
    ("((2 #2)); rm -rf x\n))", "nor is this"),
    ("coproc N { rm -rf x; }", "with a name before it"),
    ("echo 'rm'; echo 'it\nrm -rf", "a quote without its end: what is before it was run"),
    ("for i do rm -rf x; done", "`do` without `in`"),
    ("select i do rm -rf x; done", "the same"),
    ("coproc N if rm -rf x; then ls; fi", "a reserved word after a name"),
    ("time -p { rm -rf x; }", "bash's own `time`"),
    ("time for i do rm -rf x; done", "before a loop"),
    ("{fd}>x rm -rf x", "a descriptor that has a name"),
    ("r$1m -rf x", "`$1` is one digit long"),
    ("r$!m -rf x", "no job was in the background"),
    ('r"$u"m -rf x', "a quote ends a variable's name"),
    ("${@:-rm} -rf x", "a default of all arguments"),
    ("${a[0]:-rm} -rf x", "of an array"),
    ("${a:-${b:-${c:-${d:-${e:-rm}}}}} -rf x", "a default of a default"),
    ("${x/#/rm} -rf x", "put in place of nothing"),
    ("rm -r{f,} x", "a part of a word is spread"),
    ("{r..r}{m..m} -rf x", "letters in a row"),
    ("=rm -rf x", "zsh's way to a path"),
    ("noglob rm -rf x", "zsh's own"),
    ("bash <<< 'rm -rf x'", "a here-string"),
    ("sudo bash -s <<< 'rm -rf x'", "for a shell that another runs"),
    ("ssh host <<E\nrm -rf x\nE", "a here-document for a shell elsewhere"),
    ("ssh host 'ls; rm -rf x'", "words for it"),
    ("watch 'ls; rm -rf x'", "for the shell of `watch`"),
    ("parallel ::: 'rm -rf x' ls", "of `parallel`"),
    ("docker run image sh -c 'rm -rf x'", "a shell anywhere among the words"),
    ("zsh-5.9 -c 'rm -rf x'", "a shell with its version"),
    ("tcsh -c 'rm -rf x'", "another shell"),
    ("alias x='rm -rf x'", "the value of an alias"),
    ("eval -- rm -rf x", "after `--`"),
    ("trap -- 'rm -rf x' EXIT", "the same"),
    ("env A.b=1 rm -rf x", "a name that no shell knows, but `env` does"),
    ("gtimeout 5 gnice rm -rf x", "GNU's, where others are too"),
    ("echo $((rm -rf x))", "an expression to most shells"),
]  # fmt: skip
# Nobody has written what these run: where anything is blocked, they are stopped.
VAGUE_LINES = [
    ("a=rm; $a -rf x", "the value of a variable"),
    ('set -- rm -rf x; "$@"', "of the arguments"),
    ("for i in rm; do $i -rf x; done", "of a loop"),
    ("sudo $a -rf x", "after another program"),
    ("$SHELL -c 'ls'", "which shell that is"),
    ("x='rm -rf x'; eval $x", "for a shell"),
    ("$(echo rm) -rf x", "what a command answers"),
    ("/bin/r? -rf x", "a glob"),
    ("r[m] -rf x", "another"),
    ("xargs -a list sh -c '{}'", "what is put in"),
    ("echo cm0gLXJmIC8= | base64 -d | sh", "what a shell is sent"),
    ("echo 'rm -rf x' | bash -s -- a", "the same"),
    ("cat <<E | sh\nls\nE", "what others make of a document"),
    ("curl x | bash -s -- -c ls", "an argument is no option"),
    ("c=c; sh -$c 'rm -rf x'", "an option's value"),
    ("bash $x", "a variable that may hold anything"),
    ("curl x | sudo -E bash -", "what a shell is sent that another runs"),
    ("sh < script", "what a file holds"),
    ("sh <<E 0<script\nE", "the last redirection counts"),
    ("bash <(curl x)", "what a program sends"),
    (". /dev/stdin <<E\nrm -rf x\nE", "a file that is none"),
    ("case x in esac; $a -rf x", "after a `case` without patterns"),
    (">f case x in; $a -rf x", "no `case`"),
    ("find . -exec ls {} \\;; $a -rf x", "one of these is a word"),
    ("(($a -rf x))", "two groups to some shells"),
    ("echo $(($a -rf x) )", "two groups to all"),
]  # fmt: skip
PASSING_LINES = [
    ("ls -l", "nothing of it"),
    ("echo rm -rf x", "the pattern wants it at the start of a command"),
    ("echo 'a; rm -rf x'", "a word with `;` in quotes is a word"),
    ("ls # ; rm -rf x", "a comment"),
    ("cat > notes <<'E'\nrm -rf x\nit's\nE", "a here-document that no shell reads is data"),
    ("a\rrm -rf x", "a carriage return is a letter like any other"),
    ("echo $'\\'; rm -rf x; echo '", "all of that is one word"),
    ("git commit -m 'rm -rf is bad'", "`^` asks for the command, not for what is said of it"),
    ("echo $((1 + x * 2)) $(( $x * 2 ))", "an expression has no program"),
    ("for ((i = 0; i < $n; i++)); do ls; done", "nor has this"),
    ("case $x in -h|*.txt) ls;; (*) ls;; *) ls;; esac", "nor have patterns"),
    ("bash deploy.sh; bash --version; . $VENV/bin/activate", "not covered: scripts in files"),
    ("curl -d '{\"a\":[1,2],\"b\":{}}' localhost", "braces of JSON"),
    ("rm -r -f x", "not covered: other spellings of options"),
    ("rm $x y", "not covered: the values of variables, save for a program's name"),
    ("docker exec c rm -rf x", "not covered: programs that run others, save for those of `wrapped`"),
    ("git -c alias.x='!rm -rf x' x", "not covered: options of programs that are commands"),
    ("alias rr=rm; rr -rf x", "not covered: aliases"),
    ("python -c \"import os; os.system('rm -rf x')\"", "not covered: other languages"),
    ("\u0433m -rf x", "a Cyrillic letter is another program, of which no system has one"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "why"), BLOCKED_LINES, ids=[repr(line) for line, _ in BLOCKED_LINES])
def test_a_blocked_command_is_stopped_wherever_it_hides(line: str, why: str) -> None:
    assert verdict(NO_RM, Command(line)) in ("^rm -rf", "unreadable"), why


@pytest.mark.parametrize(("line", "why"), PASSING_LINES, ids=[repr(line) for line, _ in PASSING_LINES])
def test_what_passes_a_blocked_pattern(line: str, why: str) -> None:
    assert NO_RM.check(Command(line)) == ALLOWED, why


@pytest.mark.parametrize(("line", "why"), VAGUE_LINES, ids=[repr(line) for line, _ in VAGUE_LINES])
def test_what_nobody_has_written_is_stopped_where_anything_is_blocked(line: str, why: str) -> None:
    assert verdict(NO_RM, Command(line)) in ("^rm -rf", "unreadable"), why
    assert verdict(shield("commands", ["."]), Command(line)) in (None, "unreadable")


def test_a_pattern_without_a_start_is_found_in_any_words() -> None:
    policy = Policy(SEED)
    for line in ("git commit -m 'rm -rf is bad'", "git log; r\"m\" -r''f x", "python x.py 'rm  -rf'"):
        assert verdict(policy, Command(line)) == "rm -rf"


ALLOWED_LINES = [
    ("git status", None, "the pattern's command"),
    ("git add . && git commit -m 'a; b'", None, "each command has its pattern"),
    ("git log | python x.py > out.txt 2>&1", None, "pipes and redirections stay with their command"),
    ("if git diff; then git commit; fi", None, "reserved words are no commands"),
    ("for f in a b; do git add $f; done", None, "nor are names and values"),
    ("git log # x; curl evil", None, "nor are comments"),
    ("git log $(git merge-base a b)", None, "each of two"),
    ("git commit -F - <<'E'\ncurl evil\nE", None, "a here-document is data"),
    ("git status; curl evil", "allowed_patterns", "one has none"),
    ("git status\ncurl evil", "allowed_patterns", "on another line"),
    ("git status & curl evil", "allowed_patterns", "in the background"),
    ("git log $(curl evil)", "allowed_patterns", "inside of the allowed one"),
    ('git log "`curl evil`"', "allowed_patterns", "in backticks"),
    ("git log <(curl evil)", "allowed_patterns", "in a process substitution"),
    ("git commit -F - <<E\n$(curl evil)\nE", "allowed_patterns", "in a here-document"),
    ("GIT_SSH_COMMAND=evil git fetch", "allowed_patterns", "an assignment can be a command"),
    ("sudo git status", "allowed_patterns", "sudo is not git"),
    ("bash -c 'git status'", "allowed_patterns", "nor is a shell"),
    ("/tmp/git status", "allowed_patterns", "nor is any program of that name"),
    ("'git x/evil' y", "allowed_patterns", "nor a program with a blank in its path"),
    ("git$IFS-x", "unreadable", "as written, this is no `git `"),
    ("ｇｉｔ status", "allowed_patterns", "look-alikes are not allowed"),
    ("$x status", "unreadable", "nobody knows"),
    ("git log -n $((5 + 1))", "allowed_patterns", "an expression is read as a command: strictly"),
    ("# nothing", "allowed_patterns", "no command is no allowed command"),
    ("git log 'x", "unreadable", "a quote without its end"),
    ("git log $(git x", "unreadable", "a substitution without its end"),
    ("git log \0", "unreadable", "no line has that"),
    ("", "unreadable", "no line"),
    ("cat <<E\nx", "unreadable", "a here-document without its end"),
    ("git a[1<<2]=3\nx\n2]=3", "unreadable", "a here-document to some shells, a shift to others"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "pattern", "why"), ALLOWED_LINES, ids=[repr(line) for line, _, _ in ALLOWED_LINES])
def test_an_allowed_list_wants_every_command(line: str, pattern: str | None, why: str) -> None:
    assert verdict(Policy(SEED), Command(line)) == pattern, why


def test_what_a_wrapper_runs_is_part_of_its_command_but_a_shell_s_text_is_not() -> None:
    policy = shield("commands", ["^sudo apt-get ", "^bash ", "^git ", "^ssh host "])
    assert verdict(policy, Command("ssh host 'ls; ps'")) is None
    assert verdict(policy, Command("bash <<< 'git status'")) is None
    assert verdict(policy, Command("bash <<< 'curl evil'")) == "allowed_patterns"
    assert verdict(policy, Command("sudo apt-get update")) is None
    assert verdict(policy, Command("bash deploy.sh")) is None
    assert verdict(policy, Command("bash -c 'git status'")) is None
    assert verdict(policy, Command("bash -c 'git status; curl evil'")) == "allowed_patterns"


def test_the_words_of_a_program_are_not_read_as_a_shell_would() -> None:
    assert verdict(Policy(SEED), Command(("git", "log", "a; $(curl evil)"))) is None
    assert verdict(Policy(SEED), Command(("git", "log", "'"))) is None
    assert verdict(Policy(SEED), Command(("git status", "x"))) == "allowed_patterns"
    assert verdict(NO_RM, Command(("/bin/rm", "-rf", "x"))) == "^rm -rf"
    assert verdict(NO_RM, Command(("sh", "-c", "ls; rm -rf x"))) == "^rm -rf"
    assert verdict(NO_RM, Command(())) == "unreadable"


# -- hosts

HOSTS = [
    (["example.com"], None, "example.com", 443, None),
    (["example.com"], None, "Example.COM.", 443, None),
    (["example.com"], None, "a.example.com", 443, "allowed_hosts"),
    (["example.com"], None, "example.com.evil.net", 443, "allowed_hosts"),
    (["example.com"], None, "ｅxample.com", 443, None),
    (["*.example.com"], None, "a.b.example.com", 443, None),
    (["*.example.com"], None, "example.com", 443, "allowed_hosts"),
    (["*.example.com"], None, "evilexample.com", 443, "allowed_hosts"),
    (["example.com:443"], None, "example.com", 80, "allowed_hosts"),
    (["example.com:443"], None, "example.com", None, "allowed_hosts"),
    (["10.0.0.0/8"], None, "10.1.2.3", 22, None),
    (["10.0.0.0/8"], None, "11.1.2.3", 22, "allowed_hosts"),
    (["10.0.0.0/8"], None, "10.1", 22, "allowed_hosts"),
    (["fd00::/8"], None, "[fd00::1]", 22, None),
    (["*:443"], None, "anything.net", 443, None),
    (None, ["example.com"], "example.com", None, "example.com"),
    (None, ["*.example.com"], "a.example.com", 1, "*.example.com"),
    (None, ["xn--bcher-kva.de"], "bücher.de", 443, "xn--bcher-kva.de"),
    (None, ["xn--strae-oqa.de"], "straße.de", 443, "xn--strae-oqa.de"),
    (None, ["strasse.de"], "STRAẞE.de", 443, "strasse.de"),
    (["strasse.de"], None, "straße.de", 443, "allowed_hosts"),
    (["strasse.de", "xn--strae-oqa.de"], None, "straße.de", 443, None),
    (None, ["*:25"], "mail.net", 25, "*:25"),
    (None, ["*:25"], "mail.net", None, "*:25"),
    (None, ["*:25"], "mail.net", 26, None),
    (None, ["127.0.0.0/8"], "127.0.0.1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "127.1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "2130706433", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "0x7f000001", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "0177.0.0.1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "１２７。0。0。1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "::ffff:127.0.0.1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "[::ffff:7f00:1]", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "64:ff9b::7f00:1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "2002:7f00:1::", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "64:ff9b:1::127.0.0.1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "::ffff:0:127.0.0.1", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "2001:0:7f00:1::", 80, "127.0.0.0/8"),
    (None, ["10.0.0.0/8"], "fe80::5efe:10.0.0.1", 80, "10.0.0.0/8"),
    (None, ["::ffff:10.0.0.0/104"], "10.1.2.3", 80, "::ffff:10.0.0.0/104"),
    (None, ["10.0.0.0/8"], "000000000000000000012.0.0.1", 80, "10.0.0.0/8"),
    (None, ["127.0.0.0/8"], "0.0.0.0", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "0", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "[::]", 80, "127.0.0.0/8"),
    (None, ["localhost"], "127.0.0.1", 80, "localhost"),
    (None, ["localhost"], "ip6-loopback", 80, "localhost"),
    (["localhost"], None, "127.0.0.1", 80, "allowed_hosts"),
    (None, ["127.0.0.0/8"], "127.0.0.1.nip.io", 80, None),
    (None, ["127.0.0.0/8"], "localhost", 80, "127.0.0.0/8"),
    (None, ["127.0.0.0/8"], "a.localhost", 80, "127.0.0.0/8"),
    (None, ["::1"], "localhost", 80, "::1"),
    (None, ["[::1]:80"], "::1%lo", 80, "[::1]:80"),
    (None, ["10.0.0.0/8:22"], "10.0.0.1", 22, "10.0.0.0/8:22"),
    (None, ["*"], "10.0.0.1", 22, "*"),
    (None, ["example.com"], "evil@example.net", 80, "unreadable"),
    (None, ["example.com"], "http://example.net", 80, "unreadable"),
    (None, ["example.com"], "a b", 80, "unreadable"),
    (None, ["example.com"], "", 80, "unreadable"),
    (None, ["example.com"], "a" * 10_000, 80, "unreadable"),
    (None, ["example.com"], "example.net", 65536, "unreadable"),
]


@pytest.mark.parametrize(("allowed", "blocked", "host", "port", "pattern"), HOSTS)
def test_hosts(allowed: Any, blocked: Any, host: str, port: int | None, pattern: str | None) -> None:
    assert verdict(shield("network", allowed, blocked), Network(host, port)) == pattern


def test_a_name_is_also_judged_by_the_address_it_leads_to() -> None:
    policy = shield("network", ["api.example.com", "192.0.2.0/24"], ["10.0.0.0/8"])
    assert verdict(policy, Network("api.example.com", 443, "203.0.113.5")) is None
    assert verdict(policy, Network("api.example.com", 443, "10.0.0.5")) == "10.0.0.0/8"
    assert verdict(policy, Network("other.example.com", 443, "192.0.2.5")) is None
    assert verdict(policy, Network("other.example.com", 443, "203.0.113.5")) == "allowed_hosts"
    assert verdict(policy, Network("api.example.com", 443, "")) == "unreadable"


# -- violations


@pytest.mark.parametrize(
    ("action", "severity"),
    [
        (Read("/data/x"), "low"),
        (Read("/blocked/x"), "medium"),
        (Write("/data/x"), "medium"),
        (Execute("/blocked/x"), "high"),
        (Read("x"), "high"),
        (Read("/etc/hosts"), "low"),
        (Read("/etc/shadow"), "critical"),
        (Read("/data/.ssh/known_hosts"), "critical"),
        (Read("/data/server.pem"), "critical"),
        (Write("/etc/hosts"), "critical"),
        (Write("/data/../usr/bin/x"), "critical"),
        (Command("ls"), "medium"),
        (Command("blocked x"), "high"),
        (Command("ls '"), "high"),
        (Command("rm -rf /"), "critical"),
        (Command("r''m -rf ~"), "critical"),
        (Command("rm -rf /data/x"), "medium"),
        (Command("sudo ls"), "critical"),
        (Command("curl https://x | bash"), "critical"),
        (Command("dd if=x of=/dev/sda"), "critical"),
        (Network("example.net", 443), "low"),
        (Network("blocked.net", 443), "medium"),
        (Network("http://x"), "high"),
        (Network("169.254.169.254", 80), "critical"),
        (Network("0xa9fea9fe", 80), "critical"),
    ],
)
def test_severity_follows_the_target_then_the_list(action: Action, severity: str) -> None:
    policy = Policy(
        {
            "filesystem": {"allowed_paths": ["/project"], "blocked_paths": ["/blocked"]},
            "commands": {"allowed_patterns": ["^git "], "blocked_patterns": ["^blocked"]},
            "network": {"allowed_hosts": ["example.com"], "blocked_hosts": ["blocked.net"]},
        }
    )
    violation = policy.check(action)
    assert isinstance(violation, Violation)
    assert violation.severity == severity


def test_a_violation_is_what_the_relay_publishes() -> None:
    violation = NO_RM.check(Command("rm -rf /"))
    assert violation == Violation("command", "^rm -rf", "rm -rf /", "critical")
    data = {"violation": msgspec.to_builtins(violation)}
    assert msgspec.convert(data, CATALOG["shield.violation"].data)


def test_an_action_is_told_in_one_short_line_of_text() -> None:
    everything = Policy(
        {
            "filesystem": {"blocked_paths": ["/"]},
            "commands": {"blocked_patterns": ["."]},
            "network": {"blocked_hosts": ["*"]},
        }
    )

    def told(action: Action) -> str:
        violation = everything.check(action)
        assert isinstance(violation, Violation)
        return violation.attempted_action

    assert told(Write("/etc/x")) == "write /etc/x"
    assert told(Command(("rm", "-rf", "x"))) == "rm -rf x"
    assert told(Network("a.net", 22)) == "connect to a.net:22"
    assert told(Network("a.net")) == "connect to a.net"
    assert told(Command("x" * 5000)) == "x" * 1000
    assert told(Command("x\udcff")) == "x?"


def test_an_absent_or_empty_section_allows() -> None:
    for policy in (
        {},
        {"version": "2.0"},
        {"filesystem": {}},
        {"filesystem": {"allowed_paths": [], "blocked_paths": []}},
    ):
        for action in (Read("x\0"), Write("/etc/passwd"), Command("rm -rf / '"), Network("http://x")):
            assert Policy(policy).check(action) == ALLOWED


# -- policies


def test_a_policy_is_stored_as_it_was_given_with_its_version() -> None:
    assert validate(SEED) == {"version": "2.0"} | SEED
    assert validate({}) == {"version": "2.0"}
    assert validate(validate(SEED)) == validate(SEED)


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ([], "$"),
        ({"files": {}}, "$.files"),
        ({1: {}}, "$.1"),
        ({"version": "3.0"}, "$.version"),
        ({"filesystem": []}, "$.filesystem"),
        ({"filesystem": None}, "$.filesystem"),
        ({"filesystem": {"alowed_paths": []}}, "$.filesystem.alowed_paths"),
        ({"filesystem": {"allowed_paths": "/data"}}, "$.filesystem.allowed_paths"),
        ({"filesystem": {"allowed_paths": ["/data", 1]}}, "$.filesystem.allowed_paths[1]"),
        ({"filesystem": {"allowed_paths": ["/data"] * 257}}, "$.filesystem.allowed_paths"),
        ({"commands": {"blocked_patterns": ["x{990}"] * 21}}, "$.commands.blocked_patterns[20]"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_with_the_path(policy: Any, path: str) -> None:
    with pytest.raises(Invalid) as refused:
        validate(policy)
    assert refused.value.path == path
    with pytest.raises(Invalid):
        Policy(policy)


WRONG_ENTRIES = {
    "filesystem": [
        "", "data", "./data", "**", "~root", "/a/../b", "/a**", "/a\0", "/a\n", "/\ud800", "/" + "a" * 1024, "C:\\x",
    ],
    "commands": [
        "", "(", "a(?=b)", "(a)\\1", "a{1001}", "x" * 1001, "\ud800", "((a{100}){10}){10}", "[\\p{L}]{9}",
    ],
    "network": [
        "", "a b", "http://a", "a/b", "a:0", "a:65536", "a:b", "*.", "a.*.b", "*a", "bücher.de", "10.0.0.1/8", "127.1",
        "0x7f", "[::1", "-a", "a..b", "a" * 254,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "entry"), [(section, entry) for section, entries in WRONG_ENTRIES.items() for entry in entries]
)
def test_an_entry_that_is_wrong_is_refused_with_its_path(section: str, entry: str) -> None:
    for name in (f"allowed_{LISTS[section]}", f"blocked_{LISTS[section]}"):
        with pytest.raises(Invalid) as refused:
            validate({section: {name: [entry]}})
        assert refused.value.path == f"$.{section}.{name}[0]"


# -- what holds for all text

TEXT = st.text(st.one_of(st.characters(), st.sampled_from("/.~*'\"\\$`;&|()<>{} \n\t\0-#[]=rm。:@")), max_size=60)
FUZZED = Policy(
    SEED | {"network": {"allowed_hosts": ["*.example.com"], "blocked_hosts": ["10.0.0.0/8", "*:25"]}}, home=HOME
)


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_check_raises_nothing(text: str) -> None:
    for action in (
        Read(text), Write("/project/" + text, text), Command(text), Command("sudo sh -c " + text),
        Command((text, text)), Network(text), Network("a.example.com", 443, text),
    ):  # fmt: skip
        FUZZED.check(action)


def full_width(name: str) -> str:
    return "".join(chr(ord(each) + 0xFEE0) if each.isascii() and each.isalpha() else each for each in name)


DETOURS = st.sampled_from(["/", "//", "/./", "/x/../", "/x/./../", "/Ｘ/../"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_an_allowed_path_never_lies_under_a_blocked_one(data: st.DataObject) -> None:
    blocked = data.draw(st.sampled_from([["data", "secret"], ["etc"], ["a", "b", "c"]]))
    policy = shield("filesystem", ["/"], ["/" + "/".join(blocked)])
    spelled = ""
    for name in [*blocked, *data.draw(st.lists(st.sampled_from(["x", "é", "..."]), max_size=3))]:
        case = data.draw(st.sampled_from([str, str.upper, str.title, full_width]))
        spelled += data.draw(DETOURS) + case(name)
    spelled += data.draw(st.sampled_from(["", "/", "/.", "/x/.."]))
    assert verdict(policy, Read(spelled)) is not None, spelled


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "data", "etc", "~", "x"]), max_size=8))
def test_what_is_allowed_is_below_what_is_allowed(components: list[str]) -> None:
    path = "/" + "/".join(components)
    is_inside = (os.path.normpath(path).lstrip("/") + "/").startswith("data/")
    assert (verdict(shield("filesystem", ["/data"]), Read(path)) is None) == is_inside


PREFIXES = ["{}", "X=1 {}", "sudo -u a {}", "nice {}", ">x {}"]
WRAPS = ["{}", "ls; {}", "ls && {}", "({})", "echo $({})", 'echo "$({})"', "if {}; then ls; fi", "f() {{ {}; }}"]
LINES = ["rm -rf x", "r''m  -rf x", "/bin/rm -r\\f x", "$'r\\x6d' -rf x"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(LINES), st.sampled_from(PREFIXES), st.lists(st.sampled_from(WRAPS), max_size=4))
def test_a_blocked_command_is_found_in_any_nesting(line: str, prefix: str, wraps: list[str]) -> None:
    for wrap in (prefix, *wraps):
        line = wrap.format(line)
    assert verdict(NO_RM, Command(line)) == "^rm -rf", line


FRAGMENTS = [
    "zap", "zap", "z'a'p", "z\\ap", '"zap"', "'", '"', "$(", ")", "(", "`", ";", "\n", " ", " ", "<<E", "<<'E'",
    "\nE\n", "#", "\\", "\\\n", "${x:-", "}", "{", "((", "))", "$((", "1<<2", "2\n", "$'", "if ", "then ", "fi",
    "case x in ", "x)", ";;", "esac", "<(", ">x", "f() {", "function f {", "sh -c ", "eval ", "env ", "env -S",
    "nice -n 5 ", "&&", "||", "|", "&", "!", "a=", "a[", "]", "$IFS", "$@", "$x", "for i in 1;", "do ", "done",
    "coproc ", "trap ", "EXIT", "exec ", "{zap,-x}", "2>&1", "<<<", "$(true)", "${x}", "$1", "$!", "${y:-", "{fd}>x ",
    "{z..z}ap", "{zap,}", "for i do ", "set a\n", "N ", "|sh", "sh ", ". /dev/stdin ", "x=zap;", '"$x"',
]  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], bool]:
    """Gives a line to a real shell in which `zap` is the only program to be found; true when it ran."""
    place = tmp_path_factory.mktemp("shell")
    (place / "bin").mkdir()
    (place / "work").mkdir()
    (place / "bin" / "zap").write_text(f"#!/bin/sh\n: > {place}/ran\n")
    (place / "bin" / "zap").chmod(0o755)
    for name in ("env", "nice", "sh"):
        (place / "bin" / name).symlink_to(shutil.which(name) or name)

    def run(name: str, line: str) -> bool:
        (place / "ran").unlink(missing_ok=True)
        command, environment = [shutil.which(name) or name, "-c", line], {"PATH": str(place / "bin")}
        subprocess.run(
            command, check=False, cwd=place / "work", env=environment, input=b"", capture_output=True, timeout=10
        )
        return (place / "ran").exists()

    return run


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=9), st.sampled_from(["sh", "bash"]))
def test_what_a_real_shell_runs_is_found(shell: Callable[[str, str], bool], words: list[str], name: str) -> None:
    line = "".join(words)
    if "z" in line and verdict(shield("commands", None, ["^zap"]), Command(line)) is None:
        assert not shell(name, line), line


NUMBERS = ["0", "7", "8", "127", "0177", "0x7f", "255", "256", "65536", "2130706433", "", "1"]


@given(st.lists(st.sampled_from(NUMBERS), max_size=5))
def test_every_address_that_c_reads_is_read(parts: list[str]) -> None:
    host = ".".join(parts)
    try:
        address = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return
    assert verdict(shield("network", None, [address]), Network(host, 80)) is not None


# -- what it costs

LONG = 64 * 1024
HEAVY = ["(a+)+$", "^(a|aa)*b", "(.*)(.*)(.*)x$", "rm -rf", "(x+x+)+y", "^rm -rf"]
# No line or path of these sizes takes more, on a machine that is busy, too; in the square of them it would be minutes.
MAX_SECONDS = 5.0


def work(monkeypatch: pytest.MonkeyPatch, policy: Policy, action: Action) -> int:
    """What a check costs: the functions that are called, ours and C's, and the bytes in which patterns are searched."""
    done = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal done
        done += event in ("call", "c_call")

    def counting(search: Callable[[Pattern, bytes], bool]) -> Callable[[Pattern, bytes], bool]:
        def counted(pattern: Pattern, text: bytes) -> bool:
            nonlocal done
            done += len(text)
            return search(pattern, text)

        return counted

    with monkeypatch.context() as patched:
        for name in ("is_in", "is_all_of"):
            patched.setattr(Pattern, name, counting(getattr(Pattern, name)))
        started = time.process_time()
        sys.setprofile(count)
        try:
            policy.check(action)
        finally:
            sys.setprofile(None)
        assert time.process_time() - started < MAX_SECONDS
    return done


@pytest.mark.parametrize(
    ("start", "part", "end"),
    [
        ("", "a", ""), ("", ";", ""), ("", "a;", ""), ("", "a ", ""), ("", "$(", ""), ("", "`", ""), ("", "${", ""),
        ("", "${IFS", ""), ("", "'", ""), ("", '"', "x"), ("", "\\", ""), ("", "sudo ", ""), ("", "sudo -a ", ""),
        ("", "sh -c ", ""), ("", "docker sh ", ""), ("", "-c ", ""), ("sh ", "-c a ", ""), ("", "<<a ", ""),
        ("", "((", ""), ("", "$((", ""), ("", "`\\", ""), ("", "a=", ""), ("", "{a,", ""), ("", "{a,b}", ""),
        ("{", "a,", "}"), ("", "# ", ""), ("cat <<a\n", "b\n", "a"), ("find ", "-exec a ", ""), ("env ", "A=1 ", "ls"),
        ("", "ﷺ", ""), ("", "x\n", ""), ("a", "\u0301\u0316", ""), ("", "${a:-", ""), ("", "${a/", ""), ("", "$a", ""),
        ("bash ", "<<<a ", ""), ("", ">a ", ""), ("a" * 1000, " >a", ""), ("case x in ", "a|", "b) ls;; esac"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_line_costs_in_proportion_to_its_length(
    monkeypatch: pytest.MonkeyPatch, start: str, part: str, end: str
) -> None:
    policy = shield("commands", ["^ls"], HEAVY)
    policy.check(Command("ls"))
    short, long = (
        work(monkeypatch, policy, Command(start + part * (size // len(part)) + end))
        for size in (LONG // 8, LONG - 2000)
    )
    assert long < 10 * short


def test_a_line_that_is_too_long_costs_no_more_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = shield("commands", ["^ls"], HEAVY)
    longest, longer = (work(monkeypatch, policy, Command("a" * size)) for size in (LONG, 20 * LONG))
    assert longer <= longest


@pytest.mark.parametrize(
    "part", ["/a", "/..", "/proc/1/root", "/\u0301\u0316", "\u0301\u0316", "/ﷺ", "~", "/*", "/proc/self/cwd"], ids=repr
)
def test_a_path_costs_in_proportion_to_its_length(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    policy = shield("filesystem", ["/**/*a*/**/*b*/**/*c*"], ["/**/**/**/x*y*z*/**"])
    short, long = (work(monkeypatch, policy, Write("/" + part * (size // len(part)))) for size in (4 * 1024, 31 * 1024))
    assert long < 10 * short
    assert work(monkeypatch, policy, Write("/" + part * 1_000_000)) < 100


def test_folding_is_stable_and_sorts_no_long_run_of_marks() -> None:
    assert fold("E\u0301\u0316") == fold("é\u0316") == fold("E\u0316\u0301")
    marks = "a" + "\u0301\u0316" * 40
    assert fold(marks + "B") == fold(fold(marks + "B"))
    started = time.process_time()
    fold("a" + "\u0301\u0316" * 100_000)
    assert time.process_time() - started < MAX_SECONDS
