"""Workers: what people write, what their clients hear of it, and how a worker goes."""

import asyncio
import contextlib
import dataclasses
import datetime
import decimal
import logging
import os
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest

from broker import Event, Invalid, Retry, Run, Unavailable, Worker
from broker.catalog import CATALOG
from broker.runs.attempt import backoff
from broker.runs.exchange import Fate
from broker.runs.parameters import Parameters
from broker.runs.queue import Queue
from broker.runs.steps import Step
from broker.runs.trouble import describe

from . import workflows
from .proxy import Proxy, proxy
from .running import ENDS, Client, connected
from .support import until
from .workflows import ENDPOINT, WORKSPACE

pytestmark = pytest.mark.anyio

Hire = Callable[..., Worker]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    workflows.quicken(monkeypatch.setattr)


@pytest.fixture
async def client(redis_url: str, prefix: str) -> AsyncIterator[Client]:
    async with connected(redis_url, prefix) as client:
        yield client


@pytest.fixture
def make(redis_url: str, prefix: str) -> Hire:
    """A worker of this test's endpoint, not at work yet."""

    def make(**more: Any) -> Worker:
        url = more.pop("redis_url", redis_url)
        return Worker(url, **({"endpoint": ENDPOINT, "workspace_id": WORKSPACE, "prefix": prefix} | more))

    return make


@contextlib.asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def told(client: Client, name: str, /, **parameters: Any) -> list[Event]:
    """All that a run says, to its end."""
    execution = (await client.start(name, **parameters)).execution_id
    await client.end(execution)
    return await client.events(execution)


