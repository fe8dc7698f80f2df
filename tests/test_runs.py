"""Runs: started once, held by one worker at a time, ended once, whatever dies on the way."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from broker import Broker, Event, Invalid, Unavailable
from broker.errors import Lost, QueueFull, UnknownWorkflow
from broker.events import pack
from broker.patience import pause
from broker.positions import START
from broker.producer import Fence
from broker.runs import execution_id
from broker.runs.beats import Beats
from broker.runs.hold import Lease, Reason
from broker.runs.queue import Queue, Ready
from broker.script import Script

from . import workflows
from .running import ENDS, Client, connected
from .support import private_redis, until
from .workflows import ENDPOINT, WORKSPACE

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    workflows.quicken(monkeypatch.setattr)


@pytest.fixture
async def client(redis_url: str, prefix: str) -> AsyncIterator[Client]:
    async with connected(redis_url, prefix) as client:
        yield client


class Crew:
    """Worker processes."""

    def __init__(self, redis_url: str, prefix: str) -> None:
        self.redis_url, self.prefix = redis_url, prefix
        self.processes: list[subprocess.Popen[bytes]] = []

    def hire(self, **more: Any) -> subprocess.Popen[bytes]:
        words = {"REDIS_URL": self.redis_url, "PREFIX": self.prefix} | {key: str(value) for key, value in more.items()}
        process = subprocess.Popen([sys.executable, "-m", "tests.workflows"], env=os.environ | words)
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL. Whoever looks whether two are at one run knows that this one is at none."""
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def dismiss(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)


@pytest.fixture
def crew(redis_url: str, prefix: str) -> Iterator[Crew]:
    crew = Crew(redis_url, prefix)
    yield crew
    crew.dismiss()


async def kill(crew: Crew, client: Client, process: subprocess.Popen[bytes]) -> None:
    crew.kill(process)
    await client.broker.redis.sadd(f"{crew.prefix}-killed", process.pid)


# -- starting


async def test_a_run_is_started_and_its_connection_remembers_it(client: Client) -> None:
    first, second = await client.start(), await client.start("other")
    assert first.is_new
    assert first.execution_id.startswith("exec_")
    assert first.execution_id != second.execution_id
    found = await client.runs.of_connection(WORKSPACE, ENDPOINT, "ws_1")
    assert [tuple(one) for one in found] == [
        (first.execution_id, "sleep", "queued", first.since, first.deadline),
        (second.execution_id, "other", "queued", second.since, second.deadline),
    ]
    assert await client.runs.of_connection(WORKSPACE, ENDPOINT, "ws_2") == []
    assert await client.runs.of_connection(WORKSPACE, "elsewhere", "ws_1") == []


async def test_a_connections_runs_keep_the_order_in_which_they_were_started(client: Client) -> None:
    started = [(await client.start()).execution_id for _ in range(50)]
    assert [one.id for one in await client.runs.of_connection(WORKSPACE, ENDPOINT, "ws_1")] == started


async def test_the_same_key_of_the_same_connection_starts_nothing_twice(client: Client) -> None:
    first = await client.start(key="k1")
    again = await asyncio.gather(*(client.start(key="k1") for _ in range(20)))
    assert set(again) == {first._replace(is_new=False)}
    others = [
        await client.start(key="k2"),
        await client.start(key="k1", connection="ws_2"),
        await client.start(key="k1", connection=None),
        await client.start(key="k1", connection=None),
        await client.start(key="k1", endpoint="elsewhere"),
        await client.start(key="k1", workspace="ws-other"),
        await client.start(),
    ]
    assert all(other.is_new for other in others)
    assert await client.broker.redis.xlen(client.broker.keys.runs(WORKSPACE, ENDPOINT)) == 6


async def test_an_answer_that_was_lost_is_asked_for_again_and_the_run_is_still_new(client: Client) -> None:
    run, calls = Script.run, 0

    async def lose(script: Script, keys: Any, arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        answer = await run(script, keys, arguments)
        if calls == 1:
            raise ConnectionError("lost")
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Script, "run", lose)
        assert (await client.start()).is_new
    assert calls == 2
    assert await client.broker.redis.xlen(client.broker.keys.runs(WORKSPACE, ENDPOINT)) == 1


async def test_many_who_start_a_run_under_one_key_at_once_start_it_once(client: Client) -> None:
    started = await asyncio.gather(*(client.start(key="k1") for _ in range(20)))
    assert sum(one.is_new for one in started) == 1
    assert len({one._replace(is_new=False) for one in started}) == 1
    assert await client.broker.redis.xlen(client.broker.keys.runs(WORKSPACE, ENDPOINT)) == 1


