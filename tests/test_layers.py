"""Imports go one way, and what is decided from values waits for nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What awaits nothing, knows no Redis and no socket.
PURE = [
    "broker.agents.documents",
    "broker.agents.errors",
    "broker.agents.model",
    "broker.agents.pairing",
    "broker.agents.records",
    "broker.catalog",
    "broker.check.facts",
    "broker.check.findings",
    "broker.check.permissions",
    "broker.client.course",
    "broker.client.places",
    "broker.client.words",
    "broker.errors",
    "broker.events",
    "broker.commands.exchange",
    "broker.filters",
    "broker.keyspace",
    "broker.positions",
    "broker.runs.exchange",
    "broker.runs.parameters",
    "broker.runs.trouble",
    "broker.shield",
    "broker.shield.actions",
    "broker.shield.commands",
    "broker.shield.finding",
    "broker.shield.folding",
    "broker.shield.hosts",
    "broker.shield.paths",
    "broker.shield.patterns",
    "broker.shield.policy",
    "broker.shield.severity",
    "broker.shield.shell",
    "broker.shield.validation",
    "broker.shield.wrapped",
    "broker.topology",
    "broker.topology.slots",
    "gateway.addresses",
    "gateway.vitals.alerts",
    "gateway.buffer",
    "gateway.clock",
    "gateway.deflate",
    "gateway.api.examples",
    "gateway.api.shapes",
    "gateway.api.yaml",
    "gateway.dialects",
    "gateway.dialects.agnt5",
    "gateway.dialects.base",
    "gateway.dialects.freeagentics",
    "gateway.dialects.maxicore",
    "gateway.dialects.reading",
    "gateway.vitals.figures",
    "gateway.frames",
    "gateway.gate",
    "gateway.hub",
    "gateway.limits",
    "gateway.messages",
    "gateway.vitals.meter",
    "gateway.reasons",
    "gateway.session",
    "gateway.settings",
    "gateway.subscriptions",
]
WAITING = {"asyncio", "uvloop", "anyio", "redis", "hiredis", "socket", "selectors", "threading", "uvicorn", "starlette"}

# Time is told to them. An event's own moment and the node's log are the exceptions.
TIMELESS = [
    name
    for name in PURE
    if name.startswith(("gateway.", "broker.check.", "broker.client.")) or name == "broker.filters"
]


def sources(package: str) -> dict[str, Path]:
    """The modules of a package by name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources("broker") | sources("gateway")
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def imports(name: str, tree: ast.AST | None = None) -> Iterator[str]:
    """What a module imports anywhere, with full names: `a.b` both for `import a.b` and for `from a import b`."""
    package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree or TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top(name: str) -> str:
    return name.partition(".")[0]


def test_this_file_sees_every_module() -> None:
    assert set(PURE) <= set(MODULES)
    assert {"broker.feed", "gateway.node", "gateway.wire"} <= set(MODULES)
    dialects = {name for name in MODULES if name.startswith("gateway.dialects")}
    assert dialects <= set(PURE), "every dialect is pure: list it"
    assert "asyncio" in set(imports("broker.feed"))
    assert "gateway.frames" in set(imports("gateway.reasons"))
    assert "gateway.messages" in set(imports("gateway.dialects.base"))


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) == "broker"])
def test_the_broker_knows_nothing_of_the_gateway(name: str) -> None:
    assert "gateway" not in {top(imported) for imported in imports(name)}
    sockets = {"uvicorn", "starlette", "websockets", "httptools", "jwt", "prometheus_client"}
    if name == "broker.client.watching":
        sockets -= {"websockets"}  # a client of gateways, who knows no more of them than their words
    assert not sockets & {top(imported) for imported in imports(name)}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_is_shipped_knows_its_tests(name: str) -> None:
    assert not {"tests", "pytest", "hypothesis", "deploy"} & {top(imported) for imported in imports(name)}


@pytest.mark.parametrize("name", PURE)
def test_what_is_pure_knows_no_loop_no_redis_and_no_socket(name: str) -> None:
    assert not WAITING & {top(imported) for imported in imports(name)}


@pytest.mark.parametrize("name", PURE)
def test_what_is_pure_awaits_nothing(name: str) -> None:
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    assert [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, waiting)] == []


@pytest.mark.parametrize("name", TIMELESS)
def test_what_is_pure_has_no_clock_of_its_own(name: str) -> None:
    assert not {"time", "datetime", "random"} & {top(imported) for imported in imports(name)}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("gateway.dialects.")])
def test_a_dialect_knows_words_and_nothing_that_acts(name: str) -> None:
    known = {"gateway." + name for name in ("messages", "reasons", "dialects", "frames", "limits", "subscriptions")}
    inside = {imported for imported in imports(name) if imported in MODULES and top(imported) == "gateway"}
    assert all(imported in known or imported.startswith("gateway.dialects.") for imported in inside - {"gateway"})


def test_no_two_modules_need_each_other() -> None:
    """A reader can take the modules in an order in which each knows only those before it."""
    needs = {name: needed(name) - {name} for name in MODULES}
    left = dict(needs)
    while ready := [name for name, others in left.items() if not others & set(left)]:
        for name in ready:
            del left[name]
    assert left == {}


def needed(name: str) -> set[str]:
    """The modules that are imported with this one: not for types alone, nor when a function is called."""
    body = [
        node
        for node in TREES[name].body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    found = {imported for imported in imports(name, ast.Module(body, [])) if imported in MODULES}
    # A package's own file is run first; it is needed by what it holds only if that says so.
    return found - {"broker", "gateway"} if name.startswith(("broker.", "gateway.")) else found
