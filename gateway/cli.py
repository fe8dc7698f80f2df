"""The command line. A command that fails says in one line what to do, and its exit status is not 0."""

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import uvloop

from broker import Broker, Event, Filter, Invalid, Position, TrunklineError, Worker, client
from broker.agents import AgentMissing, Agents
from broker.agents.model import MAX_LIMIT, Draft, Status, Summary
from broker.catalog import CATALOG
from broker.credentials import Credentials, Key
from broker.errors import Unreplicated
from broker.events import pack
from broker.keyspace import check_id, check_workspace
from broker.lines import Gap
from broker.positions import parse
from broker.runs.shift import FAREWELL_SECONDS
from broker.watch import watch

from . import app, auth, check, logs
from .settings import TOKEN_VARIABLE, Settings, fields, load, log_format, unknown

PROGRAM = "trunkline"

# The settings that matter to a command which only talks with Redis, by the beginnings of their names.
REDIS = ("redis_url", "prefix", "log_")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = load(os.environ, vars(options))
        if options.command == "dev" and "TRUNKLINE_PROFILE" not in os.environ and options.profile is None:
            settings = msgspec.structs.replace(settings, profile="development")
        logs.configure(settings.log_level, log_format(settings))
        sys.exit(options.run(settings, options))
    except TrunklineError as error:
        sys.exit(f"{PROGRAM}: {logs.mask(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left. Nothing may be written to it when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


class _Parser(argparse.ArgumentParser):
    """An error is one line, with where to find more."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="A Redis-backed event broker for AI agents.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[Settings, argparse.Namespace], int],
        text: str,
        settings: tuple[str, ...] = ("",),
        *,
        within: Any = commands,
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = within.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        group = sub.add_argument_group("settings (or TRUNKLINE_… in the environment)")
        for field in fields():
            if not field.name.startswith(settings):
                continue
            default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            note = f" [{default}]" if default not in ("", ()) else ""
            note = f" ({' | '.join(field.choices)}){note}" if field.choices else note
            text = (field.description + note).replace("%", "%%")
            group.add_argument(field.flag, dest=field.name, metavar="VALUE", help=text)
        return sub

    command("dev", _dev, "private Redis, gateway and demo agents on this machine")
    command("serve", _serve, "one node, one process")
    token = command("token", _token, "make a token that nodes with the same secret accept", ("jwt_", "claim_"))
    token.add_argument("--sub", required=True, help="whom it speaks for")
    token.add_argument("--workspace", required=True, action="append", help="a workspace it names; may be repeated")
    token.add_argument("--scope", help='what it may do, as "events:read commands:send"; absent: read only')
    token.add_argument("--agent", help="the agent whose own token it is")
    token.add_argument("--fingerprint", help="only for the client that says this in its header X-Client-Fingerprint")
    token.add_argument("--ttl", type=int, default=3600, help="seconds until it expires [3600]")
    text = "make, list and revoke the API keys of workflow endpoints"
    keys = commands.add_parser("key", help=text, description=text).add_subparsers(required=True, metavar="ACTION")
    create = command("create", _key_create, "make a key; it is shown now and never again", REDIS, within=keys)
    create.add_argument("--endpoint", required=True, help="the endpoint that it opens")
    create.add_argument("--workspace", required=True, help="whose the endpoint is, from its first key on")
    listing = command("list", _key_list, "list keys, revoked ones too, oldest first", REDIS, within=keys)
    listing.add_argument("--endpoint", help="only of this endpoint")
    listing.add_argument("--workspace", help="only of this workspace")
    listing.add_argument("--json", action="store_true", help="a line of JSON each")
    revoke = command(
        "revoke", _key_revoke, "let a key open nothing any more, and end its connections", REDIS, within=keys
    )
    revoke.add_argument("id", help="id of the key, as key list shows it")
    text = "list, show, make and delete the agents of a workspace"
    agents = commands.add_parser("agent", help=text, description=text).add_subparsers(required=True, metavar="ACTION")
    _add_agent_actions(partial(command, settings=REDIS, within=agents))
    publish = command("publish", _publish, "publish one event, or a line of JSON per event from standard input", REDIS)
    publish.add_argument("--workspace", required=True)
    publish.add_argument("--agent", help="agent of the event, or of lines that name none")
    publish.add_argument("--ephemeral", action="store_true", help="live only: no position, not in the log")
    publish.add_argument(
        "--min-replicas",
        type=int,
        default=0,
        metavar="N",
        help="fail unless so many replicas of Redis have what was published; positions come all the same [0]",
    )
    publish.add_argument("type", help="type of the event, or - for lines from standard input")
    publish.add_argument("data", nargs="?", help="the event's data, a JSON object [{}]")
    tail = command("tail", _tail, "print events as they come, a line of JSON each", REDIS)
    _add_tail_options(tail)
    checking = command("check", _check, "connect with these settings, and say what was found and what to change")
    checking.add_argument("--json", action="store_true", help="a line of JSON each")
    checking.add_argument("--strict", action="store_true", help="fail for warnings too")
    worker = command(
        "worker",
        _worker,
        "run a workflow worker, until it is told to end",
        (*REDIS, "drain_seconds"),
    )
    worker.add_argument(
        "worker",
        metavar="MODULE:WORKER",
        help="where its Worker stands; the module is found from the current directory",
    )
    return parser


def _add_tail_options(tail: argparse.ArgumentParser) -> None:
    tail.add_argument("--workspace", required=True)
    tail.add_argument("--agent", action="append", help="only of this agent; may be repeated")
    tail.add_argument("--type", action="append", help="only of this type; may be repeated")
    tail.add_argument("--since", help="first what came after this position; 0-0 is the beginning")
    tail.add_argument(
        "--url",
        help="through this gateway, as ws://127.0.0.1:8080/v2/ws, instead of Redis: MaxiCore's types, with a token",
    )
    tail.add_argument(
        "--token-file",
        help=f"file with the token for --url, read anew for each connection [the token in {TOKEN_VARIABLE}]",
    )


def _add_agent_actions(action: Callable[..., argparse.ArgumentParser]) -> None:
    listing = action("list", _agent_list, "list agents, newest first")
    listing.add_argument("--workspace", required=True)
    listing.add_argument("--status", choices=("online", "offline", "error"), help="only with this status")
    listing.add_argument("--json", action="store_true", help="a line of JSON each")
    show = action("show", _agent_show, "show all of an agent")
    show.add_argument("id")
    show.add_argument("--workspace", required=True)
    show.add_argument("--json", action="store_true", help="one line of JSON")
    create = action("create", _agent_create, "make an agent; prints its pairing key, once")
    create.add_argument("name")
    create.add_argument("--workspace", required=True)
    create.add_argument("--mode", default="computer", help="[computer]")
    create.add_argument("--soul", default="{}", help="a JSON object [{}]")
    create.add_argument("--shield", default="{}", help="a JSON object [{}]")
    create.add_argument("--json", action="store_true", help="one line of JSON")
    delete = action("delete", _agent_delete, "delete an agent")
    delete.add_argument("id")
    delete.add_argument("--workspace", required=True)
    delete.add_argument("--purge", action="store_true", help="its events, runs, commands and keys as well")
    delete.add_argument("--json", action="store_true", help="one line of JSON")


def _run(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end. What a task group found is raised as it was."""

    async def alone() -> int:
        try:
            return await work
        except* TrunklineError as group:
            raise group.exceptions[0] from None

    return uvloop.run(alone())


# -- dev and serve


def _dev(settings: Settings, options: argparse.Namespace) -> int:
    from .dev import develop  # noqa: PLC0415 (it needs what a fleet does not)

    return _run(develop(settings, own_redis=options.redis_url is None and "TRUNKLINE_REDIS_URL" not in os.environ))


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    if unused := unknown(os.environ):
        logging.getLogger("trunkline").warning("no such setting: %s", ", ".join(unused))

    async def work() -> int:
        await app.serve(settings)
        return 0

    return _run(work())


# -- worker

# How long a process lives on after its worker has left, and its runs had their farewell.
LAST_SECONDS = 1.5


def _worker(settings: Settings, options: argparse.Namespace) -> int:
    worker, end = _find_worker(options.worker), _End()

    async def work() -> int:
        loop = asyncio.get_running_loop()

        def stop(number: int, frame: object) -> None:
            loop.call_soon_threadsafe(worker.stop)
            end.ask(settings.drain_seconds + FAREWELL_SECONDS + LAST_SECONDS)

        # The interpreter's own handlers: they are called also while a workflow blocks the loop.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            await worker.run(
                grace_seconds=settings.drain_seconds,
                redis_url=settings.redis_url,
                prefix=settings.prefix,
                log_events=settings.log_events,
                log_seconds=settings.log_seconds,
            )
        finally:
            end.expect(LAST_SECONDS)
        return 0

    try:
        return _run(work())
    finally:
        end.has_come.set()