@pytest.mark.parametrize("key", ["k1", 5, 1.5, True, ["a", 1], {"a": None}, ""], ids=repr)
async def test_a_run_has_the_id_that_was_chosen_for_it_before(client: Client, key: Any) -> None:
    chosen = execution_id(ENDPOINT, "ws_1", key)
    assert (await client.start(key=key, execution=chosen)).execution_id == chosen
    again = await client.start(key=key)
    assert (again.execution_id, again.is_new) == (chosen, False)


async def test_without_a_key_or_a_connection_the_id_that_is_chosen_is_a_new_one(client: Client) -> None:
    chosen = [execution_id(ENDPOINT, connection, key) for connection, key in (("ws_1", None), ("", "k1"), ("", "k1"))]
    assert len(set(chosen)) == 3
    for one in chosen:
        assert (await client.start(execution=one)).execution_id == one
        assert not (await client.start(execution=one)).is_new


def test_a_key_that_is_no_json_is_refused() -> None:
    with pytest.raises(Invalid) as invalid:
        execution_id(ENDPOINT, "ws_1", object())
    assert invalid.value.path == "metadata.idempotency_key"


async def test_a_run_remembers_what_was_said_before_it_and_when_it_is_to_end(client: Client) -> None:
    first = await client.start(key="k1", seconds=20.0)
    assert first.since == START
    noise = Event(type="agent.online", workspace_id=WORKSPACE, agent_id="a1", data={})
    position = await client.broker.publish(noise)
    second = await client.start(seconds=30.0)
    assert second.since == position
    assert await client.start(key="k1", seconds=60.0) == first._replace(is_new=False)
    seconds, microseconds = await client.broker.redis.time()
    assert seconds + microseconds / 1e6 + 18 < first.deadline < second.deadline - 9


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("chance", {}),
        ("sleep", {"seconds_": 2}),
        ("sleep", {"seconds_": 1.0}),
        ("sleep", {"filters": {"a": 1, "c": 2}}),
    ],
    ids=["name", "value", "number", "member"],
)
async def test_a_key_that_was_used_for_another_run_is_refused(client: Client, name: str, more: dict[str, Any]) -> None:
    words: dict[str, Any] = {"seconds_": 1, "filters": {"a": 1, "b": [{"c": 1, "d": 2}]}}
    first = await client.start(key="k1", **words)
    other_order = {"filters": {"b": [{"d": 2, "c": 1}], "a": 1}, "seconds_": 1}
    assert await client.start(key="k1", **other_order) == first._replace(is_new=False)
    with pytest.raises(Invalid, match="was used for another run") as invalid:
        await client.start(name, key="k1", **words | more)
    assert invalid.value.path == "metadata.idempotency_key"
    await client.runs.cancel(WORKSPACE, first.execution_id)  # its end forgets nothing of this
    assert await client.start(key="k1", **words) == first._replace(is_new=False)
    with pytest.raises(Invalid):
        await client.start(name, key="k1", **words | more)
    assert len(await client.runs.of_connection(WORKSPACE, ENDPOINT, "ws_1")) == 1


async def test_other_metadata_under_one_key_are_another_run(client: Client) -> None:
    async def start(**metadata: Any) -> Any:
        said = {"idempotency_key": "k1"} | metadata
        return await client.runs.submit(WORKSPACE, ENDPOINT, "sleep", {}, said, "ws_1", seconds=60, max_attempts=3)

    assert (await start(user="u1")).is_new
    assert not (await start(user="u1")).is_new
    with pytest.raises(Invalid, match="another run"):
        await start(user="u2")


async def test_a_full_queue_refuses_and_starts_nothing(client: Client) -> None:
    small = Client(client.broker, max_queued=2)
    await small.start()
    kept = await small.start(key="k1")
    with pytest.raises(QueueFull):
        await small.start()
    assert await small.start(key="k1") == kept._replace(is_new=False)
    assert len(await small.runs.of_connection(WORKSPACE, ENDPOINT, "ws_1")) == 2


async def test_a_name_that_no_live_worker_serves_is_refused_but_without_workers_all_wait(client: Client) -> None:
    await client.start("anything")
    await Queue(client.broker.redis, client.broker.keys, WORKSPACE, ENDPOINT).beat(["sleep", "chance"], (), ())
    with pytest.raises(UnknownWorkflow):
        await client.start("anything")
    assert (await client.start("chance")).is_new
    # Its worker has died: what it served is not remembered for long.
    await until(lambda: _starts(client, "anything"))