def kinds(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def steps(events: list[Event]) -> dict[str, list[str]]:
    """What was said of each step, by its id."""
    said: dict[str, list[str]] = {}
    for event in events:
        if "step_id" in event.data:
            said.setdefault(event.data["step_id"], []).append(event.type)
    return said


def assert_paired(events: list[Event]) -> None:
    for first, *rest in steps(events).values():
        kind, _, phase = first.partition("_")
        assert phase == "start"
        assert rest in ([f"{kind}_end"], [f"{kind}_error"])


# -- what clients hear


class Candidate(msgspec.Struct):
    name: str
    years: int = 0


async def test_every_event_type_of_the_protocol_comes_from_a_run_in_its_shape(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("search-candidates")
    async def search(run: Run, user_query: str, organization_id: str, filters: dict[str, Any]) -> list[Candidate]:
        assert (run.name, run.attempt, run.connection_id) == ("search-candidates", 1, "ws_1")
        async with run.task("shortlist", input={"query": user_query}) as task:
            async with task.llm(model="large-1", vendor="acme") as call:
                call.usage(prompt_tokens=812, completion_tokens=96, total_cost=0.0042)
            async with task.tool("crm.lookup", input={"skill": "react"}) as tool:
                tool.output({"found": 12})
        if filters.get("wait"):
            await asyncio.sleep(60)
        if filters:
            async with run.task("narrow") as task:
                with contextlib.suppress(TimeoutError):
                    async with task.llm(model="large-1"):
                        raise TimeoutError("overloaded")
                async with task.tool("crm.filter"):
                    raise LookupError("no such filter")
        return [Candidate("Ada", 12)]

    words = {"user_query": "Full stack engineer", "organization_id": "272e9e73", "filters": {}}
    async with working(worker):
        good = await told(client, "search-candidates", **words)
        bad = await told(client, "search-candidates", **words | {"filters": {"city": "x"}})
        stopped = (await client.start("search-candidates", **words | {"filters": {"wait": True}})).execution_id
        await until(lambda: _says(client, stopped, "task_end"))
        await client.runs.cancel(WORKSPACE, stopped)
        await client.end(stopped)
        cancelled = await client.events(stopped)

    agnt5 = {name for name, kind in CATALOG.items() if kind.dialect == "agnt5"}
    assert set(kinds(good + bad + cancelled)) == agnt5
    for events in (good, bad, cancelled):
        assert_paired(events)
        assert {event.agent_id for event in events} == {ENDPOINT}
        assert all(event.timestamp and event.id for event in events)

    assert kinds(good) == [
        "execution_started", "workflow_start", "task_start", "llm_start", "llm_end", "tool_start", "tool_end",
        "task_end", "workflow_end", "execution_completed",
    ]  # fmt: skip
    started, workflow, task, llm, llm_end, tool, tool_end, task_end, workflow_end, completed = (
        event.data for event in good
    )
    assert started == {"execution_id": started["execution_id"], "name": "search-candidates", "connection_id": "ws_1"}
    assert (workflow["name"], workflow["input"]) == ("search-candidates", words)
    assert task["parent_id"] == workflow["step_id"]
    assert "parent_id" not in workflow
    assert llm["parent_id"] == tool["parent_id"] == task["step_id"]
    assert (llm["model"], llm["vendor"]) == (llm_end["model"], llm_end["vendor"]) == ("large-1", "acme")
    tokens = ("prompt_tokens", "completion_tokens", "total_tokens", "total_cost")
    assert [llm_end[name] for name in tokens] == [812, 96, 908, 0.0042]
    assert (task["name"], task["input"], tool["name"], tool["input"]) == (
        "shortlist", {"query": "Full stack engineer"}, "crm.lookup", {"skill": "react"},
    )  # fmt: skip
    assert tool_end["output"] == {"found": 12}
    assert workflow_end["output"] == completed["output"] == [{"name": "Ada", "years": 12}]
    for ended in (llm_end, tool_end, task_end, workflow_end, completed):
        assert ended["latency_ms"] >= 0

    errors = {event.type: event.data["error"] for event in bad if "error" in event.data}
    assert errors == {
        "llm_error": {"code": "TIMEOUT_ERROR", "message": "overloaded"},
        "tool_error": {"code": "LOOKUP_ERROR", "message": "no such filter"},
        "task_error": {"code": "LOOKUP_ERROR", "message": "no such filter"},
        "workflow_error": {"code": "LOOKUP_ERROR", "message": "no such filter"},
        "execution_failed": {"code": "LOOKUP_ERROR", "message": "no such filter"},
    }
    assert kinds(cancelled)[-2:] == ["workflow_error", "execution_cancelled"]


async def _says(client: Client, execution: str, kind: str) -> bool:
    return kind in await client.kinds(execution)


async def test_tasks_that_run_beside_each_other_keep_their_parents(client: Client, make: Hire) -> None:
    worker = make()

    async def part(parent: Step, name: str) -> None:
        async with parent.task(name) as task:
            await asyncio.sleep(0.01)
            async with task.tool(f"{name}-tool"), task.llm(model=f"{name}-model"):
                await asyncio.sleep(0.01)

    @worker.workflow("wide")
    async def wide(run: Run) -> None:
        async with run.task("outer") as outer, asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(part(outer, f"inner-{number}"))
        await asyncio.gather(*(part(run, f"side-{number}") for number in range(5)))

    async with working(worker):
        events = await told(client, "wide")
    assert_paired(events)
    starts = {event.data["step_id"]: event.data for event in events if event.type.endswith("_start")}

    def path(data: dict[str, Any]) -> str:
        name = data.get("name") or data["model"]
        return f"{path(starts[data['parent_id']])}/{name}" if "parent_id" in data else name

    found = {path(data) for data in starts.values()}
    expected = {"wide", "wide/outer"}
    for base, name in (("wide/outer", "inner"), ("wide", "side")):
        for number in range(5):
            one = f"{base}/{name}-{number}"
            expected |= {one, f"{one}/{name}-{number}-tool", f"{one}/{name}-{number}-model"}
    assert found == expected


async def test_one_of_many_tasks_fails_and_the_others_are_told_as_cancelled(client: Client, make: Hire) -> None:
    worker = make()

    async def part(run: Run, number: int) -> None:
        async with run.task(f"part-{number}"):
            await asyncio.sleep(0.05 if number == 3 else 60)
            raise ValueError("the third")

    @worker.workflow("wide")
    async def wide(run: Run) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(part(run, number))

    async with working(worker):
        events = await told(client, "wide")
    assert_paired(events)
    codes = Counter(event.data["error"]["code"] for event in events if event.type == "task_error")
    assert codes == {"VALUE_ERROR": 1, "CANCELLED": 4}
    assert events[-1].data["error"] == {"code": "VALUE_ERROR", "message": "the third"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"query": 5}, "$.query: expected str, got int"),
        ({}, "$.query: required"),
        ({"query": "x", "more": 1}, "$.more: no such parameter"),
        ({"query": "x", "people": [{"name": "Ada"}, {"name": 7}]}, "$.people[1].name: expected str, got int"),
        ({"query": "x", "limit": "3"}, "$.limit: expected int, got str"),
    ],
)
async def test_wrong_parameters_fail_the_run_with_their_path_and_leave_the_worker_unharmed(
    client: Client,
    make: Hire,
    given: dict[str, Any],
    words: str,
) -> None:
    worker = make()
    calls: list[Any] = []

    @worker.workflow("typed")
    async def typed(run: Run, query: str, people: list[Candidate] | None = None, *, limit: int = 10) -> None:
        calls.append((query, people, limit))

    async with working(worker):
        events = await told(client, "typed", **given)
        assert kinds(events) == ["execution_started", "execution_failed"]
        assert events[-1].data["error"] == {"code": "INVALID_PARAMETERS", "message": words}
        assert kinds(await told(client, "typed", query="x", people=[{"name": "Ada"}]))[-1] == "execution_completed"
    assert calls == [("x", [Candidate("Ada")], 10)]


