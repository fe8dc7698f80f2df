"""Every event of AGNT5's document (seed 002, "Events"), as it comes to a client from a worker's run."""

import asyncio
import contextlib
import json
import re
from typing import Any

import pytest

from broker import Event, Retry, Run, Worker
from broker.positions import order
from broker.runs.steps import Step

from . import workflows
from .agnt5 import TYPES, WHOLE, Agnt5, Message, Shop, error, execution_of, types
from .wire import seed
from .wire.helpers import progress

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]

QUERY = "Full stack engineer with 10+ years of experience in React willing to work remotely"
WORDS: Message = {"user_query": QUERY, "organization_id": "272e9e73-fe36-4ea1-acf6-4ea08d21aa0c", "filters": {}}


def documented() -> set[str]:
    """The types that the document lists, as `- task_start: Task begins execution`."""
    return set(re.findall(r"^- ([a-z]+_[a-z]+): ", "\n".join(seed.text("002")), re.MULTILINE))


def search(worker: Worker) -> None:
    """The document's workflow. Its `filters` say what shall become of it."""

    @worker.workflow("search-candidates")
    async def search(run: Run, user_query: str, organization_id: str, filters: dict[str, Any]) -> list[str]:
        async with run.task("shortlist", input={"query": user_query}) as task:
            async with task.llm(model="large-1", vendor="acme", input=[user_query]) as call:
                call.usage(prompt_tokens=812, completion_tokens=96, total_cost=0.0042)
                call.output("React")
            async with task.tool("crm.lookup", input={"skill": "react"}) as tool:
                tool.output({"found": 12})
            task.output(12)
        if filters.get("wait"):
            async with run.task("rest"):
                await asyncio.sleep(60)
        if filters:
            async with run.task("narrow") as task:
                with contextlib.suppress(TimeoutError):
                    async with task.llm(model="large-1"):
                        raise TimeoutError("overloaded")
                async with task.tool("crm.filter"):
                    raise LookupError("no such filter")
        return ["Ada"]


def assert_documented(messages: list[Message], execution: str) -> None:
    """Each has the document's shape, and ours beside it: a position, and they only grow."""
    for message in messages:
        assert message.keys() == {"type", "data", "event_id"}
        assert message["data"].keys() == {"timestamp", "details", "execution_id"}
        assert message["data"]["execution_id"] == execution
        assert isinstance(message["data"]["details"], dict)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", message["data"]["timestamp"])
    positions = [order(message["event_id"]) for message in messages]
    assert positions == sorted(set(positions))


def assert_paired(messages: list[Message]) -> None:
    """Every step has one start, then one end or one error, and its parent began before it and ended after it."""
    said: dict[str, list[tuple[int, Message]]] = {}
    for place, message in enumerate(messages):
        if not message["type"].startswith("execution_"):
            said.setdefault(message["data"]["details"]["step_id"], []).append((place, message))
    for pair in said.values():
        (began, first), (ended, last) = pair
        kind = first["type"].removesuffix("_start")
        assert (first["type"], last["type"]) in [(f"{kind}_start", f"{kind}_{word}") for word in ("end", "error")]
        parents = [message["data"]["details"].get("parent_id") for message in (first, last)]
        assert parents[0] == parents[1]
        assert (parents[0] is None) is (kind == "workflow")
        if parents[0] is not None:
            (parent_began, _), (parent_ended, _) = said[parents[0]]
            assert parent_began < began < ended < parent_ended


def details(client: Agnt5, execution: str, kind: str) -> list[Message]:
    return [message["data"]["details"] for message in client.of(execution) if message["type"] == kind]


def test_the_catalog_is_the_documents() -> None:
    assert len(documented()) == 16
    assert documented() == TYPES