async def test_what_was_served_until_a_moment_ago_is_accepted_though_others_live(client: Client, queue: Queue) -> None:
    other = Queue(client.broker.redis, client.broker.keys, WORKSPACE, ENDPOINT)
    await queue.beat(["sleep"], (), ())

    async def is_away() -> bool:
        await other.beat(["chance"], (), ())
        seconds, microseconds = await client.broker.redis.time()
        until_ms = await client.broker.redis.zscore(client.broker.keys.served(WORKSPACE, ENDPOINT), "sleep")
        return bool(until_ms < seconds * 1000 + microseconds / 1000)

    await until(is_away)
    started = await client.start("sleep")
    assert await client.broker.redis.hget(client.broker.keys.run(WORKSPACE, started.execution_id), "served") == b"1"

    async def is_refused() -> bool:
        await other.beat(["chance"], (), ())
        return not await _starts(client, "sleep")

    await until(is_refused)


async def _starts(client: Client, name: str) -> bool:
    try:
        return (await client.start(name)).is_new
    except UnknownWorkflow:
        return False


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"workspace": "a{b"}, "workspace_id"),
        ({"endpoint": "a b"}, "endpoint"),
        ({"endpoint": ""}, "endpoint"),
        ({"connection": ""}, "connection_id"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": 1e9}, "seconds"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"execution": "a\n"}, "execution"),
        ({"connection": None, "key": object()}, "parameters"),
        ({"text": "x" * 200_000}, "parameters"),
        ({"text": "\ud800"}, "parameters"),
    ],
)
async def test_what_cannot_be_started_says_why(client: Client, more: dict[str, Any], path: str) -> None:
    with pytest.raises(Invalid) as invalid:
        await client.start(**more)
    assert invalid.value.path == path


async def test_without_redis_starting_is_unavailable_soon(prefix: str) -> None:
    with private_redis() as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker:
            await asyncio.to_thread(redis.stop)
            with pytest.raises(Unavailable):
                await Client(broker).start()


# -- holding


@pytest.fixture
def queue(client: Client) -> Queue:
    return Queue(client.broker.redis, client.broker.keys, WORKSPACE, ENDPOINT)


async def test_a_run_is_held_by_one_and_by_the_same_again(client: Client, queue: Queue) -> None:
    execution = (await client.start()).execution_id
    await queue.beat((), (), ())
    (ready,) = await queue.read(10)
    (one,) = await queue.claim([ready], ["h1"])
    assert one is not None
    assert (one.execution, one.name, one.attempt, one.tries) == (execution, "sleep", 1, 1)
    assert await queue.claim([ready], ["h2"]) == [None]
    (again,) = await queue.claim([ready], ["h1"])
    assert again is not None
    assert again.attempt == 1
    beat = await queue.beat((), [execution, execution], ["h1", "h2"])
    assert beat.states == ["held", "lost"]


async def test_a_run_whose_holder_died_is_due_and_its_events_are_refused(client: Client, queue: Queue) -> None:
    execution = (await client.start()).execution_id
    ready = Ready("", execution)
    (zombie,) = await queue.claim([ready], ["h1"])
    assert zombie is not None

    async def due() -> list[Ready]:
        return (await queue.beat((), (), ())).due

    assert await until(due) == [ready]
    (heir,) = await queue.claim([ready], ["h2"])
    assert heir is not None
    assert (heir.attempt, heir.tries) == (2, 2)

    said = [say(client, queue, zombie, "task_start"), say(client, queue, zombie, "execution_completed", "completed")]
    said.append(say(client, queue, heir, "task_start"))
    said.append(say(client, queue, heir, "execution_failed", "failed"))
    said.append(say(client, queue, heir, "execution_completed", "completed"))  # it has ended
    await asyncio.wait(said)
    assert [isinstance(one.exception(), Lost) for one in said] == [True, True, False, False, True]
    assert await client.kinds(execution) == ["task_start", "execution_failed"]
    assert await client.state(execution) == "failed"
    assert not await client.broker.redis.zcard(client.broker.keys.held(WORKSPACE, ENDPOINT))


def say(client: Client, queue: Queue, claimed: Any, kind: str, state: str = "") -> asyncio.Future[Any]:
    event = Event(
        type=kind, workspace_id=WORKSPACE, agent_id=ENDPOINT, data={"execution_id": claimed.execution, "name": "x"}
    )
    return client.broker.producer.send(pack(event), queue.fence(claimed)._replace(state=state))


