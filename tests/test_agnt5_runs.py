"""AGNT5's messages over a real socket: what starts a run, what does not and how that is told, and what ends one.

The shapes of events are in test_agnt5_events.py, coming back in test_agnt5_resume.py.
"""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from broker import Runs
from broker.runs.submitter import MAX_QUEUED

from . import running
from .agnt5 import GONE, HALF, WHOLE, Message, Shop, error, execution_of, opened, refused, types
from .support import Node, until
from .wire import seed
from .workflows import ENDPOINT, WORKSPACE

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]


def seed_message() -> Message:
    """The run message of the document, "Example Message"."""
    found = re.search(r"Example Message\njson(\{.*?\n\})\n", "\n".join(seed.text("002")), re.DOTALL)
    assert found
    message: Message = json.loads(found[1])
    return message


# --- What starts a run ---


async def test_the_documents_own_message_starts_a_run_and_its_connection_id_comes_back(shop: Shop) -> None:
    worker, message = shop.worker(), seed_message()

    @worker.workflow("search-candidates")
    async def search(run: Any, user_query: str, organization_id: str, filters: dict[str, Any]) -> list[str]:
        return [user_query, organization_id, json.dumps(filters)]

    async with shop.working(worker), shop.client() as client:
        await client.send(message)
        completed = await client.end()
    assert types(client.messages) == ["execution_started", "workflow_start", "workflow_end", "execution_completed"]
    assert client.messages[0]["data"]["details"]["connection_id"] == "ws_c2GDFfT7bywQZW4He6CNFw"
    words = message["parameters"]
    assert completed["data"]["details"]["output"] == [words["user_query"], words["organization_id"], "{}"]
    assert len({execution_of(message) for message in client.messages}) == 1