async def test_every_documented_event_comes_from_a_run_in_its_shape_and_paired(shop: Shop) -> None:
    worker = shop.worker()
    search(worker)
    async with shop.working(worker), shop.client() as client:
        good = await client.start("search-candidates", WORDS, connection_id="ws_1")
        await client.end(good)
        bad = await client.start("search-candidates", WORDS | {"filters": {"city": "Ghent"}}, connection_id="ws_1")
        await client.end(bad)
        stopped = await client.start("search-candidates", WORDS | {"filters": {"wait": True}})
        await client.until("task_end")
        await client.until("task_start")
        await client.cancel(stopped)
        await client.end(stopped)
    assert set(types(client.messages)) == documented()
    for execution in (good, bad, stopped):
        assert_documented(client.of(execution), execution)
        assert_paired(client.of(execution))

    assert types(client.of(good)) == [
        "execution_started", "workflow_start", "task_start", "llm_start", "llm_end", "tool_start", "tool_end",
        "task_end", "workflow_end", "execution_completed",
    ]  # fmt: skip
    assert types(client.of(bad))[8:] == [
        "task_start", "llm_start", "llm_error", "tool_start", "tool_error", "task_error", "workflow_error",
        "execution_failed",
    ]  # fmt: skip
    assert types(client.of(stopped))[8:] == ["task_start", "task_error", "workflow_error", "execution_cancelled"]


async def test_what_the_details_of_a_good_run_say(shop: Shop) -> None:
    worker = shop.worker()
    search(worker)
    async with shop.working(worker), shop.client() as client:
        execution = await client.start("search-candidates", WORDS, connection_id="ws_1")
        await client.end(execution)
    started, workflow, task, llm, llm_end, tool, tool_end, task_end, workflow_end, completed = (
        message["data"]["details"] for message in client.of(execution)
    )
    assert started == {"name": "search-candidates", "connection_id": "ws_1"}
    assert workflow == {"name": "search-candidates", "input": WORDS, "step_id": workflow["step_id"]}
    assert (task["name"], task["input"], task_end["output"]) == ("shortlist", {"query": QUERY}, 12)
    assert (llm["model"], llm["vendor"], llm["input"]) == ("large-1", "acme", [QUERY])
    used = {"prompt_tokens": 812, "completion_tokens": 96, "total_tokens": 908, "total_cost": 0.0042}
    assert llm_end.items() >= (used | {"model": "large-1", "vendor": "acme", "output": "React"}).items()
    assert (tool["name"], tool["input"], tool_end["output"]) == ("crm.lookup", {"skill": "react"}, {"found": 12})
    assert workflow_end["output"] == completed["output"] == ["Ada"]
    assert task["parent_id"] == workflow["step_id"]
    assert llm["parent_id"] == tool["parent_id"] == task["step_id"]
    for ended in (llm_end, tool_end, task_end, workflow_end, completed):
        assert ended["latency_ms"] >= 0


async def test_an_exception_is_told_up_the_tree(shop: Shop) -> None:
    worker = shop.worker()
    search(worker)
    async with shop.working(worker), shop.client() as client:
        execution = await client.start("search-candidates", WORDS | {"filters": {"city": "Ghent"}})
        failed = await client.end(execution)
    told = {message["type"]: error(message) for message in client.of(execution) if "_error" in message["type"]}
    lookup = {"code": "LOOKUP_ERROR", "message": "no such filter"}
    assert told == {
        "llm_error": {"code": "TIMEOUT_ERROR", "message": "overloaded"},
        "tool_error": lookup,
        "task_error": lookup,
        "workflow_error": lookup,
    }
    assert (failed["type"], error(failed)) == ("execution_failed", lookup)