async def test_refused_events_leave_the_others_of_their_call_and_its_numbering_as_they_were(
    client: Client, queue: Queue
) -> None:
    execution = (await client.start()).execution_id
    (claimed,) = await queue.claim([Ready("", execution)], ["h1"])
    assert claimed is not None
    wrong = Fence(*queue.fence(claimed)._replace(holder="h9"))
    free = [
        Event(type="task.progress", workspace_id=WORKSPACE, agent_id="a1", data={"task_id": "t", "step": step})
        for step in range(40)
    ]
    publishing, refused = [], []
    for event in free:
        publishing.append(asyncio.create_task(client.broker.publish(event)))
        await asyncio.sleep(0)
        told = pack(Event(type="task_start", workspace_id=WORKSPACE, agent_id=ENDPOINT, data={"execution_id": "e"}))
        refused.append(client.broker.producer.send(told, wrong))
    positions = await asyncio.gather(*publishing)
    await asyncio.wait(refused)
    assert all(isinstance(one.exception(), Lost) for one in refused)
    events, _, _, _ = await client.broker.log.page(WORKSPACE, START, 1000)
    assert [event.id for event in events] == positions
    # Each says which was before it, on both channels: nobody sees a hole.
    assert [event.prev for event in events][1:] == positions[:-1]
    assert [event.agent_prev for event in events][1:] == positions[:-1]


async def test_an_entry_that_a_worker_was_given_and_did_not_claim_is_due(client: Client, queue: Queue) -> None:
    execution = (await client.start()).execution_id
    await queue.beat((), (), ())
    (ready,) = await queue.read(10)
    other = Queue(client.broker.redis, client.broker.keys, WORKSPACE, ENDPOINT)

    async def due() -> list[Ready]:
        return (await other.beat((), (), ())).due

    assert await until(due) == [ready]
    (claimed,) = await other.claim([ready], ["h2"])
    assert claimed is not None
    assert claimed.execution == execution
    assert await client.broker.redis.xlen(client.broker.keys.runs(WORKSPACE, ENDPOINT)) == 0


async def test_entries_whose_delivery_was_lost_are_due_also_while_their_worker_lives(
    client: Client, queue: Queue
) -> None:
    started = [(await client.start()).execution_id for _ in range(3)]
    await queue.beat(["sleep"], (), ())
    assert len(await queue.read(10)) == 3

    async def due() -> bool:
        return [ready.execution for ready in (await queue.beat(["sleep"], (), ())).due] == started

    await until(due)


async def test_after_a_silence_of_all_workers_those_who_held_runs_come_first(client: Client, queue: Queue) -> None:
    execution = (await client.start()).execution_id
    ready = Ready("", execution)

    async def due() -> list[Ready]:
        return (await queue.beat(["sleep"], (), ())).due

    async def taken(holder: str) -> list[Any]:
        """Somebody is always heard meanwhile."""
        await due()
        return [one for one in await queue.claim([ready], [holder]) if one is not None]

    assert (await until(lambda: taken("h1")))[0].tries == 1
    assert (await until(lambda: taken("h2")))[0].tries == 2

    await asyncio.sleep(1.1)
    assert await due() == [ready]  # nobody was heard, and the lease has ended
    assert await queue.claim([ready], ["h3"]) == [None]
    await queue.release(execution, "h2", "spared", seconds=0)  # in time
    assert (await taken("h3"))[0].tries == 2

    await asyncio.sleep(1.1)
    assert await due() == [ready]
    assert await queue.claim([ready], ["h4"]) == [None]
    assert (await until(lambda: taken("h4")))[0].tries == 3  # nobody came


async def test_a_lease_whose_grant_comes_while_the_loop_is_blocked_is_renewed_all_the_same(
    client: Client, queue: Queue
) -> None:
    ready, stopped = Ready("", (await client.start()).execution_id), []
    lease = Lease(ready.execution, "h1")
    beats = Beats(client.broker.address, queue, ["sleep"], lambda *one: stopped.append(one), lambda due: None)
    beats.keep([lease])
    beating = asyncio.create_task(beats.run())
    try:
        served = client.broker.keys.served(WORKSPACE, ENDPOINT)
        await until(lambda: client.broker.redis.exists(served))  # a beat before the claim is no reason to stop
        asked = time.monotonic()
        assert await queue.claim([ready], ["h1"]) != [None]
        time.sleep(2.5)
        lease.grant(asked)
        assert lease.seconds_left > 0
        assert await queue.claim([ready], ["h2"]) == [None]
        assert stopped == []
        await client.broker.redis.hset(client.broker.keys.run(WORKSPACE, ready.execution), "holder", "h3")
        await until(lambda: stopped)
        assert stopped[0] == (lease, Reason.LOST)
    finally:
        beating.cancel()
        await asyncio.wait([beating])