async def test_parameters_that_a_workflow_takes_as_they_come(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("open")
    async def open_(run, first, **others):  # type: ignore[no-untyped-def]
        return [first, others]

    async with working(worker):
        events = await told(client, "open", first=1, second={"x": None})
    assert events[-1].data["output"] == [1, {"second": {"x": None}}]


async def test_a_run_past_its_deadline_is_stopped_and_its_finally_runs(client: Client, make: Hire) -> None:
    worker, ended = make(), asyncio.Event()

    @worker.workflow("long")
    async def long(run: Run) -> None:
        try:
            async with run.task("wait"):
                await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            ended.set()

    async with working(worker):
        events = await told(client, "long", seconds=0.3)
    assert ended.is_set()
    assert {event.data["error"]["code"] for event in events[-3:]} == {"DEADLINE_EXCEEDED"}
    assert kinds(events)[-3:] == ["task_error", "workflow_error", "execution_failed"]
    assert events[-1].data["latency_ms"] < 2000


async def test_a_run_whose_deadline_passed_while_it_waited_does_not_begin(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("noop")
    async def noop(run: Run) -> None: ...

    execution = (await client.start("noop", seconds=0.05)).execution_id
    await asyncio.sleep(0.1)
    async with working(worker):
        assert (await client.end(execution)).data["error"]["code"] == "DEADLINE_EXCEEDED"
    assert await client.kinds(execution) == ["execution_failed"]


async def test_a_workflow_that_does_not_mind_being_cancelled_is_told_as_cancelled(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("stubborn")
    async def stubborn(run: Run) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "done all the same"

    async with working(worker):
        execution = (await client.start("stubborn")).execution_id
        await until(lambda: _says(client, execution, "workflow_start"))
        await client.runs.cancel(WORKSPACE, execution)
        assert (await client.end(execution)).type == "execution_cancelled"
    assert_paired(await client.events(execution))


async def test_retry_begins_again_as_often_as_there_are_attempts(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("flaky")
    async def flaky(run: Run, good: int) -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(_flake(run, good))
        return run.attempt

    async with working(worker):
        done = await told(client, "flaky", good=3)
        assert done[-1].data["output"] == 3
        assert [event.data.get("attempt") for event in done if event.type == "workflow_start"] == [None, 2, 3]
        failed = await told(client, "flaky", good=9)
        assert [event.data.get("attempt") for event in failed if event.type == "execution_started"] == [None, 2, 3]
        assert failed[-1].data["error"] == {"code": "RETRY", "message": "not yet"}
    for events in (done, failed):
        assert_paired(events)
        assert sum(event.type in ENDS for event in events) == 1


async def _flake(run: Run, good: int) -> None:
    if run.attempt < good:
        raise Retry("not yet", seconds=0.01)


def test_the_pause_before_a_retry_grows_to_a_minute() -> None:
    for tries, longest in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (100, 60)):
        assert longest / 2 <= backoff(tries, None) <= longest
    assert backoff(5, 0.25) == 0.25
    assert backoff(5, -1) == 0


@pytest.mark.parametrize("result", [{1, "x"}, object(), "\ud800", "x" * 300_000], ids=["set", "object", "text", "size"])
async def test_a_result_that_cannot_be_told_fails_the_run(client: Client, make: Hire, result: Any) -> None:
    worker = make()

    @worker.workflow("odd")
    async def odd(run: Run, where: str) -> Any:
        if where == "step":
            async with run.tool("odd") as tool:
                tool.output(result)
        return result

    if isinstance(result, set):
        result = {object()}
    async with working(worker):
        events = await told(client, "odd", where="result")
        assert events[-1].data["error"]["code"] == "INVALID_OUTPUT"
        assert_paired(events)
        events = await told(client, "odd", where="step")
        errors = [event.data["error"] for event in events if "error" in event.data]
        assert {error["code"] for error in errors} == {"INVALID_OUTPUT"}
        assert all(error["message"].startswith("output: ") for error in errors)
        assert kinds(events)[-3:] == ["tool_error", "workflow_error", "execution_failed"]
        assert_paired(events)


class Named(Exception):  # noqa: N818
    code = "CRM_DOWN"


class Rude(Exception):  # noqa: N818
    code = "not a code"

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("no"), "VALUE_ERROR", "no"),
        (Named("down"), "CRM_DOWN", "down"),
        (Rude(), "RUDE", "Rude"),
        (KeyError(), "KEY_ERROR", "KeyError"),
        (OSError("gone"), "OS_ERROR", "gone"),
        (ValueError("\ud800"), "VALUE_ERROR", "?"),
        (ValueError("x" * 5000), "VALUE_ERROR", "x" * 1000),
        (ExceptionGroup("g", [Retry("a"), ExceptionGroup("h", [ValueError("b")])]), "VALUE_ERROR", "b"),
        (ExceptionGroup("g", [Retry("a")]), "RETRY", "a"),
    ],
)
def test_an_exception_is_told_by_its_code_and_words(error: Exception, code: str, message: str) -> None:
    assert describe(error) == {"code": code, "message": message}


