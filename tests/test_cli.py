"""The command line, as scripts rely on it: what it prints, what it exits with, and one line that says what is wrong."""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from broker import Broker, Event
from broker.agents.model import Draft
from broker.credentials import Credentials, Outcome, Verdict
from broker.errors import Unreplicated
from broker.events import MAX_EVENT_BYTES
from broker.positions import is_after, parse
from gateway.auth import READ_ONLY, Verifier
from gateway.cli import publishing
from gateway.cli.publishing import READ_BYTES
from gateway.settings import Settings, fields

from .support import SECRET, free_port, token, until

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"


class Ended(NamedTuple):
    """How a command went."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def complaint(self) -> str:
        """The one line that a failed command says, and nothing else."""
        assert self.status not in (0, None)
        assert "Traceback" not in self.err
        # In development mode asyncio tells of every turn that a busy machine made slow.
        [line] = [line for line in self.err.splitlines() if "asyncio: Executing" not in line]
        assert line.startswith("trunkline: ")
        assert self.err.endswith("\n")
        return line


class Shell:
    """Runs commands as an operator does, with settings in the environment."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def environment(self, changes: dict[str, str | None]) -> dict[str, str]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        given = {f"TRUNKLINE_{name.upper()}": str(value) for name, value in self.settings.items()} | changes
        return outside | {name: value for name, value in given.items() if value is not None}

    async def start(
        self, *arguments: str | bytes, stdin: Any = asyncio.subprocess.DEVNULL, **changes: str | None
    ) -> Any:
        command = [sys.executable, "-X", "dev", "-m", "gateway", *arguments]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command, stdin=stdin, stdout=pipe, stderr=pipe, env=self.environment(changes), limit=2**24
        )

    async def run(self, *arguments: str | bytes, stdin: bytes | int | None = None, **changes: str | None) -> Ended:
        """Run a command to its end."""
        fed = asyncio.subprocess.PIPE if isinstance(stdin, bytes) else stdin
        process = await self.start(*arguments, stdin=asyncio.subprocess.DEVNULL if fed is None else fed, **changes)
        try:
            async with asyncio.timeout(20):
                out, err = await process.communicate(stdin if isinstance(stdin, bytes) else None)
        except TimeoutError:
            raise AssertionError(f"it does not end: {arguments}") from None
        finally:
            await end(process)
        return Ended(process.returncode, out.decode(), err.decode())


async def end(process: Any) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
    process._transport.close()  # its pipes too, whoever still holds their other ends


@pytest.fixture
def shell(redis_url: str, prefix: str) -> Shell:
    return Shell(redis_url=redis_url, prefix=prefix, jwt_secret=SECRET, log_format="text")


@pytest.fixture
async def broker(redis_url: str, prefix: str) -> AsyncIterator[Broker]:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        yield broker


async def logged(broker: Broker) -> list[Event]:
    """What stands in the log."""
    return [event.event() for event in (await broker.log.page(WORKSPACE, "0-0", 10_000)).events]