async def test_what_is_given_back_waits_again_and_a_spared_attempt_does_not_count(client: Client, queue: Queue) -> None:
    execution = (await client.start()).execution_id
    ready = Ready("", execution)
    await queue.claim([ready], ["h1"])
    await queue.release(execution, "h9", "spared", seconds=0)  # not its own
    assert await client.state(execution) == "running"
    await queue.release(execution, "h1", "spared", seconds=0)
    (second,) = await queue.claim([ready], ["h2"])
    assert second is not None
    assert (second.attempt, second.tries) == (2, 1)
    await queue.release(execution, "h2", "counted", seconds=0.3)
    assert await queue.claim([ready], ["h3"]) == [None]  # not yet
    (third,) = await until(lambda: _claims(queue, ready))
    assert (third.attempt, third.tries) == (3, 2)


async def test_a_claim_says_who_serves_the_workflow(client: Client, queue: Queue) -> None:
    async def served(execution: str, holder: str) -> str:
        (claimed,) = await queue.claim([Ready("", execution)], [holder])
        assert claimed is not None
        assert claimed.attempt == 1
        return claimed.served

    unheard = (await client.start()).execution_id
    assert await served(unheard, "h1") == ""
    await queue.release(unheard, "h1", "unbegun", seconds=0)
    await queue.beat(["sleep"], (), ())
    assert await served(unheard, "h2") == "live"
    await queue.release(unheard, "h2", "unbegun", seconds=0)
    noted = (await client.start()).execution_id
    await until(lambda: _is_forgotten(client))
    assert await served(unheard, "h3") == ""
    assert await served(noted, "h3") == "before"

    # Who has begun it knew its workflow.
    await queue.release(unheard, "h3", "spared", seconds=0)
    (begun,) = await queue.claim([Ready("", unheard)], ["h4"])
    assert begun is not None
    assert (begun.served, begun.attempt, begun.tries) == ("before", 2, 1)


async def _is_forgotten(client: Client) -> bool:
    return not await client.broker.redis.exists(client.broker.keys.served(WORKSPACE, ENDPOINT))


async def _claims(queue: Queue, ready: Ready) -> list[Any]:
    return [claimed for claimed in await queue.claim([ready], ["h4"]) if claimed is not None]


# -- cancelling


async def test_a_run_that_waits_is_cancelled_at_once_without_any_worker(client: Client) -> None:
    execution = (await client.start()).execution_id
    assert await client.runs.cancel(WORKSPACE, execution) == "cancelled"
    (event,) = await client.events(execution)
    assert (event.type, event.agent_id) == ("execution_cancelled", ENDPOINT)
    assert event.data == {"execution_id": execution, "name": "sleep", "connection_id": "ws_1"}
    assert await client.is_left_nothing()
    assert await client.runs.cancel(WORKSPACE, execution) == "ended"
    assert await client.runs.cancel(WORKSPACE, "exec_none") == "unknown"
    assert await client.runs.cancel("ws-other", execution) == "unknown"
    assert await client.kinds(execution) == ["execution_cancelled"]


async def test_many_who_cancel_one_run_end_it_once(client: Client) -> None:
    execution = (await client.start()).execution_id
    await asyncio.gather(*(client.runs.cancel(WORKSPACE, execution) for _ in range(20)))
    await client.end(execution)
    assert await client.kinds(execution) == ["execution_cancelled"]


async def test_a_run_that_is_given_back_while_it_is_cancelled_does_not_wait_for_its_retry(
    client: Client, queue: Queue
) -> None:
    execution = (await client.start()).execution_id
    ready = Ready("", execution)
    await queue.claim([ready], ["h1"])
    assert await client.runs.cancel(WORKSPACE, execution) == "told"
    await queue.release(execution, "h1", "counted", seconds=60)
    (claimed,) = await queue.claim([ready], ["h2"])
    assert claimed is not None
    assert claimed.is_cancelled


async def test_a_canceller_that_died_leaves_a_run_that_the_next_holder_ends(client: Client, crew: Crew) -> None:
    execution = (await client.start()).execution_id
    keys = client.broker.keys
    names = [keys.run(WORKSPACE, execution)]
    names += [name(WORKSPACE, ENDPOINT) for name in (keys.runs, keys.held, keys.cancels)] + [keys.queued(WORKSPACE)]
    assert await Script(client.broker.redis, "cancel").run(names, (execution, "h1", 1000)) == b"held"
    crew.hire()
    assert (await client.end(execution)).type == "execution_cancelled"
    assert await client.journal() == []