async def test_a_workflow_nobody_serves_fails_and_one_that_another_serves_waits_for_it(
    client: Client,
    make: Hire,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.runs.attempt.ELSEWHERE_SECONDS", 0.1)
    old, new = make(), make()

    @old.workflow("old")
    async def _old(run: Run) -> None: ...

    @new.workflow("new")
    async def _new(run: Run) -> None: ...

    strange = (await client.start("strange")).execution_id
    async with working(old):
        assert (await client.end(strange)).data["error"]["code"] == "UNKNOWN_WORKFLOW"
        async with working(new):
            await until(lambda: client.broker.redis.zscore(client.broker.keys.served(WORKSPACE, ENDPOINT), "new"))
            for _ in range(10):
                assert kinds(await told(client, "new", max_attempts=1))[-1] == "execution_completed"


async def test_a_run_waits_for_the_workers_of_its_workflow_while_others_live(
    client: Client,
    make: Hire,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.runs.attempt.AWAY_SECONDS", 0.1)
    release, given_back = Queue.release, Counter[tuple[str, str]]()

    async def count(queue: Queue, execution: str, holder: str, attempt: Fate, *, seconds: float) -> None:
        given_back[(execution, attempt)] += 1
        await release(queue, execution, holder, attempt, seconds=seconds)

    monkeypatch.setattr(Queue, "release", count)
    other, ours, again = make(), make(), make()
    other.workflow("other")(_nothing)

    async def nap(run: Run, seconds: float) -> int:
        await asyncio.sleep(seconds if run.attempt == 1 else 0)
        return run.attempt

    ours.workflow("nap")(nap)
    again.workflow("nap")(nap)
    async with working(other):
        async with working(ours):
            await until(lambda: client.broker.redis.zscore(client.broker.keys.served(WORKSPACE, ENDPOINT), "nap"))
            begun = await _nap(client, 60)
            await until(lambda: _says(client, begun, "workflow_start"))
        waiting = await _nap(client, 0)
        await until(lambda: _is_unserved(client))
        given_back.clear()
        await until(lambda: {given_back[(begun, "unbegun")] > 2, given_back[(waiting, "unbegun")] > 2} == {True})
        async with working(again):
            assert (await client.end(begun)).data["output"] == 2
            assert (await client.end(waiting)).data["output"] == 1


async def _nap(client: Client, seconds: float) -> str:
    terms: dict[str, Any] = {"seconds": 60, "max_attempts": 1}
    return (await client.runs.submit(WORKSPACE, ENDPOINT, "nap", {"seconds": seconds}, {}, None, **terms)).execution_id


async def _is_unserved(client: Client) -> bool:
    return await client.broker.redis.zscore(client.broker.keys.served(WORKSPACE, ENDPOINT), "nap") is None


async def test_a_run_that_its_workers_leave_alone_ends_at_its_deadline(
    client: Client,
    make: Hire,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.runs.attempt.AWAY_SECONDS", 0.1)
    other = make()
    other.workflow("other")(_nothing)
    await Queue(client.broker.redis, client.broker.keys, WORKSPACE, ENDPOINT).beat(["nap"], (), ())
    async with working(other):
        execution = (await client.start("nap", seconds=2.5)).execution_id
        end = await client.end(execution)
    assert end.data["error"]["code"] == "DEADLINE_EXCEEDED"
    assert kinds(await client.events(execution)) == ["execution_failed"]


@pytest.mark.parametrize(
    ("error", "code"), [(SystemExit(3), "SYSTEM_EXIT"), (KeyboardInterrupt(), "KEYBOARD_INTERRUPT")]
)
async def test_a_workflow_that_would_end_its_program_ends_its_run_alone(
    client: Client, make: Hire, error: BaseException, code: str
) -> None:
    worker = make()

    @worker.workflow("leave")
    async def leave(run: Run) -> None:
        async with run.task("leave"):
            raise error

    worker.workflow("noop")(_nothing)
    async with working(worker):
        events = await told(client, "leave")
        assert kinds(events)[-3:] == ["task_error", "workflow_error", "execution_failed"]
        assert {event.data["error"]["code"] for event in events[-3:]} == {code}
        assert kinds(await told(client, "noop"))[-1] == "execution_completed"


async def test_what_a_workflow_raises_is_logged_by_its_place_and_not_its_words(
    client: Client,
    make: Hire,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = make()

    @worker.workflow("bad")
    async def bad(run: Run, query: str) -> None:
        _refuse(query)

    with caplog.at_level(logging.DEBUG, "trunkline"):
        async with working(worker):
            await told(client, "bad", query="my secret")
    assert re.search(
        r"run exec_\w+ of bad failed: ValueError at \S+:\d+ bad, \S+test_worker.py:\d+ _refuse\n", caplog.text
    )
    assert "secret" not in caplog.text


def _refuse(query: str) -> None:
    raise ValueError(query)


async def test_what_is_wrong_with_parameters_and_outputs_is_logged_without_their_words(
    client: Client,
    make: Hire,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = make()

    @worker.workflow("odd")
    async def odd(run: Run, query: str = "") -> Any:
        return "x" * 300_000

    with caplog.at_level(logging.INFO, "trunkline"):
        async with working(worker):
            await told(client, "odd", my_secret=1)
            await told(client, "odd")
    said = [(record.levelname, record.getMessage().split(maxsplit=2)[2]) for record in caplog.records]
    assert ("INFO", "of odd failed: INVALID_PARAMETERS") in said
    assert ("WARNING", "of odd failed: INVALID_OUTPUT") in said
    assert "secret" not in caplog.text


async def test_no_more_runs_at_a_time_than_was_said(client: Client, make: Hire) -> None:
    worker = make(concurrency=3)
    present = most = 0

    @worker.workflow("count")
    async def count(run: Run) -> None:
        nonlocal present, most
        present += 1
        most = max(most, present)
        await asyncio.sleep(0.02)
        present -= 1

    async with working(worker):
        started = [(await client.start("count")).execution_id for _ in range(20)]
        for execution in started:
            await client.end(execution)
    assert most == 3


# -- steps


async def test_a_step_is_entered_once_and_told_of_while_it_is_open(client: Client, make: Hire) -> None:
    worker = make()
    words: list[str] = []

    def note(call: Callable[[], Any]) -> None:
        with pytest.raises(RuntimeError) as error:
            call()
        words.append(str(error.value))

    @worker.workflow("odd")
    async def odd(run: Run) -> None:
        call = run.llm(model="m")
        note(lambda: call.output(1))
        async with call:
            call.output(2)
        note(lambda: call.usage(prompt_tokens=1, completion_tokens=1))
        async with run, call:
            pass

    async with working(worker):
        events = await told(client, "odd")
    assert [word.split(":")[0] for word in words] == ["this llm is not open"] * 2
    assert "usage()" in words[1]
    assert events[-1].data["error"] == {
        "code": "RUNTIME_ERROR", "message": "a workflow begins once: make another one for each `async with`",
    }  # fmt: skip
    assert_paired(events)
    assert [event.data["output"] for event in events if event.type == "llm_end"] == [2]


@pytest.mark.parametrize("how", ["completed", "failed"])
async def test_steps_that_outlive_their_run_are_ended_with_it_and_heard_no_more(
    client: Client, make: Hire, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    worker, go, over = make(), asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def outlive(run: Run, is_open: asyncio.Event) -> None:
        async with run.task("outer") as outer, outer.tool("inner") as inner:
            is_open.set()
            await go.wait()
            inner.output(1)
            async with outer.llm(model="late") as late:
                late.usage(prompt_tokens=1, completion_tokens=1)
            inner.output(2)
        over.set()

    @worker.workflow("hasty")
    async def hasty(run: Run) -> str:
        is_open = asyncio.Event()
        left.append(asyncio.create_task(outlive(run, is_open)))
        await is_open.wait()
        if how == "failed":
            raise ValueError("in a hurry")
        return "done"

    worker.workflow("noop")(_nothing)
    async with working(worker):
        events = await told(client, "hasty")
        go.set()
        await until(over.is_set)
        await left[0]
        await told(client, "noop")
        assert await client.events(events[0].data["execution_id"]) == events
    workflow = "workflow_end" if how == "completed" else "workflow_error"
    assert kinds(events)[-4:] == ["tool_error", "task_error", workflow, f"execution_{how}"]
    assert [event.data["error"]["code"] for event in events[-4:-2]] == ["NOT_ENDED"] * 2
    assert_paired(events)
    assert "of hasty ended before steps of it did: tool, task" in caplog.text


async def test_a_step_whose_usage_is_no_json_ends_all_the_same(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("odd")
    async def odd(run: Run) -> None:
        async with run.llm(model="m") as call:
            call.usage(prompt_tokens=1, completion_tokens=1, total_cost=object())  # type: ignore[arg-type]

    async with working(worker):
        events = await told(client, "odd")
    assert_paired(events)
    assert kinds(events)[-3:] == ["llm_error", "workflow_error", "execution_failed"]
    assert events[-1].data["error"]["code"] == "INVALID"


# -- Redis comes and goes


async def test_a_blip_of_redis_kills_no_run_and_a_longer_absence_stops_it_in_time(
    client: Client,
    make: Hire,
    redis: Any,
) -> None:
    began: list[int] = []
    ended: list[float] = []
    async with proxy(redis.port) as middle:
        worker = make(redis_url=middle.url)

        @worker.workflow("steady")
        async def steady(run: Run) -> str:
            began.append(run.attempt)
            try:
                async with run.task("work"):
                    await asyncio.sleep(1.5 if run.attempt == 1 else 0.05)
            except asyncio.CancelledError:
                ended.append(asyncio.get_running_loop().time())
                raise
            return "done"

        async with working(worker):
            blipped = (await client.start("steady")).execution_id
            await until(lambda: began)
            for _ in range(4):
                await _pause(middle, 0.2)
            assert (await client.end(blipped)).type == "execution_completed"
            assert (began, ended) == ([1], [])

            away = (await client.start("steady", max_attempts=1)).execution_id
            await until(lambda: len(began) == 2)
            middle.pause()
            at = asyncio.get_running_loop().time()
            await until(lambda: ended)
            assert ended[0] - at < 1.0  # before the lease ended
            middle.go_on()
            # It was given back by the one that had it: the attempt does not count.
            assert (await client.end(away)).type == "execution_completed"
            assert began == [1, 1, 2]
            assert_paired(await client.events(away))


async def test_an_end_that_could_not_be_told_for_minutes_gives_the_run_back(
    client: Client,
    make: Hire,
    redis: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.producer.RETRY_SECONDS", 0.5)
    async with proxy(redis.port) as middle:
        worker, go = make(redis_url=middle.url), asyncio.Event()

        @worker.workflow("steady")
        async def steady(run: Run) -> int:
            await go.wait()
            return run.attempt

        async with working(worker):
            execution = (await client.start("steady", max_attempts=1)).execution_id
            await until(lambda: _says(client, execution, "workflow_start"))
            middle.pause()
            go.set()

            def is_given_up() -> bool:
                middle.cut()
                return "could not be told" in caplog.text

            await until(is_given_up)
            middle.go_on()
            middle.cut()
            end = await client.end(execution)
    assert (end.type, end.data["output"]) == ("execution_completed", 2)


async def test_a_worker_that_is_given_its_own_run_before_it_knows_to_have_given_it_back_keeps_it(
    client: Client,
    make: Hire,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, release, calls = make(), Queue.release, 0
    began: list[int] = []

    async def lose(queue: Queue, *words: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        await release(queue, *words, **more)
        if calls < 4:
            raise ConnectionError("the answer is lost")

    monkeypatch.setattr(Queue, "release", lose)

    @worker.workflow("flaky")
    async def flaky(run: Run) -> int:
        began.append(run.attempt)
        if run.attempt == 1:
            raise Retry(seconds=0)
        await asyncio.sleep(2.5)  # longer than a lease
        return run.attempt

    async with working(worker):
        assert (await told(client, "flaky"))[-1].data["output"] == 2
    assert (began, calls) == ([1, 2], 4)


async def _pause(middle: Proxy, seconds: float) -> None:
    middle.pause()
    await asyncio.sleep(seconds)
    middle.go_on()
    middle.cut()
    await asyncio.sleep(seconds)


async def test_without_redis_a_worker_does_not_begin(make: Hire) -> None:
    worker = make(redis_url="redis://127.0.0.1:1/0")
    worker.workflow("x")(_nothing)
    with pytest.raises(Unavailable):
        await worker.run()


async def _nothing(run: Run) -> None: ...


# -- the endpoint's workspace


async def test_a_worker_waits_for_its_endpoints_workspace_and_says_so_once(
    client: Client,
    make: Hire,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.runs.worker._LOOK_SECONDS", 0.02)
    worker = make(workspace_id=None)
    worker.workflow("noop")(_nothing)
    with caplog.at_level(logging.INFO, "trunkline"):
        async with working(worker):
            await until(lambda: "no workspace yet" in caplog.text)
            await asyncio.sleep(0.1)
            await client.broker.redis.hset(client.broker.keys.endpoint(ENDPOINT), "workspace", WORKSPACE)
            assert kinds(await told(client, "noop"))[-1] == "execution_completed"
    assert caplog.text.count("no workspace yet") == 1


async def test_a_worker_of_another_workspace_than_its_endpoints_does_not_begin(client: Client, make: Hire) -> None:
    await client.broker.redis.hset(client.broker.keys.endpoint(ENDPOINT), "workspace", WORKSPACE)
    worker = make(workspace_id="ws-other")
    worker.workflow("noop")(_nothing)
    with pytest.raises(Invalid, match=f"belongs to '{WORKSPACE}', not to 'ws-other'"):
        await worker.run()
    same = make(workspace_id=WORKSPACE)
    same.workflow("noop")(_nothing)
    async with working(same):
        assert kinds(await told(client, "noop"))[-1] == "execution_completed"


async def test_what_a_worker_was_not_given_it_takes_from_run(client: Client, redis_url: str, prefix: str) -> None:
    worker = Worker(endpoint=ENDPOINT, workspace_id=WORKSPACE)
    worker.workflow("noop")(_nothing)
    task = asyncio.create_task(worker.run(redis_url=redis_url, prefix=prefix, log_events=2))
    try:
        assert (await client.end((await client.start("noop")).execution_id)).type == "execution_completed"
        await until(lambda: _is_short(client))
    finally:
        worker.stop()
        await task


async def _is_short(client: Client) -> bool:
    return bool(await client.broker.redis.xlen(client.broker.keys.log(WORKSPACE)) == 2)


async def test_what_a_worker_was_given_goes_before_what_run_is(client: Client, make: Hire) -> None:
    worker = make()
    worker.workflow("noop")(_nothing)
    task = asyncio.create_task(worker.run(redis_url="redis://127.0.0.1:1/0", prefix="elsewhere"))
    try:
        assert (await client.end((await client.start("noop")).execution_id)).type == "execution_completed"
    finally:
        worker.stop()
        await task


async def test_a_worker_that_waits_for_its_workspace_can_be_stopped(make: Hire) -> None:
    worker = make(workspace_id=None)
    worker.workflow("noop")(_nothing)
    async with working(worker) as task:
        await asyncio.sleep(0.05)
        worker.stop()
        await asyncio.wait_for(task, 5)


# -- leaving


async def test_a_worker_that_is_stopped_finishes_what_it_can_and_hands_the_rest_back(
    client: Client,
    make: Hire,
) -> None:
    leaving, staying = make(), make()
    seen: list[tuple[str, int]] = []

    def register(worker: Worker, seconds: float) -> None:
        @worker.workflow("nap")
        async def nap(run: Run, short: bool) -> int:
            async with run.task("nap"):
                seen.append((run.id, run.attempt))
                await asyncio.sleep(0.2 if short else seconds)
            return run.attempt

    register(leaving, 60)
    register(staying, 0)
    short = (await client.start("nap", short=True, max_attempts=1)).execution_id
    long = (await client.start("nap", short=False, max_attempts=1)).execution_id
    task = asyncio.create_task(leaving.run(grace_seconds=0.6))
    await until(lambda: len(seen) == 2)
    leaving.stop()
    waiting = (await client.start("nap", short=True)).execution_id  # nothing new is taken
    await asyncio.wait_for(task, 5)
    assert (await client.end(short)).type == "execution_completed"
    assert await client.state(long) == "queued"
    assert await client.state(waiting) == "queued"
    async with working(staying):
        assert (await client.end(long)).data["output"] == 2
        assert (await client.end(waiting)).type == "execution_completed"
    events = await client.events(long)
    assert_paired(events)
    assert [event.data["error"]["code"] for event in events if "error" in event.data] == ["INTERRUPTED"] * 2


async def test_a_worker_that_is_cancelled_hands_back_what_it_has(client: Client, make: Hire) -> None:
    worker = make()

    @worker.workflow("nap")
    async def nap(run: Run) -> None:
        await asyncio.sleep(60)

    async with working(worker):
        execution = (await client.start("nap")).execution_id
        await until(lambda: _says(client, execution, "workflow_start"))
    assert await client.state(execution) == "queued"


async def test_a_workflow_that_swallows_its_cancellation_hears_of_the_next_reason(client: Client, make: Hire) -> None:
    worker = make()
    heard = 0

    @worker.workflow("stubborn")
    async def stubborn(run: Run) -> None:
        nonlocal heard
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard += 1
        await asyncio.sleep(0)

    async with working(worker):
        execution = (await client.start("stubborn", seconds=2.0)).execution_id
        await until(lambda: _says(client, execution, "workflow_start"))
        await client.runs.cancel(WORKSPACE, execution)
        await until(lambda: heard == 1)
        assert (await client.end(execution)).type == "execution_cancelled"  # the first reason, at the second
    assert heard == 2


async def test_a_beat_that_repeats_a_cancellation_does_not_disturb_a_finally(client: Client, make: Hire) -> None:
    worker = make()
    is_cleaned = False

    @worker.workflow("tidy")
    async def tidy(run: Run) -> None:
        nonlocal is_cleaned
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1.0)  # several beats
            is_cleaned = True

    async with working(worker):
        execution = (await client.start("tidy")).execution_id
        await until(lambda: _says(client, execution, "workflow_start"))
        await client.runs.cancel(WORKSPACE, execution)
        assert (await client.end(execution)).type == "execution_cancelled"
    assert is_cleaned


async def test_a_worker_leaves_a_workflow_that_does_not_end_and_names_it(
    client: Client, make: Hire, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.runs.shift.FAREWELL_SECONDS", 0.3)
    worker, end = make(), asyncio.Event()
    tasks: list[asyncio.Task[Any] | None] = []

    @worker.workflow("stubborn")
    async def stubborn(run: Run) -> None:
        tasks.append(asyncio.current_task())
        while not end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await end.wait()
        async with run.task("late"):
            pass

    async with working(worker) as working_:
        execution = (await client.start("stubborn")).execution_id
        await until(lambda: tasks)
        worker.stop()
        await asyncio.wait_for(working_, 5)
        end.set()
        await until(lambda: tasks[0] is not None and tasks[0].done())
    [error] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert error == f"workflow stubborn does not end when it is stopped: run {execution}"
    assert kinds(await client.events(execution)) == ["execution_started", "workflow_start"]


# -- what cannot be


async def test_a_function_that_cannot_be_a_workflow_is_refused_when_it_is_given(make: Hire) -> None:
    def plain(run: Run) -> None: ...
    async def nothing() -> None: ...
    async def positional(run: Run, first: int, *rest: int) -> None: ...
    async def ambiguous(run: Run, first: Candidate | dict[str, int]) -> None: ...
    async def unknown(run: Run, first: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
    async def union(run: Run, first: Crm | dict[str, int] = None) -> None: ...  # type: ignore[assignment]
    async def forgot(query: str, limit: int) -> None: ...
    async def keyword(*, run: Run) -> None: ...

    for function in (nothing, forgot, keyword):
        with pytest.raises(Invalid, match="expected the run first, as ") as invalid:
            make().workflow("x")(function)
        assert "\n" not in str(invalid.value)
    with pytest.raises(Invalid, match=r'expected a name: @worker.workflow\("search"\)'):
        make().workflow(_nothing)  # type: ignore[arg-type]
    for function in (plain, positional, ambiguous, unknown, union):
        with pytest.raises(Invalid, match=function.__name__):
            make().workflow("x")(function)
    worker = make()
    worker.workflow("x")(_nothing)
    with pytest.raises(Invalid, match="already"):
        worker.workflow("x")
    with pytest.raises(Invalid):
        worker.workflow("")


class Crm:
    """What no JSON is read as."""


class Deep(msgspec.Struct):
    crm: list[Crm]
    deeper: "Deep | None" = None


@pytest.mark.parametrize(
    "hint",
    [Crm, list[Crm], dict[str, Crm], Crm | None, Deep, tuple[int, Deep], list["Deep | None"], complex, type, range,
     Iterator[int], msgspec.Raw],
    ids=str,
)  # fmt: skip
async def test_an_annotation_that_no_json_is_read_as_is_refused_when_the_workflow_is_given(
    make: Hire, hint: Any
) -> None:
    async def required(run: Run, first: int, crm: hint) -> None: ...
    async def optional(run: Run, first: int, crm: hint = None) -> None: ...

    for function in (required, optional):
        with pytest.raises(Invalid) as invalid:
            make().workflow("x")(function)
        assert invalid.value.path.endswith(f"{function.__name__}.crm")


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: float
    colour: Colour
    next: "Point | None" = None


class Nametag(TypedDict):
    name: str


@pytest.mark.parametrize(
    ("hint", "given", "got"),
    [
        (datetime.date, "2026-11-21", datetime.date(2026, 11, 21)),
        (uuid.UUID, "272e9e73-fe36-4ea1-acf6-4ea08d21aa0c", uuid.UUID("272e9e73-fe36-4ea1-acf6-4ea08d21aa0c")),
        (decimal.Decimal, "1.50", decimal.Decimal("1.50")),
        (Literal["a", 1], 1, 1),
        (
            Point,
            {"x": 1, "colour": "red", "next": {"x": 2, "colour": "red"}},
            Point(1, Colour.RED, Point(2, Colour.RED)),
        ),
        (list["Candidate"] | None, [{"name": "Ada"}], [Candidate("Ada")]),
        (Nametag, {"name": "Ada"}, {"name": "Ada"}),
        (Annotated[int, msgspec.Meta(gt=0)], 1, 1),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Mapping[str, int], {"a": 1}, {"a": 1}),
        (bytes, "YQ==", b"a"),
        (object, {"a": [1]}, {"a": [1]}),
    ],
    ids=str,
)
def test_annotations_that_json_is_read_as(hint: Any, given: Any, got: Any) -> None:
    async def required(run: Run, it: hint) -> None: ...
    async def optional(run: Run, it: hint = None) -> None: ...

    for function in (required, optional):
        assert Parameters(function).check({"it": given}) == {"it": got}


async def test_a_worker_that_cannot_be_is_refused(make: Hire) -> None:
    for wrong in (
        {"concurrency": 0},
        {"concurrency": "3"},
        {"endpoint": "a b"},
        {"workspace_id": "{"},
        {"prefix": ""},
        {"redis_url": "x://"},
    ):
        with pytest.raises(Invalid):
            make(**wrong)
    with pytest.raises(Invalid, match="at least one workflow"):
        await make().run()


# -- trunkline worker


class Ended(NamedTuple):
    status: int
    out: str


@pytest.fixture
def shell(tmp_path: Path, redis_url: str, prefix: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`trunkline worker` in a directory with a module `mine`."""
    processes: list[subprocess.Popen[str]] = []
    (tmp_path / "mine.py").write_text(
        f"""
import asyncio, time
from broker import Run, Worker
worker = Worker({redis_url!r}, endpoint={ENDPOINT!r}, workspace_id={WORKSPACE!r}, prefix={prefix!r})
nothing = None

@worker.workflow("nap")
async def nap(run: Run, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"

bare = Worker(endpoint={ENDPOINT!r}, workspace_id={WORKSPACE!r})
bare.workflow("nap")(nap)

@bare.workflow("stubborn")
async def stubborn(run: Run) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@bare.workflow("block")
async def block(run: Run) -> None:
    time.sleep(60)
"""
    )
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")

    def start(where: str, *flags: str, **settings: Any) -> subprocess.Popen[str]:
        root = str(Path(__file__).resolve().parents[1])
        words = {f"TRUNKLINE_{name.upper()}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "worker", where, *flags], cwd=tmp_path, text=True,
            env=os.environ | words | {"PYTHONPATH": root}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


async def test_trunkline_worker_works_and_ends_with_status_0_when_it_is_told_to(
    client: Client,
    shell: Callable[..., subprocess.Popen[str]],
) -> None:
    process = shell("mine:worker", drain_seconds=1.5)
    done = (await client.start("nap", seconds_=0)).execution_id
    assert (await client.end(done)).data["error"]["code"] == "INVALID_PARAMETERS"
    runs = [
        (await client.runs.submit(
            WORKSPACE, ENDPOINT, "nap", {"seconds": seconds}, {}, None, seconds=60, max_attempts=1
        )).execution_id
        for seconds in (1, 60)
    ]  # fmt: skip
    for execution in runs:
        await until(lambda execution=execution: _says(client, execution, "workflow_start"))
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 15) == 0
    assert [await client.state(execution) for execution in runs] == ["completed", "queued"]


async def test_trunkline_worker_gives_its_worker_the_settings_that_its_module_does_not(
    client: Client,
    shell: Callable[..., subprocess.Popen[str]],
    redis_url: str,
    prefix: str,
) -> None:
    process = shell("mine:bare", "--prefix", prefix, redis_url=redis_url, prefix="another", log_events=2)
    execution = await _nap(client, 0)
    assert (await client.end(execution, 20)).type == "execution_completed"
    await until(lambda: _is_short(client))
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, 15) == 0


@pytest.mark.parametrize(
    ("name", "times", "least"), [("stubborn", 1, 5), ("stubborn", 2, 0), ("block", 1, 5), ("block", 2, 0)]
)
async def test_trunkline_worker_leaves_a_workflow_that_does_not_end(
    client: Client,
    shell: Callable[..., subprocess.Popen[str]],
    name: str,
    times: int,
    least: float,
) -> None:
    settings = {"redis_url": client.broker.address.url, "prefix": client.broker.keys.prefix}
    process = shell("mine:bare", **settings, drain_seconds=0, log_format="text")
    execution = (await client.start(name)).execution_id
    await until(lambda: _is_held(client, execution), 20)
    if name == "stubborn":
        await until(lambda: _says(client, execution, "workflow_start"))
    at = asyncio.get_running_loop().time()
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
    out, _ = await asyncio.to_thread(process.communicate, timeout=15)
    assert process.returncode == 1
    assert least <= asyncio.get_running_loop().time() - at < (7.5 if least else 2)
    *before, last = out.splitlines()
    assert "the worker leaves at once" in last
    if (name, times) == ("stubborn", 1):
        assert f"workflow stubborn does not end when it is stopped: run {execution}" in before[-1]


async def _is_held(client: Client, execution: str) -> bool:
    return await client.state(execution) == "running"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("mine", "expected module:worker"),
        ("./mine:worker", "expected a module's name, as mine:worker, got './mine:worker'"),
        (".mine:worker", "expected a module's name, as mine:worker, got"),
        ("mine.py:worker", "expected a module's name, as mine:worker, got"),
        ("lib/mine.py:worker", "expected a module's name, as lib.mine:worker, got"),
        ("absent:worker", "no module 'absent'"),
        ("mine:absent", "no Worker 'absent'"),
        ("mine:nothing", "no Worker 'nothing'"),
    ],
)
def test_trunkline_worker_says_in_one_line_what_it_cannot_find(
    shell: Callable[..., subprocess.Popen[str]], where: str, words: str
) -> None:
    out, _ = shell(where).communicate(timeout=20)
    [line] = out.splitlines()
    assert line.startswith("trunkline: worker: ")
    assert words in line


def test_what_a_workers_own_module_lacks_is_told_whole(shell: Callable[..., subprocess.Popen[str]]) -> None:
    process = shell("broken:worker")
    out, _ = process.communicate(timeout=20)
    assert "nowhere_to_be_found" in out
    assert "broken.py" in out
    assert process.returncode == 1