async def steps(broker: Broker) -> list[int]:
    return [event.data["step"] for event in await logged(broker)]


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A line for `publish -`."""
    return {"type": "task.progress", "agent_id": "agent-123", "data": {"task_id": "t", "step": step}} | changes


def ndjson(*lines: Any) -> bytes:
    return b"".join((text if isinstance(text, bytes) else json.dumps(text).encode()) + b"\n" for text in lines)


# -- help


async def test_each_command_explains_itself_and_the_settings_that_it_reads(shell: Shell) -> None:
    commands = (
        "dev", "serve", "token", "publish", "tail", "worker", "key create", "key list", "key revoke",
        "agent list", "agent show", "agent create", "agent delete",
    )  # fmt: skip
    overall, *helps = await asyncio.gather(
        shell.run("--help"), *(shell.run(*command.split(), "--help") for command in commands)
    )
    assert all((ended.status, ended.err) == (0, "") for ended in (overall, *helps))
    assert all(command.split()[0] in overall.out for command in commands)
    _, serve, token, *clients = helps
    assert all(field.flag in serve.out and " ".join(field.description.split()[:2]) in serve.out for field in fields())
    assert "--jwt-secret" in token.out
    assert all("--redis-url" in ended.out and "--prefix" in ended.out for ended in clients)


async def test_what_is_no_command_is_refused_in_one_line_that_says_where_to_look(shell: Shell) -> None:
    for ended in await asyncio.gather(
        shell.run(), shell.run("dance"), shell.run("token"), shell.run("serve", "--no-such-flag", "1")
    ):
        assert (ended.status, ended.out) == (2, "")
        assert ended.complaint.startswith("trunkline")
        assert "--help" in ended.complaint


# -- token


def claims_of(ended: Ended) -> dict[str, Any]:
    assert (ended.status, ended.err) == (0, "")
    return dict(jwt.decode(ended.lines[-1], SECRET, ["HS256"], options={"verify_aud": False}))


async def test_a_token_stands_alone_on_the_last_line_and_nodes_accept_it(shell: Shell) -> None:
    simple, full = await asyncio.gather(
        shell.run("token", "--sub", "user-1", "--workspace", WORKSPACE),
        shell.run(
            *("token", "--sub", "agent", "--workspace", "ws-1", "--workspace", "ws-2", "--ttl", "60"),
            *("--scope", "events:read commands:send", "--agent", "agent-123"),
        ),
    )
    claims = claims_of(simple)
    assert claims["exp"] - claims["iat"] == 3600
    accepted = Verifier(Settings(jwt_secret=(SECRET,))).verify(simple.lines[-1], time.time())
    assert (accepted.subject, accepted.workspaces, accepted.scope) == ("user-1", {WORKSPACE}, READ_ONLY)
    claims = claims_of(full)
    assert claims["exp"] - claims["iat"] == 60
    accepted = Verifier(Settings(jwt_secret=(SECRET,))).verify(full.lines[-1], time.time())
    assert (accepted.workspaces, accepted.agent_id) == ({"ws-1", "ws-2"}, "agent-123")
    assert accepted.scope == {"events:read", "commands:send"}


async def test_a_token_is_made_as_the_nodes_of_these_settings_read_it(shell: Shell) -> None:
    ended = await shell.run(
        *("token", "--sub", "user-1", "--workspace", WORKSPACE, "--agent", "a", "--claim-workspaces", "ws"),
        TRUNKLINE_JWT_SECRET=f"{SECRET},an-older-secret-of-thirty-two-bytes",
        TRUNKLINE_JWT_ISSUER="me",
        TRUNKLINE_JWT_AUDIENCE="you",
        TRUNKLINE_CLAIM_AGENT_ID="agent",
    )
    claims = claims_of(ended)
    assert (claims["ws"], claims["agent"], claims["iss"], claims["aud"]) == ([WORKSPACE], "a", "me", "you")


async def test_no_token_is_made_without_a_secret(shell: Shell) -> None:
    ended = await shell.run("token", "--sub", "user-1", "--workspace", WORKSPACE, TRUNKLINE_JWT_SECRET=None)
    assert "TRUNKLINE_JWT_SECRET" in ended.complaint
    assert ended.out == ""


# -- key

ENDPOINT = "coffee-shop-e66b8d23"


async def new_key(shell: Shell, endpoint: str = ENDPOINT, workspace: str = WORKSPACE) -> tuple[str, str]:
    """Id and key, as `key create` says them."""
    ended = await shell.run("key", "create", "--endpoint", endpoint, "--workspace", workspace)
    assert (ended.status, ended.err, len(ended.lines)) == (0, "", 2)
    return ended.lines[0].split()[0], ended.lines[1]


async def test_a_key_stands_alone_on_the_last_line_and_opens_its_endpoint_until_it_is_revoked(
    shell: Shell, broker: Broker
) -> None:
    id_, key = await new_key(shell)
    assert re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]{40,}", key)
    credentials = Credentials(broker.redis, broker.keys)
    assert await credentials.check(ENDPOINT, key) == Verdict(Outcome.OPENS, id_, WORKSPACE)
    ended = await shell.run("key", "revoke", id_)
    assert (ended.status, ended.out, ended.err) == (0, f"{id_} is revoked\n", "")
    assert (await credentials.check(ENDPOINT, key)).outcome is Outcome.KEY_BAD
    assert (await shell.run("key", "revoke", id_)).status == 0


async def test_keys_are_listed_for_people_and_for_scripts(shell: Shell) -> None:
    (first, key), (second, _) = await new_key(shell), await new_key(shell, "tea-house", "ws-1")
    await shell.run("key", "revoke", second)
    table, lines, narrowed, none = await asyncio.gather(
        shell.run("key", "list"),
        shell.run("key", "list", "--json"),
        shell.run("key", "list", "--json", "--endpoint", ENDPOINT, "--workspace", WORKSPACE),
        shell.run("key", "list", "--endpoint", "no-such-one"),
    )
    assert all((ended.status, ended.err) == (0, "") for ended in (table, lines, narrowed, none))
    hash_ = sha256(key.encode()).hexdigest()
    assert not any(secret in ended.out for ended in (table, lines) for secret in (key, hash_))
    columns = ["id", "endpoint", "workspace", "created", "last_used", "revoked"]
    assert [row.split()[:3] for row in table.lines] == [
        columns[:3],
        [first, ENDPOINT, WORKSPACE],
        [second, "tea-house", "ws-1"],
    ]
    one, other = map(json.loads, lines.lines)
    assert list(one) == columns
    assert (one["id"], one["last_used"], one["revoked"]) == (first, None, None)
    assert other["revoked"].endswith("Z")
    assert narrowed.lines == lines.lines[:1]
    assert none.out.split() == columns


async def test_what_cannot_be_done_with_a_key_is_said_in_one_line(shell: Shell) -> None:
    _, key = await new_key(shell)
    other, bad, unknown, mistaken = await asyncio.gather(
        shell.run("key", "create", "--endpoint", ENDPOINT, "--workspace", "ws-1"),
        shell.run("key", "create", "--endpoint", "a b", "--workspace", "ws-1"),
        shell.run("key", "revoke", "key_0000"),
        shell.run("key", "revoke", key),
    )
    assert {ended.status for ended in (other, bad, unknown, mistaken)} == {1}
    assert all(ended.out == "" for ended in (other, bad, unknown, mistaken))
    assert ENDPOINT in other.complaint
    assert "endpoint" in bad.complaint
    assert "key list" in unknown.complaint
    assert key not in mistaken.complaint
    for ended in await asyncio.gather(shell.run("key"), shell.run("key", "create"), shell.run("key", "revoke")):
        assert ended.status == 2
        assert "--help" in ended.complaint


# -- agent


async def test_an_agents_pairing_key_stands_alone_on_the_last_line_and_pairs_it(shell: Shell, broker: Broker) -> None:
    soul, shield = {"role": "Engineer"}, {"commands": {"blocked_patterns": ["rm -rf"]}}
    ended = await shell.run(
        "agent", "create", "Data Bot", "--workspace", WORKSPACE, "--soul", json.dumps(soul), "--shield",
        json.dumps(shield),
    )  # fmt: skip
    assert (ended.status, ended.err, len(ended.lines)) == (0, "", 2)
    agent_id = ended.lines[0].split()[0]
    paired = await broker.agents.pair(ended.lines[1])
    assert (paired.agent_id, paired.workspace, paired.name) == (agent_id, WORKSPACE, "Data Bot")
    shown = await shell.run("agent", "show", agent_id, "--workspace", WORKSPACE, "--json")
    agent = json.loads(shown.out)
    assert (agent["id"], agent["mode"], agent["soul"]) == (agent_id, "computer", soul)
    assert agent["shield"] == {"version": "2.0"} | shield
    shown = await shell.run("agent", "show", agent_id, "--workspace", WORKSPACE)
    assert ["name", "Data", "Bot"] in [line.split() for line in shown.lines]
    assert '"role": "Engineer"' in shown.out
    one_line = await shell.run("agent", "create", "Tea", "--workspace", WORKSPACE, "--json")
    created = json.loads(one_line.out)
    assert (await broker.agents.pair(created["pairing_key"])).agent_id == created["id"]


async def test_agents_are_listed_for_people_and_for_programs_until_they_are_deleted(
    shell: Shell, broker: Broker
) -> None:
    first, second = [
        (await broker.agents.create(WORKSPACE, Draft(name=name, workspace_id=WORKSPACE))).id for name in ("A", "B")
    ]
    await broker.agents.present(first, workspace_id=WORKSPACE)
    await broker.agents.create("ws-other", Draft(name="C", workspace_id="ws-other"))
    listing = ("agent", "list", "--workspace", WORKSPACE)
    table, lines, online = await asyncio.gather(
        shell.run(*listing), shell.run(*listing, "--json"), shell.run(*listing, "--json", "--status", "online")
    )
    columns = ["id", "name", "status", "workspace_id", "mode", "last_activity", "credits_used"]
    assert [row.split()[:3] for row in table.lines] == [columns[:3], [second, "B", "offline"], [first, "A", "online"]]
    assert table.lines[1].split()[-1] == "0"
    assert [list(json.loads(line)) for line in lines.lines] == [columns] * 2
    assert [json.loads(line)["id"] for line in online.lines] == [first]
    gone = await shell.run("agent", "delete", first, "--workspace", WORKSPACE, "--purge")
    assert (gone.status, gone.out) == (0, f"{first} is deleted\n")
    left = await shell.run(*listing, "--json")
    assert [json.loads(line)["id"] for line in left.lines] == [second]
    for more in ((), ("--purge",)):
        told = await shell.run("agent", "delete", second, "--workspace", WORKSPACE, "--json", *more)
        assert (told.status, told.err, len(told.lines)) == (0, "", 1)
        assert json.loads(told.out) == {"id": second, "deleted": True, "purged": bool(more)}


async def test_what_could_steer_a_terminal_is_shown_escaped(shell: Shell, broker: Broker) -> None:
    name, shown = "a\x1b[2J\n\x9b\u202eb\tü 한", r"a\x1b[2J\n\x9b\u202eb\tü 한"
    draft = Draft(name=name, workspace_id=WORKSPACE, soul={"said": "\x9b\u202e"})
    agent_id = (await broker.agents.create(WORKSPACE, draft)).id
    where = ("--workspace", WORKSPACE)
    table, all_of_it, line = await asyncio.gather(
        shell.run("agent", "list", *where),
        shell.run("agent", "show", agent_id, *where),
        shell.run("agent", "list", *where, "--json"),
    )
    assert len(table.lines) == 2
    assert f"{agent_id}  {shown}  offline" in table.lines[1]
    assert f"{'name':13}  {shown}" in all_of_it.lines
    assert '  "said": "\\x9b\\u202e"' in all_of_it.lines
    for ended in (table, all_of_it):
        assert all(line.isprintable() for line in ended.out.split("\n"))
    assert json.loads(line.out)["name"] == name


async def test_a_long_list_of_agents_is_whole(shell: Shell, broker: Broker) -> None:
    made = [(await broker.agents.create(WORKSPACE, Draft(name="A", workspace_id=WORKSPACE))).id for _ in range(101)]
    ended = await shell.run("agent", "list", "--workspace", WORKSPACE, "--json")
    assert [json.loads(line)["id"] for line in ended.lines] == made[::-1]


async def test_what_cannot_be_done_with_an_agent_is_said_in_one_line(shell: Shell) -> None:
    where = ("--workspace", WORKSPACE)
    unknown, missing, soul, shield, nameless = await asyncio.gather(
        shell.run("agent", "show", "agent-0", *where),
        shell.run("agent", "delete", "agent-0", *where),
        shell.run("agent", "create", "A", *where, "--soul", "[1]"),
        shell.run("agent", "create", "A", *where, "--shield", '{"filesystem":{"allowed_paths":["x"]}}'),
        shell.run("agent", "create", "", *where),
    )
    for ended in (unknown, missing):
        assert "agent list" in ended.complaint
    assert "--soul" in soul.complaint
    assert "$.shield.filesystem.allowed_paths[0]" in shield.complaint
    assert "$.name" in nameless.complaint


# -- publish one


async def test_an_event_is_published_and_its_position_printed(shell: Shell, broker: Broker) -> None:
    data = '{"task_id":"task-456","step":3,"total_steps":10,"more":{"ü":[1.5,null]}}'
    ended = await shell.run("publish", "--workspace", WORKSPACE, "--agent", "agent-123", "task.progress", data)
    [event] = await logged(broker)
    assert (ended.status, ended.out, ended.err) == (0, f"{event.id}\n", "")
    assert (event.type, event.agent_id, event.data) == ("task.progress", "agent-123", json.loads(data))


async def test_an_event_may_have_no_data_or_its_ids_in_data_or_no_position(shell: Shell, broker: Broker) -> None:
    bare, inside, ephemeral = await asyncio.gather(
        shell.run("publish", "--workspace", WORKSPACE, "--agent", "agent-1", "agent.online"),
        shell.run("publish", "--workspace", WORKSPACE, "agent.online", '{"agent_id":"agent-2"}'),
        shell.run("publish", "--workspace", WORKSPACE, "--agent", "agent-3", "--ephemeral", "agent.online"),
    )
    assert (bare.status, inside.status, ephemeral.status) == (0, 0, 0)
    assert {(event.id, event.agent_id) for event in await logged(broker)} == {
        (bare.out.strip(), "agent-1"),
        (inside.out.strip(), "agent-2"),
    }
    assert ephemeral.out == "\n"


REFUSED: dict[str, tuple[list[str | bytes], str]] = {
    "a field of another type": (["task.progress", '{"task_id":"t","step":"3"}'], "$.data.step"),
    "a field that is missing": (["task.progress", "{}"], "$.data.task_id"),
    "an unknown type": (["task.paused"], "$.type"),
    "no type": ([""], "$.type"),
    "an agent that is missing": (["agent.online"], "$.agent_id"),
    "data that is no JSON": (["task.progress", "{task_id: t}"], ""),
    "data that is half JSON": (["task.progress", '{"task_id":"t"'], ""),
    "data that is a list": (["task.progress", "[]"], "$.data"),
    "data that is more": (["agent.online", '{"agent_id":"a"}, "agent_id":"b"'], ""),
    "data that is no text": (["task.progress", b'{"task_id":"\xff"}'], ""),
    "a type that is no text": ([b"task.\xff"], "$.type"),
    "an agent that is no text": (["--agent", b"\xff", "agent.online"], "$.agent_id"),
    "a workspace that is none": (["--workspace", "{a}", "--agent", "a", "agent.online"], "$.workspace_id"),
    "a name of the envelope in data": (["task.progress", '{"task_id":"t","type":"x"}'], "$.data.type"),
    "data beside standard input": (["-", "{}"], ""),
}


async def test_what_is_no_event_is_refused_with_the_path_of_what_is_wrong(shell: Shell, broker: Broker) -> None:
    for names in (list(REFUSED)[:8], list(REFUSED)[8:]):
        runs = [shell.run("publish", "--workspace", WORKSPACE, *REFUSED[name][0]) for name in names]
        for name, ended in zip(names, await asyncio.gather(*runs), strict=True):
            assert "Traceback" not in ended.err, (name, ended.err)
            assert REFUSED[name][1] in ended.complaint, name
            assert ended.out == "", name
    assert await logged(broker) == []


# -- publish lines


async def test_each_line_is_an_event_and_each_position_a_line_in_their_order(shell: Shell, broker: Broker) -> None:
    lines = [line(step, agent_id=f"agent-{step % 7}") for step in range(3000)]
    ended = await shell.run("publish", "--workspace", WORKSPACE, "-", stdin=ndjson(*lines))
    assert (ended.status, ended.err) == (0, "")
    events = await logged(broker)
    assert [(event.agent_id, event.data["step"]) for event in events] == [
        (said["agent_id"], said["data"]["step"]) for said in lines
    ]
    assert ended.lines == [event.id for event in events]


async def test_a_line_may_say_more_and_less(shell: Shell, broker: Broker) -> None:
    timestamp = "2026-03-27T10:30:45Z"
    said = [
        line(1),
        line(2, ephemeral=True),
        {"type": "metrics_update", "data": {"system": {"cpu_usage": 0.5}}},
        line(3, timestamp=timestamp, ephemeral=False),
        {"type": "agent.online"},
        {"type": "agent.online", "data": {"agent_id": "agent-inside"}},
        {"type": "agent.online", "agent_id": "agent-beside", "data": {"agent_id": "agent-beside"}},
    ]
    text = b"\n" + ndjson(*said[:3], b"", b"  \t", json.dumps(said[3]).encode() + b"\r", *said[4:])
    ended = await shell.run("publish", "--workspace", WORKSPACE, "--agent", "agent-0", "-", stdin=text.rstrip(b"\n"))
    assert (ended.status, ended.err) == (0, "")
    events = await logged(broker)
    assert ended.lines == [events[0].id, "", "", *(event.id for event in events[1:])]
    assert [event.agent_id for event in events] == ["agent-123", "agent-123", "agent-0", "agent-inside", "agent-beside"]
    assert events[1].timestamp == timestamp


WRONG_LINES: dict[str, tuple[bytes, str]] = {
    "a wrong field": (ndjson(line(0, data={"task_id": "t", "step": "3"})), "line 3: $.data.step: "),
    "an unknown type": (ndjson(line(0, type="task.paused")), "line 3: $.type: "),
    "an unknown key": (ndjson(line(0, agent="a")), "line 3: "),
    "no JSON": (b"hello\n", "line 3: "),
    "no text": (b'{"type":"\xff"}\n', "line 3: "),
    "a workspace of its own": (ndjson(line(0, workspace_id="ws-1")), "line 3: "),
    "a wrong last line without an end": (b'{"type":', "line 3: "),
}


@pytest.mark.parametrize(("wrong", "complaint"), WRONG_LINES.values(), ids=WRONG_LINES)
async def test_the_first_wrong_line_is_named_and_ends_it_what_came_before_is_published(
    shell: Shell, broker: Broker, wrong: bytes, complaint: str
) -> None:
    after = ndjson(line(9)) if wrong.endswith(b"\n") else b""
    ended = await shell.run("publish", "--workspace", WORKSPACE, "-", stdin=ndjson(line(1), line(2)) + wrong + after)
    assert complaint in ended.complaint
    assert await steps(broker) == [1, 2]
    assert ended.lines == [event.id for event in await logged(broker)]


async def test_behind_lines_that_failed_the_positions_of_others_are_printed_too(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No replica has them, but they are published."""

    async def lines() -> AsyncIterator[list[bytes]]:
        for step in range(3):
            yield [json.dumps(line(step)).encode()]
        await asyncio.Event().wait()

    monkeypatch.setattr(publishing, "connect", lambda _: contextlib.nullcontext(broker))
    monkeypatch.setattr(publishing, "_lines_of_stdin", lines)
    monkeypatch.setattr(broker.producer, "patience", 0.2)
    options = argparse.Namespace(workspace=WORKSPACE, agent=None, ephemeral=False, min_replicas=1)
    with pytest.raises(Unreplicated):
        await publishing._publish_lines(Settings(), options)
    assert capsys.readouterr().out.split() == [event.id for event in await logged(broker)]
    assert await steps(broker) == [0, 1, 2]