async def test_a_running_one_is_stopped_in_another_process_within_a_second(client: Client, crew: Crew) -> None:
    crew.hire()
    execution = (await client.start()).execution_id
    await until(lambda: client.journal("begin"))
    assert await client.runs.cancel(WORKSPACE, execution) == "told"
    assert (await client.end(execution, 1.0)).type == "execution_cancelled"
    assert len(await client.journal("end")) == 1  # its `finally` ran
    assert (await client.kinds(execution))[-3:] == ["task_error", "workflow_error", "execution_cancelled"]


async def test_a_cancel_that_the_worker_did_not_hear_is_found_by_a_beat(client: Client, crew: Crew) -> None:
    crew.hire()
    execution = (await client.start()).execution_id
    await until(lambda: client.journal("begin"))
    await client.broker.redis.hset(client.broker.keys.run(WORKSPACE, execution), "cancel", 1)
    assert (await client.end(execution)).type == "execution_cancelled"


# -- deadlines that no worker minds


async def test_a_run_that_waits_past_its_deadline_is_ended_without_any_worker(client: Client) -> None:
    started = await client.start(seconds=0.2)
    assert not await client.runs.expire(WORKSPACE, started.execution_id)  # not yet
    assert await client.state(started.execution_id) == "queued"
    await until(lambda: client.runs.expire(WORKSPACE, started.execution_id))
    (event,) = await client.events(started.execution_id)
    assert (event.type, event.agent_id) == ("execution_failed", ENDPOINT)
    assert event.data.pop("error")["code"] == "DEADLINE_EXCEEDED"
    assert event.data == {"execution_id": started.execution_id, "name": "sleep", "connection_id": "ws_1"}
    assert await client.is_left_nothing()
    assert await client.runs.expire(WORKSPACE, started.execution_id)
    assert await client.runs.expire(WORKSPACE, "exec_none")
    assert await client.kinds(started.execution_id) == ["execution_failed"]


async def test_a_run_past_its_deadline_is_its_holders_to_end_until_its_lease_does(client: Client, queue: Queue) -> None:
    execution = (await client.start(seconds=0.1)).execution_id
    (zombie,) = await queue.claim([Ready("", execution)], ["h1"])
    assert zombie is not None
    assert not await client.runs.expire(WORKSPACE, execution)
    assert await client.state(execution) == "running"
    await until(lambda: client.runs.expire(WORKSPACE, execution))
    late = say(client, queue, zombie, "execution_completed", "completed")
    await asyncio.wait([late])
    assert isinstance(late.exception(), Lost)
    assert await client.kinds(execution) == ["execution_failed"]


async def test_a_run_whose_retry_is_not_due_yet_is_ended_past_its_deadline(client: Client, queue: Queue) -> None:
    execution = (await client.start(seconds=0.2)).execution_id
    await queue.claim([Ready("", execution)], ["h1"])
    await queue.release(execution, "h1", "counted", seconds=60)
    await until(lambda: client.runs.expire(WORKSPACE, execution))
    assert await client.is_left_nothing()


async def test_many_who_expire_one_run_end_it_once(client: Client) -> None:
    execution = (await client.start(seconds=0.01)).execution_id
    await until(lambda: client.runs.expire(WORKSPACE, execution))
    other = (await client.start(seconds=0.01)).execution_id
    await asyncio.sleep(0.02)
    await asyncio.gather(
        *(client.runs.expire(WORKSPACE, other) for _ in range(20)), client.runs.cancel(WORKSPACE, other)
    )
    await client.end(other)
    assert sum(kind in ENDS for kind in await client.kinds(other)) == 1


async def test_who_expires_a_run_and_dies_leaves_it_to_the_next(client: Client) -> None:
    execution = (await client.start(seconds=0.01)).execution_id
    await asyncio.sleep(0.02)
    keys = client.broker.keys
    names = [keys.run(WORKSPACE, execution), keys.runs(WORKSPACE, ENDPOINT), keys.held(WORKSPACE, ENDPOINT)]
    names.append(keys.queued(WORKSPACE))
    for _ in range(2):
        assert await Script(client.broker.redis, "expire").run(names, (execution, "h1", 1000)) == b"held"
    assert not await client.runs.expire(WORKSPACE, execution)
    await until(lambda: client.runs.expire(WORKSPACE, execution))
    assert await client.kinds(execution) == ["execution_failed"]


# -- how many wait