async def test_tasks_beside_each_other_keep_their_parents(shop: Shop) -> None:
    worker = shop.worker()

    async def part(parent: Step, name: str) -> None:
        async with parent.task(name) as task:
            await asyncio.sleep(0)
            async with task.tool(f"{name}.tool") as tool, tool.llm(model=f"{name}.model"):
                await asyncio.sleep(0)

    @worker.workflow("wide")
    async def wide(run: Run) -> None:
        async with run.task("outer") as outer, asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(part(outer, f"inner-{number}"))
                group.create_task(part(run, f"side-{number}"))

    async with shop.working(worker), shop.client() as client:
        execution = await client.start("wide")
        await client.end(execution)
    assert_paired(client.of(execution))
    starts = [message for message in client.of(execution) if message["type"].endswith("_start")]
    said = [message["data"]["details"] for message in starts]
    names = {one["step_id"]: one.get("name") or one["model"] for one in said}
    parents = {names[one["step_id"]]: names[one["parent_id"]] for one in said if "parent_id" in one}
    expected = {"outer": "wide"}
    for base, name in (("outer", "inner"), ("wide", "side")):
        for number in range(5):
            one = f"{name}-{number}"
            expected |= {one: base, f"{one}.tool": one, f"{one}.model": f"{one}.tool"}
    assert parents == expected


async def test_a_run_that_is_tried_again_says_which_attempt_it_is(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    workflows.quicken(monkeypatch.setattr)  # a beat finds what waits for its second attempt
    worker = shop.worker()

    @worker.workflow("flaky")
    async def flaky(run: Run) -> int:
        if run.attempt < 2:
            raise Retry("not yet", seconds=0.01)
        return run.attempt

    async with shop.working(worker), shop.client() as client:
        execution = await client.start("flaky")
        completed = await client.end(execution)
    assert completed["data"]["details"]["output"] == 2
    for kind in ("execution_started", "workflow_start"):
        assert [told.get("attempt") for told in details(client, execution, kind)] == [None, 2]
    assert_paired(client.of(execution))
    assert sum(kind == "execution_completed" for kind in types(client.of(execution))) == 1


async def test_an_event_of_any_producer_travels_as_it_was_given(shop: Shop) -> None:
    """As the document shows one: its timestamp has no milliseconds, its details are open."""
    extra = {"note": {"Käse": ["🧀", None, 1.5, '"\\\u2028']}, "timestamp": "mine", "type": "mine", "event_id": "mine"}
    async with shop.crew() as crew, shop.client() as client:
        execution = await client.start("wait")
        await client.until("task_end")
        for given in ({}, extra):
            event = Event(
                type="tool_end",
                workspace_id=shop.workspace,
                agent_id=shop.endpoint,
                data={"execution_id": execution} | given,
                timestamp="2024-01-10T12:00:00Z",
            )
            position = await shop.broker.publish(event)
            assert await client.receive() == {
                "type": "tool_end",
                "data": {"timestamp": "2024-01-10T12:00:00Z", "details": given, "execution_id": execution},
                "event_id": position,
            }
        crew.go.set()
        await client.end(execution)


async def test_only_events_of_its_own_runs_reach_a_client(shop: Shop) -> None:
    """Not those of other protocols in its workspace, nor of an execution that it did not start."""
    foreign = [
        progress(shop.workspace, agent=shop.endpoint),
        Event(type="agent_status", workspace_id=shop.workspace, agent_id=shop.endpoint, data={"new_status": "idle"}),
        Event(type="metrics_update", workspace_id=shop.workspace, data={"system": {"cpu_usage": 1.0}}),
        Event(
            type="task_start",
            workspace_id=shop.workspace,
            agent_id=shop.endpoint,
            data={"execution_id": "exec_foreign"},
        ),
    ]
    async with shop.crew() as crew, shop.client() as client:
        execution = await client.start("wait")
        await client.until("task_end")
        for event in foreign:
            await shop.broker.publish(event)
        crew.go.set()
        await client.end(execution)
        assert await client.synchronise() == []
    assert [kind for kind in types(client.messages) if kind != "pong"] == WHOLE
    assert {execution_of(message) for message in client.messages if message["type"] != "pong"} == {execution}


@pytest.mark.parametrize("text", ["x" * 60_000, "ä🧀" * 10_000], ids=["ascii", "more"])
async def test_a_large_output_comes_whole(shop: Shop, text: str) -> None:
    async with shop.crew(), shop.client() as client:
        await client.send(json.dumps({"name": "echo", "parameters": {"text": text}}, ensure_ascii=False))
        completed = await client.end()
    assert completed["data"]["details"]["output"]["parameters"] == {"text": text}