async def test_a_name_alone_is_enough(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        await client.run("echo")
        completed = await client.end()
        assert completed["data"]["details"]["output"] == {"parameters": {}, "metadata": {}, "connection_id": None}
        assert "connection_id" not in client.messages[0]["data"]["details"]


async def test_what_a_client_gives_reaches_the_workflow_as_it_is(shop: Shop) -> None:
    parameters = {"text": 'Käse 🧀 \u2028 "\\', "list": [None, True, 1.5, -7, 2**53], "deep": {"a": {"b": []}}}
    metadata = {"trace": "t-1", "tags": ["x"]}
    async with shop.crew(), shop.client() as client:
        await client.run("echo", parameters, metadata=metadata, connection_id="ws_1")
        completed = await client.end()
    given = {"parameters": parameters, "metadata": metadata, "connection_id": "ws_1"}
    assert completed["data"]["details"]["output"] == given


async def test_a_type_of_null_is_a_run_message(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        await client.run("noop", type=None)
        assert (await client.end())["type"] == "execution_completed"


async def test_a_run_waits_for_a_worker_and_nothing_is_said_before(shop: Shop) -> None:
    async with shop.client() as client:
        await client.run("noop")
        assert await client.synchronise() == []
        async with shop.crew():
            assert (await client.end())["type"] == "execution_completed"
        assert types(client.messages)[:2] == ["pong", "execution_started"]


async def test_many_runs_on_one_connection_each_keep_their_order(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client:
        for _ in range(9):
            await client.run("wait")
        await until(lambda: len(crew.begun) == 9)
        crew.go.set()
        for _ in range(9):
            assert (await client.end())["type"] == "execution_completed"
    for execution in crew.begun:
        assert types(client.of(execution)) == WHOLE
    assert len(client.messages) == 9 * len(WHOLE)


# --- What starts none ---

MALFORMED: list[tuple[str, str]] = [
    ("hello", ""),
    ("", ""),
    ("[]", ""),
    ('"noop"', ""),
    ("null", ""),
    ("{", ""),
    ("{}", "name"),
    ('{"name":null}', "name"),
    ('{"name":5}', "name"),
    ('{"name":""}', "name"),
    ('{"name":"a\\nb"}', "name"),
    (json.dumps({"name": "x" * 300}), "name"),
    ('{"name":"noop","parameters":[]}', "parameters"),
    ('{"name":"noop","parameters":"x"}', "parameters"),
    ('{"name":"noop","metadata":5}', "metadata"),
    ('{"name":"noop","connection_id":5}', "connection_id"),
    ('{"name":"noop","connection_id":""}', "connection_id"),
    (json.dumps({"name": "noop", "connection_id": "x" * 300}), "connection_id"),
    ('{"type":"dance"}', "type"),
    ('{"type":"dance","name":"noop"}', "type"),
    ('{"type":5,"name":"noop"}', "type"),
    ('{"type":"cancel"}', "execution_id"),
    ('{"type":"cancel","execution_id":5}', "execution_id"),
    ('{"type":"resume"}', "connection_id"),
    ('{"type":"resume","connection_id":5}', "connection_id"),
    ('{"type":"resume","connection_id":""}', "connection_id"),
    ('{"type":"resume","connection_id":"ws_1","since":5}', "since"),
    ("[" * 20_000, ""),
    ('{"name":"noop","parameters":' + '{"a":' * 9000 + "1" + "}" * 9001, ""),
]


@pytest.mark.parametrize(("text", "path"), MALFORMED, ids=[text[:50] for text, _ in MALFORMED])
async def test_a_malformed_message_is_told_with_its_path_and_the_connection_stays(
    shop: Shop, text: str, path: str
) -> None:
    async with shop.client() as client:
        answers = await client.ask(text)
        assert refused(answers) == ["INVALID_MESSAGE"]
        assert path in error(answers[0])["message"]
        assert await client.synchronise() == []


STRANGE = [
    '{"name":"echo","parameters":{"x":"\\ud800"}}',
    '{"name":"echo","parameters":{"x":1e400}}',
    '{"name":"echo","parameters":{"x":' + "9" * 400 + "}}",
    '{"name":"echo","parameters":{"x":NaN}}',
    '{"name":"echo","parameters":{"\\u0000":"\\u0000"}}',
    '{"name":"echo","parameters":{"a":1,"a":2}}',
    '{"name":"echo","name":"noop"}',
    '{"name":"echo","parameters":' + '{"a":' * 200 + "1" + "}" * 201,
    '{"name":"echo","connection_id":"\\ud83e\\uddc0 {x}:y"}',
    '{"name":"noop","metadata":{"idempotency_key":{"a":[1]}},"connection_id":"ws_1"}',
    '\ufeff{"name":"noop"}',
    ' \n{"name":"noop"}\n ',
]


@pytest.mark.parametrize("text", STRANGE, ids=[text[:60] for text in STRANGE])
async def test_a_strange_message_is_refused_or_runs_to_an_end_and_harms_nobody(shop: Shop, text: str) -> None:
    async with shop.crew(), shop.client() as client:
        await client.send(text)
        answer = await client.end()
        if execution_of(answer) is None:
            assert refused([answer]) == ["INVALID_MESSAGE"]
        assert await client.synchronise() == []
        await client.run("noop")
        assert (await client.end())["type"] == "execution_completed"


async def test_a_workflow_that_no_worker_serves_is_unknown(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        await client.run("somersault", connection_id="ws_1")
        answer = await client.receive()
        assert refused([answer]) == ["UNKNOWN_WORKFLOW"]
        assert answer["data"]["details"].keys() == {"error", "name", "connection_id"}
        assert answer["data"]["details"]["name"] == "somersault"
        assert answer["data"]["details"]["connection_id"] == "ws_1"
        assert "event_id" not in answer
        await client.run("noop")
        assert (await client.end())["type"] == "execution_completed"


async def test_too_many_runs_that_wait_are_unavailable(shop: Shop) -> None:
    queue = shop.broker.keys.runs(shop.workspace, shop.endpoint)
    async with shop.client() as client:
        await client.run("noop")  # makes the queue
        assert await client.synchronise() == []
        async with shop.broker.redis.pipeline(transaction=False) as pipe:
            for _ in range(MAX_QUEUED):
                pipe.xadd(queue, {"x": GONE})
            await pipe.execute()
        await client.run("noop")
        answer = await client.receive()
        assert refused([answer]) == ["UNAVAILABLE"]
        assert answer["data"]["details"]["name"] == "noop"
        await shop.broker.redis.delete(queue)


async def test_wrong_parameters_fail_the_run_with_their_path_and_leave_the_worker_unharmed(shop: Shop) -> None:
    async with shop.crew(), shop.client() as client:
        execution = await client.start("noop", {"sugar": 2})
        failed = await client.end(execution)
        assert (failed["type"], error(failed)["code"]) == ("execution_failed", "INVALID_PARAMETERS")
        assert "sugar" in error(failed)["message"]
        assert failed["event_id"]
        await client.run("noop")
        assert (await client.end())["type"] == "execution_completed"


# --- The same run asked for again ---

ONCE: Message = {"metadata": {"idempotency_key": "order-1"}, "connection_id": "ws_1"}


async def test_a_run_that_is_asked_for_again_on_its_connection_is_silent(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client:
        execution = await client.start("wait", **ONCE)
        for _ in range(3):
            await client.run("wait", **ONCE)
        await client.until("task_end")
        assert await client.synchronise() == []
        crew.go.set()
        await client.end(execution)
        await client.run("wait", **ONCE)  # it has ended
        assert await client.synchronise() == []
    assert crew.begun == [execution]
    assert types(client.of(execution)) == WHOLE


async def test_asked_for_again_on_another_connection_it_is_told_from_its_beginning_and_goes_on(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client(1) as client:
        async with shop.client() as lost:
            execution = await lost.start("wait", **ONCE)
            await lost.until("task_end")
            lost.vanish()
        await client.run("wait", **ONCE)
        await client.until("task_end")
        assert types(client.messages) == HALF
        crew.go.set()
        await client.end(execution)
        assert types(client.of(execution)) == WHOLE
        async with shop.client() as late:
            await late.run("wait", **ONCE)
            await late.end(execution)
            assert await late.synchronise() == []
            assert late.of(execution) == client.of(execution)
    assert crew.begun == [execution]


async def test_asked_for_again_at_once_from_many_connections_it_runs_once(shop: Shop) -> None:
    async def ask(node: int) -> tuple[str | None, list[str]]:
        async with shop.client(node) as client:
            await client.run("noop", **ONCE)
            execution = execution_of(await client.end())
            await client.synchronise()
            return execution, [kind for kind in types(client.messages) if kind != "pong"]

    async with shop.crew():
        answers = await asyncio.gather(*(ask(number % 2) for number in range(10)))
    assert len({execution for execution, _ in answers}) == 1
    for _, heard in answers:
        assert heard == ["execution_started", "workflow_start", "workflow_end", "execution_completed"]


async def test_another_connection_id_or_another_key_is_another_run(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client, opened(shop.nodes, workspace=shop.workspace) as other:
        others: list[Message] = [
            ONCE | {"connection_id": "ws_2"},
            ONCE | {"metadata": {"idempotency_key": "order-2"}},
            {"metadata": ONCE["metadata"]},
            {"metadata": ONCE["metadata"]},
            {"connection_id": "ws_1"},
        ]
        executions = [await client.start("wait", **words) for words in (ONCE, *others)]
        assert sorted(crew.begun) == sorted(set(executions))
        async with other.crew(), other.client() as elsewhere:
            assert await elsewhere.start("wait", **ONCE) not in executions


# --- Cancelling ---


async def test_cancel_ends_a_run_its_finally_runs_and_its_steps_are_told(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client:
        execution = await client.start("wait", connection_id="ws_1")
        await client.until("task_end")
        await client.cancel(execution)
        cancelled = await client.end(execution)
        assert cancelled["type"] == "execution_cancelled"
        assert (crew.left, crew.passed) == ([execution], [])
        assert types(client.messages) == [*HALF, "workflow_error", "execution_cancelled"]
        assert error(client.messages[-2])["code"] == "CANCELLED"
        assert await client.synchronise() == []


async def test_cancel_ends_a_run_that_waits_for_a_worker(shop: Shop) -> None:
    async with shop.client() as client:
        await client.run("wait", connection_id="ws_1", metadata={"idempotency_key": "k"})
        await client.synchronise()
        (waiting,) = await Runs(shop.broker).of_connection(shop.workspace, shop.endpoint, "ws_1")
        await client.cancel(waiting.id)
        assert (await client.end(waiting.id))["type"] == "execution_cancelled"
        async with shop.crew() as crew:
            await client.start("noop")
            assert crew.begun == []
        assert types(client.of(waiting.id)) == ["execution_cancelled"]


async def test_cancel_of_a_run_that_has_ended_is_silent(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client:
        done = await client.start("noop")
        await client.end(done)
        stopped = await client.start("wait")
        await until(lambda: crew.begun)
        await client.cancel(stopped)
        await client.cancel(stopped)
        await client.end(stopped)
        for execution in (done, stopped, done):
            assert await client.ask({"type": "cancel", "execution_id": execution}) == []


async def test_cancel_of_any_other_run_is_invalid_and_touches_nothing(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as owner, shop.client(1) as stranger:
        execution = await owner.start("wait", connection_id="ws_1")
        for _ in range(6):  # more than ten in a row: it may be an honest mistake
            for wrong in (execution, GONE, "no-such-run"):
                assert refused(await stranger.ask({"type": "cancel", "execution_id": wrong})) == ["INVALID_MESSAGE"]
        crew.go.set()
        assert (await owner.end(execution))["type"] == "execution_completed"


@pytest.fixture
def hire(redis_url: str, prefix: str) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a process with a worker of `tests.workflows`; it ends with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def hire() -> subprocess.Popen[bytes]:
        environment = os.environ | {"REDIS_URL": redis_url, "PREFIX": prefix}
        processes.append(subprocess.Popen([sys.executable, "-m", "tests.workflows"], env=environment))
        return processes[-1]

    yield hire
    for process in processes:
        process.kill()
        process.wait(10)


async def test_cancel_stops_a_coroutine_in_another_process_within_a_second(
    start_node: Callable[..., Node], hire: Callable[[], subprocess.Popen[bytes]]
) -> None:
    hire()
    async with opened([start_node()], ENDPOINT, WORKSPACE) as shop, shop.client() as client:
        execution = await client.start("sleep")
        await client.until("task_start")
        asked = monotonic()
        await client.cancel(execution)
        cancelled = await client.end(execution)
        assert cancelled["type"] == "execution_cancelled"
        assert monotonic() - asked < 1
        journal = await running.Client(shop.broker).journal()
        assert [(line[0], line[1]) for line in journal] == [("begin", execution), ("end", execution)]
        assert types(client.of(execution)) == [
            "execution_started", "workflow_start", "task_start", "task_error", "workflow_error", "execution_cancelled",
        ]  # fmt: skip


async def test_a_worker_that_dies_has_its_run_begun_again_elsewhere_and_its_client_hears_of_it(
    start_node: Callable[..., Node], hire: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """These workers have leases of a second; that fifteen are enough for real ones is shown in test_runs.py."""
    first = hire()
    async with opened([start_node()], ENDPOINT, WORKSPACE) as shop, shop.client() as client:
        execution = await client.start("sleep", {"seconds": 0.5})
        await client.until("task_start")
        first.kill()
        first.wait(10)
        hire()
        completed = await client.end(execution, 15)
    assert completed["type"] == "execution_completed"
    again = [message for message in client.messages if message["data"]["details"].get("attempt")]
    assert [(message["type"], message["data"]["details"]["attempt"]) for message in again][:2] == [
        ("execution_started", 2),
        ("workflow_start", 2),
    ]
    assert sum(kind == "execution_completed" for kind in types(client.of(execution))) == 1


# --- What is no run ---


async def test_a_ping_is_answered_with_a_pong(shop: Shop) -> None:
    async with shop.client() as client:
        for _ in range(3):
            await client.send({"type": "ping"})
            pong = await client.receive()
            assert pong["type"] == "pong"
            assert pong.keys() <= {"type", "event_id"}


async def test_runs_go_on_when_their_client_leaves(shop: Shop) -> None:
    async with shop.crew() as crew:
        async with shop.client() as client:
            execution = await client.start("wait")
        crew.go.set()
        await shop.has_said(execution, "execution_completed")


async def test_connections_see_their_own_executions_alone(shop: Shop) -> None:
    """Two with names, two without, on both nodes, of one endpoint; one of another endpoint in the workspace."""
    async with opened(shop.nodes, workspace=shop.workspace) as other, shop.crew() as crew, other.crew() as others:
        crew.go.set()
        others.go.set()
        async with shop.client() as a, shop.client(1) as b, shop.client() as c, shop.client() as d, other.client() as e:
            clients = [(a, "ws_a"), (b, "ws_b"), (c, None), (d, None), (e, "ws_a")]
            mine: list[str] = []
            for client, name in clients:
                fields: Message = {"connection_id": name} if name else {}
                mine.append(await client.start("wait", **fields))
            for client, _ in clients:
                await client.end()
            for (client, _), execution in zip(clients, mine, strict=True):
                assert await client.synchronise() == []
                assert {execution_of(message) for message in client.messages if message["type"] != "pong"} == {
                    execution
                }


async def test_the_same_names_in_another_workspace_are_nothing_to_us(shop: Shop) -> None:
    name = f"ws_{secrets.token_hex(4)}"
    async with opened(shop.nodes) as other, shop.crew() as crew, other.crew() as others:
        async with shop.client() as client, other.client() as stranger:
            execution = await client.start("wait", connection_id=name)
            assert refused(await stranger.ask({"type": "cancel", "execution_id": execution})) == ["INVALID_MESSAGE"]
            assert await stranger.ask({"type": "resume", "connection_id": name}) == []
            crew.go.set()
            await client.end(execution)
            assert await stranger.synchronise() == []
        assert others.begun == []