async def test_the_runs_that_wait_are_counted_over_all_endpoints(client: Client, queue: Queue) -> None:
    async def waiting() -> int:
        return await client.runs.waiting(WORKSPACE)

    assert await waiting() == 0
    one, two, three = [(await client.start()).execution_id for _ in range(3)]
    await client.start(endpoint="elsewhere")
    await client.start(workspace="ws-other")
    assert await waiting() == 4
    await queue.claim([Ready("", one), Ready("", two), Ready("", one)], ["h1", "h1", "h9"])
    assert await waiting() == 2
    await queue.release(one, "h1", "spared", seconds=0)
    await queue.release(two, "h1", "counted", seconds=60)
    assert await waiting() == 4
    for execution in (one, two, three):
        await client.runs.cancel(WORKSPACE, execution)
    assert await waiting() == 1
    # What waits longer than its keys live is not counted any more.
    await client.broker.redis.zadd(client.broker.keys.queued(WORKSPACE), {"exec_old": 1})
    await client.start()
    assert await waiting() == 2


# -- what dies


async def test_a_run_whose_worker_was_killed_is_taken_over_and_never_while_one_lives(
    client: Client, crew: Crew
) -> None:
    first = crew.hire()
    execution = (await client.start(seconds=30)).execution_id
    await until(lambda: client.journal("begin"))
    crew.hire()
    # Several leases long: a worker that lives keeps its run.
    await asyncio.sleep(2.5)
    assert len(await client.journal("begin")) == 1
    await kill(crew, client, first)
    await until(lambda: _begun(client, 2), 3.0)
    assert [line[2] for line in await client.journal("begin")] == ["1", "2"]
    assert await client.journal("two") == []
    started = [event for event in await client.events(execution) if event.type == "execution_started"]
    begun = [event for event in await client.events(execution) if event.type == "workflow_start"]
    assert [event.data.get("attempt") for event in started] == [None, 2]
    assert [event.data.get("attempt") for event in begun] == [None, 2]
    await client.runs.cancel(WORKSPACE, execution)
    await client.end(execution)


async def _begun(client: Client, number: int) -> bool:
    return len(await client.journal("begin")) >= number


async def test_a_worker_that_stood_still_stops_its_run_and_what_it_says_is_refused(client: Client, crew: Crew) -> None:
    first = crew.hire()
    execution = (await client.start(seconds=30)).execution_id
    await until(lambda: client.journal("begin"))
    first.send_signal(signal.SIGSTOP)
    await client.broker.redis.sadd(f"{crew.prefix}-killed", first.pid)
    crew.hire()
    await until(lambda: _begun(client, 2))
    said = len(await client.events(execution))
    first.send_signal(signal.SIGCONT)
    await until(lambda: client.journal("end"))  # it was stopped
    assert len(await client.events(execution)) == said
    assert await client.runs.cancel(WORKSPACE, execution) == "told"
    await client.end(execution)
    kinds = Counter(await client.kinds(execution))
    assert (kinds["execution_cancelled"], kinds["workflow_error"]) == (1, 1)


@pytest.mark.parametrize("name", ["block", "compute"])
async def test_a_run_that_blocks_its_worker_for_several_leases_stays_its_own(
    client: Client, crew: Crew, name: str
) -> None:
    crew.hire(LEASE_SECONDS=2)  # a busy machine, and one that holds the interpreter besides, may be late by a second
    beside = (await client.start("sleep")).execution_id
    await until(lambda: _begun(client, 1))
    execution = (await client.start(name, moments=5.0)).execution_id
    await until(lambda: _begun(client, 2))
    crew.hire(LEASE_SECONDS=2)
    assert (await client.end(execution)).data["output"] == 1
    await client.runs.cancel(WORKSPACE, beside)
    assert (await client.end(beside, 2.0)).type == "execution_cancelled"
    assert len(await client.journal("begin")) == 2
    assert await client.is_left_nothing()


async def test_a_run_that_blocks_its_worker_past_its_deadline_is_ended_by_another(client: Client, crew: Crew) -> None:
    crew.hire()
    await client.end((await client.start("block", moments=0.0)).execution_id)  # it is at work: the deadline is short

    async def journal(kind: str) -> list[list[str]]:
        return [line for line in await client.journal(kind) if execution in line]

    execution = (await client.start("block", moments=5.0, seconds=1.0)).execution_id
    await until(lambda: journal("begin"))
    crew.hire()
    event = await client.end(execution, 4.5)
    assert (event.type, event.data["error"]["code"]) == ("execution_failed", "DEADLINE_EXCEEDED")
    assert await journal("end") == []  # it blocks still
    await until(lambda: journal("end"))
    # Its worker lives on, with another run.
    other = (await client.start("block", moments=0.0)).execution_id
    assert (await client.end(other)).type == "execution_completed"
    assert sum(kind in ENDS for kind in await client.kinds(execution)) == 1
    assert len(await journal("begin")) == 1