class _End:
    """The end of a worker's process. A workflow may hinder it: by swallowing its cancellation, or blocking the loop."""

    def __init__(self) -> None:
        self.has_come = threading.Event()
        self._is_asked = False

    def ask(self, seconds: float) -> None:
        """End within `seconds`; at once when asked again."""
        if self._is_asked:
            _leave("told to end for the second time")
        self._is_asked = True
        self.expect(seconds)

    def expect(self, seconds: float) -> None:
        def wait() -> None:
            if not self.has_come.wait(seconds):
                _leave("not all of it has ended in time")

        threading.Thread(target=wait, daemon=True).start()


def _leave(why: str) -> NoReturn:
    try:
        logging.getLogger("trunkline").error("the worker leaves at once: %s", why)
        logging.shutdown()
        sys.stdout.flush()
    finally:
        os._exit(1)


def _find_worker(where: str) -> Worker:
    """The `Worker` of that name in that module. What the module itself raises is its author's to see, whole."""
    name, _, attribute = where.partition(":")
    if not (name and attribute):
        raise Invalid("worker", f"expected module:worker, got {where!r}")
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise Invalid("worker", f"expected a module's name, as {meant}:{attribute}, got {where!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Invalid("worker", f"no module {error.name!r} here or among what is installed") from None
    worker = getattr(module, attribute, None)
    if not isinstance(worker, Worker):
        raise Invalid("worker", f"no Worker {attribute!r} in the module {name!r}")
    return worker


# -- token


def _token(settings: Settings, options: argparse.Namespace) -> int:
    for workspace in options.workspace:
        check_workspace(workspace, "--workspace")
    if options.agent is not None:
        check_id(options.agent, "--agent")
    if options.ttl <= 0:
        raise Invalid("--ttl", "expected more than 0 seconds")
    if options.scope is not None and not set(options.scope.split()) <= auth.SCOPES:
        raise Invalid("--scope", f"expected some of {', '.join(sorted(auth.SCOPES))}")
    claims = auth.claims_for(
        settings, options.sub, options.workspace, options.ttl, scope=options.scope, agent=options.agent
    )
    if options.fingerprint is not None:
        claims["fingerprint"] = auth.digest(options.fingerprint)
    print(auth.sign(settings, claims))
    return 0


# -- key


def _key_create(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _connect(settings) as broker:
            created = await Credentials(broker.redis, broker.keys).create(options.endpoint, options.workspace)
        print(f"{created.id} opens {options.endpoint} of {options.workspace}. It is shown only now:")
        print(created.key)
        return 0

    return _run(work())


def _key_list(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _connect(settings) as broker:
            found = await Credentials(broker.redis, broker.keys).list(options.endpoint, options.workspace)
        if options.json:
            for key in found:
                print(msgspec.json.encode(key).decode())
        else:
            _print_table([Key.__struct_fields__, *map(msgspec.structs.astuple, found)])
        return 0

    return _run(work())


def _key_revoke(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _connect(settings) as broker:
            await Credentials(broker.redis, broker.keys).revoke(options.id)
        print(f"{options.id} is revoked")
        return 0

    return _run(work())


# -- agent


def _agent_list(settings: Settings, options: argparse.Namespace) -> int:
    check_workspace(options.workspace, "--workspace")

    async def work() -> int:
        async with _connect(settings) as broker:
            found = await _all_agents(broker.agents, options.workspace, options.status)
        if options.json:
            for agent in found:
                print(msgspec.json.encode(agent).decode())
        else:
            _print_table([Summary.__struct_fields__, *map(msgspec.structs.astuple, found)])
        return 0

    return _run(work())


async def _all_agents(agents: Agents, workspace: str, status: Status | None) -> list[Summary]:
    """Newest first, each once, whoever comes and goes meanwhile."""
    page = await agents.list(frozenset((workspace,)), status, MAX_LIMIT)
    found = page.items
    while page.next is not None:
        page = await agents.list(frozenset((workspace,)), status, MAX_LIMIT, before=page.next)
        found += page.items
    return found


def _agent_show(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _agents(settings, options) as agents:
            agent = await agents.get(frozenset((options.workspace,)), options.id)
        raw = msgspec.json.encode(agent)
        if options.json:
            print(raw.decode())
            return 0
        for name, value in msgspec.json.decode(raw).items():
            print(f"{name:13}  {_document(value) if isinstance(value, dict) else _cell(value)}")
        return 0

    return _run(work())


def _agent_create(settings: Settings, options: argparse.Namespace) -> int:
    soul, shield = _object(options.soul, "--soul"), _object(options.shield, "--shield")
    draft = Draft(name=options.name, workspace_id=options.workspace, mode=options.mode, soul=soul, shield=shield)

    async def work() -> int:
        async with _agents(settings, options) as agents:
            created = await agents.create(options.workspace, draft)
        if options.json:
            print(msgspec.json.encode(created._asdict()).decode())
        else:
            print(f"{created.id} waits to be paired, for 24 hours. Its pairing key is shown only now:")
            print(created.pairing_key)
        return 0

    return _run(work())


def _agent_delete(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        async with _agents(settings, options) as agents:
            await agents.delete(frozenset((options.workspace,)), options.id, purge=options.purge)
        if options.json:
            print(msgspec.json.encode({"id": options.id, "deleted": True, "purged": options.purge}).decode())
        else:
            print(f"{options.id} is deleted")
        return 0

    return _run(work())


@contextlib.asynccontextmanager
async def _agents(settings: Settings, options: argparse.Namespace) -> AsyncIterator[Agents]:
    """The registry; an agent that it does not have is said with what to do."""
    check_workspace(options.workspace, "--workspace")
    async with _connect(settings) as broker:
        try:
            yield broker.agents
        except AgentMissing:
            listing = f"{PROGRAM} agent list --workspace {options.workspace}"
            raise Invalid("id", f"no agent {options.id!r} in this workspace; see {listing}") from None


def _object(text: str, path: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(os.fsencode(text), type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Invalid(path, "expected a JSON object") from None


def _print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as what stands in them."""
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    """A value in one line; a moment to the second."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return "-" if value is None else _printable(str(value))


def _document(value: dict[str, Any]) -> str:
    """JSON in as many lines as it takes."""
    lines = msgspec.json.format(msgspec.json.encode(value)).decode().split("\n")
    return "\n".join(map(_printable, lines))


def _printable(text: str) -> str:
    """`text` with what is not printable escaped: somebody's name for an agent must not steer an operator's terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# -- publish

READ_BYTES = 256 * 1024
MAX_CALLS = 64


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of `publish -`."""

    type: str
    data: dict[str, Any] = {}
    agent_id: str | None = None
    timestamp: str | None = None
    ephemeral: bool = False


_line = msgspec.json.Decoder(_Line)


def _publish(settings: Settings, options: argparse.Namespace) -> int:
    if options.min_replicas < 0:
        raise Invalid("--min-replicas", "expected 0 or more")
    if options.type == "-":
        if options.data is not None:
            raise Invalid("data", "events come from standard input")
        return _run(_publish_lines(settings, options))

    async def work() -> int:
        data = _object(options.data or "{}", "$.data")
        event = Event(
            type=options.type,
            workspace_id=options.workspace,
            agent_id=options.agent,
            data=data,
            ephemeral=options.ephemeral,
        )
        async with _connect(settings) as broker:
            await _print_positions(broker.producer.publish([pack(event)], options.min_replicas))
        return 0

    return _run(work())


async def _print_positions(publishing: Awaitable[list[Position | None]]) -> None:
    """A line each, also of what is published and not at as many replicas as it should be."""
    try:
        positions = await publishing
    except Unreplicated as error:
        _write_positions(error.positions)
        raise
    _write_positions(positions)


def _write_positions(positions: list[Position | None]) -> None:
    sys.stdout.write("".join(f"{position or ''}\n" for position in positions))
    sys.stdout.flush()


def _event(line: bytes, options: argparse.Namespace) -> Event:
    """The event that a line of JSON says. Raises `Invalid`."""
    try:
        said = _line.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        text, _, path = str(error).partition(" - at ")
        raise Invalid(path.strip("`") or "$", text[:1].lower() + text[1:].replace("`", "")) from None
    return Event(
        type=said.type,
        workspace_id=options.workspace,
        agent_id=said.agent_id or options.agent if "agent_id" not in said.data else said.agent_id,
        data=said.data,
        timestamp=said.timestamp,
        ephemeral=said.ephemeral or options.ephemeral,
    )


async def _publish_lines(settings: Settings, options: argparse.Namespace) -> int:
    """Publish lines as they come; print their positions in the same order.

    What has been read is published together, and reading goes on meanwhile. At the first line that is no event reading
    ends; what came before it is published.
    """
    calls: asyncio.Queue[asyncio.Task[list[Position | None]] | None] = asyncio.Queue(MAX_CALLS)

    async def print_positions() -> None:
        while (call := await calls.get()) is not None:
            await _print_positions(call)

    async def read_lines(broker: Broker) -> Invalid | None:
        number = 0
        async for lines in _lines_of_stdin():
            packed, invalid = [], None
            for line in lines:
                number += 1
                try:
                    if line.strip():
                        packed.append(pack(_event(line, options)))
                except Invalid as error:
                    invalid = Invalid(f"line {number}: {error.path}", error.reason)
                    break
            await calls.put(asyncio.create_task(broker.producer.publish(packed, options.min_replicas)))
            if invalid is not None:
                return invalid
        return None

    async with _connect(settings) as broker:
        printing, reading = asyncio.create_task(print_positions()), asyncio.create_task(read_lines(broker))
        # A publish that failed ends the printing: there is no use in reading on then.
        await asyncio.wait((printing, reading), return_when=asyncio.FIRST_COMPLETED)
        if printing.done():
            reading.cancel()
        else:
            await calls.put(None)
        await printing
        invalid = await reading
    if invalid is not None:
        raise invalid
    return 0


async def _lines_of_stdin() -> AsyncIterator[list[bytes]]:
    """Standard input, whatever it is (pipe, file, terminal): the lines that one read completes, together."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(MAX_CALLS)

    def read() -> None:
        chunk = b"-"
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while chunk and room.acquire():
                chunk = os.read(0, READ_BYTES)
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    # A thread that waits for input nobody sends must not keep the process: hence a daemon of our own, no executor.
    threading.Thread(target=read, daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        room.release()
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


# -- tail


def _tail(settings: Settings, options: argparse.Namespace) -> int:
    check_workspace(options.workspace, "--workspace")
    for agent in options.agent or ():
        check_id(agent, "--agent")
    if options.since is not None and parse(options.since) is None:
        raise Invalid("--since", f"expected a position, as 1790000000000-0, got {options.since!r}")
    if options.type and not set(options.type) <= CATALOG.keys():
        raise Invalid("--type", f"no event type {min(set(options.type) - CATALOG.keys())!r} in the catalog")
    if options.url is not None:
        return _run(_print_items(_tail_gateway(options)))
    if options.token_file is not None:
        raise Invalid("--token-file", "expected --url with it: Redis takes no token")
    wanted = Filter(
        workspaces=frozenset((options.workspace,)),
        agents=frozenset(options.agent) if options.agent else None,
        types=frozenset(options.type) if options.type else None,
    )

    async def work() -> int:
        async with _connect(settings) as broker:
            return await _print_items(watch(broker, wanted, Position(options.since) if options.since else None))

    return _run(work())


def _tail_gateway(options: argparse.Namespace) -> AsyncIterator[Event | Gap]:
    """Lost connections are made again for ever, and said once: whoever follows a fleet outlives its deploys."""
    file = Path(options.token_file) if options.token_file is not None else None

    def token() -> str:
        try:
            given = file.read_text() if file is not None else os.environ.get(TOKEN_VARIABLE, "")
        except (OSError, ValueError) as error:
            raise Invalid("--token-file", f"cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
        if not given.strip():
            raise Invalid("--url", f"expected a token in {TOKEN_VARIABLE} or --token-file; trunkline token makes one")
        return given

    return client.watch(
        options.url,
        token=token,
        workspace_id=options.workspace,
        agent_id=options.agent,
        event_types=options.type,
        since=options.since,
    )


async def _print_items(items: AsyncIterator[Event | Gap]) -> int:
    async for item in items:
        if isinstance(item, Gap):
            print(f"{PROGRAM}: events after {item.since} are lost", file=sys.stderr)
        else:
            print(msgspec.json.encode(item).decode(), flush=True)
    return 0


# -- check


def _check(settings: Settings, options: argparse.Namespace) -> int:
    async def work() -> int:
        found = await check.check(settings)
        for finding in found:
            print(check.say(finding, as_json=options.json))
        bad = ("error", "warning") if options.strict else ("error",)
        return int(any(finding.level in bad for finding in found))

    return _run(work())


def _connect(settings: Settings) -> contextlib.AbstractAsyncContextManager[Broker]:
    return Broker.connect(
        settings.redis_url, prefix=settings.prefix, log_events=settings.log_events, log_seconds=settings.log_seconds
    )