async def test_standard_input_may_be_a_file_or_nothing(shell: Shell, broker: Broker, tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(ndjson(*(line(step) for step in range(500))))
    with path.open("rb") as file:
        ended = await shell.run("publish", "--workspace", WORKSPACE, "-", stdin=file.fileno())
    assert (ended.status, len(ended.lines), ended.err) == (0, 500, "")
    assert await steps(broker) == list(range(500))
    nothing = await shell.run("publish", "--workspace", WORKSPACE, "-")
    assert nothing == (0, "", "")


async def test_lines_may_be_longer_than_what_is_read_at_once(shell: Shell, broker: Broker) -> None:
    output = "x" * (MAX_EVENT_BYTES - 1000)
    large = [line(step, data={"task_id": "t", "step": step, "output": output}) for step in range(5)]
    ended = await shell.run("publish", "--workspace", WORKSPACE, "-", stdin=ndjson(*large))
    assert (ended.status, ended.err) == (0, "")
    assert await steps(broker) == list(range(5))
    too_large = line(5, data={"task_id": "t", "output": "x" * 4 * READ_BYTES})
    assert (
        "line 1: $: " in (await shell.run("publish", "--workspace", WORKSPACE, "-", stdin=ndjson(too_large))).complaint
    )


async def test_a_line_is_published_as_soon_as_it_is_written(shell: Shell, broker: Broker) -> None:
    """A pipe that stays open: a producer that lives on talks to us as it goes."""
    process = await shell.start("publish", "--workspace", WORKSPACE, "-", stdin=asyncio.subprocess.PIPE)
    try:
        for step in range(3):
            process.stdin.write(ndjson(line(step)))
            async with asyncio.timeout(20):
                position = (await process.stdout.readline()).decode().strip()
            assert [event.id for event in await logged(broker)][-1] == position
        process.stdin.write(ndjson(line(3)).rstrip(b"\n"))
        process.stdin.close()
        out, err = await asyncio.wait_for(process.communicate(), 20)
    finally:
        await end(process)
    assert (process.returncode, len(out.splitlines()), err) == (0, 1, b"")
    assert await steps(broker) == [0, 1, 2, 3]


# -- tail


class Tail:
    """A running `tail`."""

    def __init__(self, process: Any, workspace: str) -> None:
        self.process = process
        self.workspace = workspace

    async def next(self) -> dict[str, Any]:
        """The next event that is no probe."""
        async with asyncio.timeout(20):
            while True:
                text = await self.process.stdout.readline()
                assert text.endswith(b"\n"), (await self.process.stderr.read()).decode()
                event: dict[str, Any] = json.loads(text)
                if event["data"].get("step") != -1:
                    return event

    async def live(self, broker: Broker, **probe: Any) -> "Tail":
        """Wait until it prints what is published now."""
        data = {"task_id": "t", "step": -1}
        event = Event(
            **({"type": "task.progress", "workspace_id": self.workspace, "data": data, "ephemeral": True} | probe)
        )
        printed = asyncio.create_task(self.process.stdout.readline())

        async def is_printed() -> bool:
            await broker.publish(event)
            return printed.done()

        await until(is_printed, 20)
        assert json.loads(await printed)["data"]["step"] == -1
        return self

    async def complaint(self) -> str:
        """The next line that it says, but asyncio's of slow turns (see `Ended.complaint`)."""
        async with asyncio.timeout(20):
            while "asyncio: Executing" in (line := (await self.process.stderr.readline()).decode()):
                pass
            return str(line.strip())


StartTail = Callable[..., contextlib.AbstractAsyncContextManager[Tail]]


@pytest.fixture
def tail(shell: Shell) -> StartTail:
    @contextlib.asynccontextmanager
    async def start(*arguments: str, workspace: str = WORKSPACE) -> AsyncIterator[Tail]:
        process = await shell.start("tail", "--workspace", workspace, *arguments)
        try:
            yield Tail(process, workspace)
        finally:
            await end(process)

    return start


def progress(step: int, agent: str | None = "agent-1", **changes: Any) -> Event:
    data = {"task_id": "t", "step": step}
    return Event(**({"type": "task.progress", "workspace_id": WORKSPACE, "agent_id": agent, "data": data} | changes))


async def test_tail_prints_each_event_of_the_workspace_as_a_line_of_json(broker: Broker, tail: StartTail) -> None:
    async with tail() as all_of_it:
        await all_of_it.live(broker)
        position = await broker.publish(progress(1, timestamp="2026-03-27T10:30:45Z"))
        await broker.publish(progress(2, workspace_id="ws-other"))
        await broker.publish(progress(3, None, ephemeral=True))
        printed = await all_of_it.next()
        assert {name: printed[name] for name in ("type", "workspace_id", "agent_id", "data", "timestamp", "id")} == {
            "type": "task.progress",
            "workspace_id": WORKSPACE,
            "agent_id": "agent-1",
            "data": {"task_id": "t", "step": 1},
            "timestamp": "2026-03-27T10:30:45Z",
            "id": position,
        }
        live_only = await all_of_it.next()
        assert (live_only["data"]["step"], live_only.get("id"), live_only["ephemeral"]) == (3, None, True)


async def test_tail_prints_what_its_filters_ask_for(broker: Broker, tail: StartTail) -> None:
    async with (
        tail("--agent", "agent-1", "--agent", "agent-2", "--type", "task.progress") as narrow,
        tail("--type", "task.started", "--type", "agent.online", "--since", "0-0") as types,
    ):
        await narrow.live(broker, agent_id="agent-1")
        for step in range(6):
            await broker.publish(progress(step, f"agent-{step % 3}"))
            await broker.publish(progress(step, f"agent-{step % 3}", type="task.started", data={"task_id": f"t{step}"}))
        assert [(await narrow.next())["data"]["step"] for _ in range(4)] == [1, 2, 4, 5]
        assert [(await types.next())["data"]["task_id"] for _ in range(6)] == [f"t{step}" for step in range(6)]


async def test_tail_since_a_position_begins_behind_it_and_goes_on_live(broker: Broker, tail: StartTail) -> None:
    positions = [await broker.publish(progress(step)) for step in range(4)]
    async with tail("--since", str(positions[1])) as resumed, tail("--since", "0-0") as whole:
        assert [(await resumed.next())["data"]["step"] for _ in range(2)] == [2, 3]
        assert [(await whole.next())["data"]["step"] for _ in range(4)] == [0, 1, 2, 3]
        last = await broker.publish(progress(4))
        assert last is not None
        assert is_after(last, str(positions[3]))
        for one in (resumed, whole):
            event = await one.next()
            assert (event["data"]["step"], event["id"]) == (4, last)
            assert parse(event["id"]) is not None


@pytest.mark.parametrize("since", ["99999999999999-0", "1-1"])
async def test_tail_since_a_position_that_the_log_does_not_have_says_so_and_goes_on_live(
    broker: Broker, tail: StartTail, since: str
) -> None:
    await broker.publish(progress(1))
    async with tail("--since", since) as lost:
        complaint = await lost.complaint()
        assert complaint.startswith("trunkline: ")
        assert since in complaint
        await lost.live(broker)
        await broker.publish(progress(2))
        assert (await lost.next())["data"]["step"] == 2


async def test_tail_since_what_is_no_position_is_refused(shell: Shell) -> None:
    for since in ("yesterday", "5", "-1"):
        ended = await shell.run("tail", "--workspace", WORKSPACE, f"--since={since}")
        assert "--since" in ended.complaint
        assert ended.out == ""


async def test_tail_ends_quietly_when_nobody_reads_or_somebody_interrupts(broker: Broker, tail: StartTail) -> None:
    async with tail() as interrupted:
        await interrupted.live(broker)
        interrupted.process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(interrupted.process.communicate(), 20)
        assert (interrupted.process.returncode, err) == (130, b"")
    async with tail() as unread:
        await unread.live(broker)
        unread.process._transport.get_pipe_transport(1).close()

        async def has_ended() -> bool:
            await broker.publish(progress(1))
            return unread.process.returncode is not None

        await until(has_ended, 20)
        assert (unread.process.returncode, await unread.process.stderr.read()) == (141, b"")


# -- what cannot be


async def test_an_unreachable_redis_is_said_by_every_command_without_its_password(shell: Shell) -> None:
    port = free_port()
    url = f"redis://user:hunter2@127.0.0.1:{port}/0"
    said = await asyncio.gather(
        shell.run("serve", "--port", "0", "--redis-url", url, "--log-level", "error"),
        shell.run("publish", "--workspace", WORKSPACE, "--agent", "a", "agent.online", "--redis-url", url),
        shell.run("publish", "--workspace", WORKSPACE, "-", "--redis-url", url, stdin=ndjson(line(1))),
        shell.run("tail", "--workspace", WORKSPACE, "--redis-url", url),
    )
    said += await asyncio.gather(
        shell.run("key", "create", "--workspace", WORKSPACE, "--endpoint", ENDPOINT, "--redis-url", url),
        shell.run("key", "list", "--redis-url", url),
        shell.run("key", "revoke", "key_0000", "--redis-url", url),
    )
    for ended in said:
        assert f"127.0.0.1:{port}" in ended.complaint
        assert "hunter2" not in ended.err
        assert ended.out == ""


async def test_an_address_that_cannot_be_listened_on_is_said(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for address, ended in zip(
            (port, "host.invalid"),
            await asyncio.gather(
                shell.run("serve", "--port", port, "--log-level", "error"),
                shell.run("serve", "--host", "host.invalid", "--port", "0", "--log-level", "error"),
            ),
            strict=True,
        ):
            assert ended.status not in (0, None)
            assert "Traceback" not in ended.err
            assert address in ended.err.splitlines()[-1]
            assert len(ended.err.splitlines()) <= 2  # the server's own words, and ours


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "--jwt-secret", ""], "TRUNKLINE_JWT_SECRET"),
        (["serve", "--port", "many"], "--port"),
        (["serve", "--jwt-public-key", "/no/such/file.pem"], "--jwt-public-key"),
        (["serve", "--jwt-public-key", __file__], "jwt_public_key"),
        (["serve", "--redis-url", "localhost:6379"], "--redis-url"),
        (["serve", "--redis-url", "redis://[::1"], "--redis-url"),
        (["tail", "--workspace", "ws-1", "--prefix", "{a}"], "--prefix"),
        (["serve", "--redis-url", "redis://127.0.0.1:1?no_such_option=1"], "--redis-url"),
    ],
)
async def test_settings_that_cannot_be_are_said_before_anything_opens(
    shell: Shell, arguments: list[str], complaint: str
) -> None:
    ended = await shell.run(*arguments)
    assert complaint in ended.complaint
    assert ended.out == ""


async def test_a_variable_that_is_no_setting_is_pointed_out(shell: Shell) -> None:
    ended = await shell.run("serve", "--jwt-secret", "", TRUNKLINE_JWT_SECRETS=token())
    first, second = ended.err.splitlines()
    assert "TRUNKLINE_JWT_SECRETS" in first
    assert "TRUNKLINE_JWT_SECRET" in second
    assert token().split(".")[0] not in ended.err
    assert ended.status not in (0, None)