async def test_a_run_that_kills_its_workers_fails_after_its_last_attempt(client: Client, crew: Crew) -> None:
    execution = (await client.start("poison", max_attempts=2)).execution_id
    for number in (1, 2):
        process = crew.hire()
        await asyncio.to_thread(process.wait, 20)
        assert len(await client.journal("begin")) == number
    crew.hire()
    event = await client.end(execution)
    assert event.type == "execution_failed"
    assert event.data["error"]["code"] == "WORKER_LOST"
    assert len(await client.journal("begin")) == 2
    assert await client.is_left_nothing()


async def test_a_worker_whose_connections_are_cut_goes_on_with_its_run(client: Client, crew: Crew) -> None:
    crew.hire()
    execution = (await client.start()).execution_id
    await until(lambda: client.journal("begin"))
    for _ in range(10):
        for one in await client.broker.redis.client_list():
            if one["name"].startswith("trunkline"):
                await client.broker.redis.client_kill_filter(_id=one["id"], skipme=True)
        await asyncio.sleep(0.1)
    await client.runs.cancel(WORKSPACE, execution)
    await client.end(execution)
    assert len(await client.journal("begin")) == 1


async def test_a_restart_of_redis_loses_no_run(prefix: str) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        crew = Crew(redis.url, prefix)
        try:
            async with Broker.connect(redis.url, prefix=prefix) as broker:
                client = Client(broker)
                crew.hire(CONCURRENCY=2)
                started = [(await client.start("chance")).execution_id for _ in range(40)]
                await until(lambda: client.journal("end"))
                await asyncio.to_thread(redis.stop)
                await asyncio.to_thread(redis.start)
                for execution in started:
                    await client.end(execution, 30)
                assert await client.is_left_nothing()
                assert await client.journal("two") == []
        finally:
            crew.dismiss()


async def test_an_outage_longer_than_a_lease_uses_up_no_attempt(prefix: str) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        crew = Crew(redis.url, prefix)
        try:
            async with connected(redis.url, prefix) as client:
                slow = crew.hire()
                started = [(await client.start("sleep", max_attempts=1)).execution_id for _ in range(10)]
                await until(lambda: _begun(client, 10))
                crew.hire()
                await until(lambda: _workers(client, 2))
                await asyncio.to_thread(redis.stop)
                await asyncio.sleep(1.5)
                # The other one is back first, and sees leases that have ended.
                slow.send_signal(signal.SIGSTOP)
                await asyncio.to_thread(redis.start)
                await until(lambda: client.broker.redis.exists(client.broker.keys.returned(WORKSPACE, ENDPOINT)))
                await asyncio.sleep(0.6)
                slow.send_signal(signal.SIGCONT)
                await until(lambda: _begun(client, 20))
                for execution in started:
                    await client.runs.cancel(WORKSPACE, execution)
                ends = [await client.end(execution) for execution in started]
                assert {event.type for event in ends} == {"execution_cancelled"}
        finally:
            crew.dismiss()


async def _workers(client: Client, number: int) -> bool:
    consumers = await client.broker.redis.xinfo_consumers(client.broker.keys.runs(WORKSPACE, ENDPOINT), "workers")
    return len(consumers) == number


async def test_chaos_every_run_ends_once_and_no_two_workers_are_at_one(client: Client, crew: Crew) -> None:
    runs, killed = 500, 0
    for _ in range(4):
        crew.hire(CONCURRENCY=8)
    started = [(await client.start("chance", max_attempts=10)).execution_id for _ in range(runs)]
    cancelled = [await client.runs.cancel(WORKSPACE, execution) for execution in random.sample(started, 30)]
    assert set(cancelled) <= {"cancelled", "told", "ended"}

    async def ends() -> Counter[str]:
        return Counter(event.data["execution_id"] for event in await client.events() if event.type in ENDS)

    async def kill_at_random() -> None:
        nonlocal killed
        while True:
            await pause(random.uniform(0.2, 0.6))
            victim = random.choice([process for process in crew.processes if process.poll() is None])
            await kill(crew, client, victim)
            killed += 1
            crew.hire(CONCURRENCY=8)

    killing = asyncio.create_task(kill_at_random())
    await until(lambda: _has_ended(ends, runs - 50), 60)
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    await until(lambda: _has_ended(ends, runs), 60)
    assert killed >= 2
    assert await ends() == Counter(started)
    assert await client.journal("two") == []
    assert await client.is_left_nothing()


async def _has_ended(ends: Callable[[], Any], number: int) -> bool:
    return len(await ends()) >= number
