"""Runs whose client leaves at once, and runs that nobody is there to work on."""

import signal
import time
from collections.abc import Callable

import pytest

from broker.runs import Runs

from .agnt5 import Shop, opened
from .support import Node, private_redis, until

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]


async def test_what_was_asked_before_a_close_is_done_before_it_is_answered(shop: Shop) -> None:
    async with shop.crew() as crew:
        async with shop.client() as client:
            for _ in range(20):
                await client.run("wait", connection_id="ws_1")
            await client.socket.close(1000, "bye")
            assert client.socket.close_code == 1000
            runs = await Runs(shop.broker).of_connection(shop.workspace, shop.endpoint, "ws_1")
            assert len(runs) == 20
        await until(lambda: len(crew.begun) >= 10)
        crew.go.set()
        await until(lambda: len(crew.passed) == 20)


async def test_a_close_does_not_wait_for_long_for_a_redis_that_stands_still(shop: Shop) -> None:
    async with shop.client() as client:
        await shop.broker.redis.client_pause(1500, all=True)
        for _ in range(5):
            await client.run("wait", connection_id="ws_1")
        began = time.monotonic()
        await client.socket.close()
        # Five seconds are what it has; one call that is not answered is given up after two.
        assert time.monotonic() - began < 4.5


async def test_a_run_that_no_worker_takes_ends_at_its_deadline(start_node: Callable[..., Node]) -> None:
    node = start_node(run_seconds=1)
    async with opened([node]) as shop, shop.client() as client, shop.client() as other:
        await client.run("noop", connection_id="ws_1")
        await other.run("noop", connection_id="ws_2", metadata={"idempotency_key": 1})
        for each, name in ((client, "ws_1"), (other, "ws_2")):
            ended = await each.end()
            assert ended["type"] == "execution_failed"
            assert ended["data"]["details"]["error"]["code"] == "DEADLINE_EXCEEDED"
            (run,) = await Runs(shop.broker).of_connection(shop.workspace, shop.endpoint, name)
            assert (run.id, run.state) == (ended["data"]["execution_id"], "failed")
        assert await client.synchronise() == await other.synchronise() == []


async def test_who_resumes_hears_of_a_deadline_that_passed_meanwhile(start_node: Callable[..., Node]) -> None:
    node = start_node(run_seconds=1)
    async with opened([node]) as shop:
        async with shop.client() as client:
            await client.run("noop", connection_id="ws_1")
            await client.synchronise()
        async with shop.client() as client:
            await client.resume("ws_1")
            assert (await client.end())["data"]["details"]["error"]["code"] == "DEADLINE_EXCEEDED"


async def test_without_since_a_gap_does_not_hide_what_the_log_still_has(shop: Shop) -> None:
    async with shop.crew() as crew:
        async with shop.client() as client:
            first = await client.start("wait", connection_id="ws_1")
            await client.until("task_end")
            second = await client.start("wait", connection_id="ws_1")
            last = await client.until("task_end")
            heard = client.of(first) + client.of(second)
        cut = heard[2]["event_id"]
        await shop.broker.redis.xtrim(shop.broker.keys.log(shop.workspace), minid=cut, approximate=False)
        async with shop.client(1) as client:
            await client.resume("ws_1")
            gap, *replayed = await client.synchronise()
            assert (gap["type"], gap["oldest"]) == ("resume.gap", cut)
            assert [message["event_id"] for message in replayed] == [message["event_id"] for message in heard[2:]]
            assert replayed[-1] == last
            crew.go.set()
            for execution in (first, second):
                assert (await client.end(execution))["type"] == "execution_completed"


@pytest.mark.parametrize("way", ["resume", "since", "again"])
async def test_who_comes_back_when_the_log_has_moved_on_hears_how_its_run_ended(shop: Shop, way: str) -> None:
    run = {"connection_id": "ws_1", "metadata": {"idempotency_key": "once"}}
    async with shop.crew():
        async with shop.client() as client:
            await client.run("echo", {"q": 1}, **run)
            ended = await client.end()
        await shop.broker.redis.delete(shop.broker.keys.log(shop.workspace))
        async with shop.client(1) as client:
            if way == "again":
                await client.run("echo", {"q": 1}, **run)
            else:
                await client.resume("ws_1", "1-1" if way == "since" else None)
            gap, *rest = await client.synchronise()
            assert gap["type"] == "resume.gap"
            assert rest == [ended]
            await client.resume("ws_1")
            assert await client.synchronise() == []


async def test_who_has_heard_the_end_of_its_run_is_not_told_again(shop: Shop) -> None:
    async with shop.crew():
        async with shop.client() as client:
            await client.run("noop", connection_id="ws_1")
            ended = await client.end()
        async with shop.client(1) as client:
            await client.resume("ws_1", ended["event_id"])
            assert await client.synchronise() == []


async def test_a_log_that_went_away_idle_is_no_gap(shop: Shop) -> None:
    run = {"connection_id": "ws_1", "metadata": {"idempotency_key": "once"}}
    async with shop.crew(), shop.client() as client:
        await client.run("noop")
        await client.end()
        await shop.broker.redis.delete(shop.broker.keys.log(shop.workspace))  # as it does after `log_seconds`
        await client.run("noop", **run)
        told = client.of((await client.end())["data"]["execution_id"])
        async with shop.client(1) as again, shop.client(1) as back:
            await again.run("noop", **run)
            await back.resume("ws_1")
            assert await again.synchronise() == await back.synchronise() == told


async def test_a_run_that_redis_has_lost_ends_for_its_client(start_node: Callable[..., Node]) -> None:
    with private_redis() as redis:
        node = start_node(redis_url=redis.url, run_seconds=1)
        async with opened([node]) as shop, shop.client() as client:
            await client.run("noop", connection_id="ws_1")
            await client.synchronise()
            await shop.broker.redis.flushall()
            ended = await client.end(seconds=20)
            assert ended["type"] == "execution_failed"
            assert ended["data"]["details"]["error"]["code"] == "EVENTS_LOST"
            assert "event_id" not in ended


async def test_hundreds_of_runs_end_soon_after_their_deadline(start_node: Callable[..., Node]) -> None:
    node = start_node(run_seconds=1, max_messages_per_second=-1)
    async with opened([node]) as shop, shop.client() as client:
        for number in range(300):
            await client.run("noop", connection_id=f"ws_{number % 7}")
        began = time.monotonic()
        for _ in range(300):
            await client.end()
        assert time.monotonic() - began < 8


async def test_ends_that_the_log_has_let_go_come_before_what_is_newer(shop: Shop) -> None:
    async with shop.crew():
        async with shop.client() as client:
            ends = []
            for _ in range(3):
                await client.run("echo", connection_id="ws_1")
                ends.append(await client.end())
            second = client.of(ends[1]["data"]["execution_id"])
        log = shop.broker.keys.log(shop.workspace)
        await shop.broker.redis.xtrim(log, minid=second[0]["event_id"], approximate=False)
        for since in (None, "1-1"):
            async with shop.client(1) as client:
                await client.resume("ws_1", since)
                gap, first, *rest = await client.synchronise()
                assert gap["type"] == "resume.gap"
                assert first == ends[0]
                assert rest[: len(second)] == second
                assert rest[-1] == ends[2]


async def test_a_key_of_a_run_that_redis_has_forgotten_begins_anew_and_is_told(shop: Shop) -> None:
    run = {"connection_id": "ws_1", "metadata": {"idempotency_key": "once"}}
    async with shop.crew(), shop.client() as client:
        await client.run("noop", **run)
        execution = (await client.end())["data"]["execution_id"]
        await shop.broker.redis.delete(shop.broker.keys.run(shop.workspace, execution))
        await client.run("noop", **run)
        assert (await client.end())["data"]["execution_id"] == execution


async def test_a_key_whose_end_was_heard_elsewhere_is_told_from_its_beginning(shop: Shop) -> None:
    run = {"connection_id": "ws_1", "metadata": {"idempotency_key": "once"}}
    async with shop.crew():
        async with shop.client() as client:
            await client.run("noop", **run)
            ended = await client.end()
            told = client.of(ended["data"]["execution_id"])
        async with shop.client(1) as client:
            await client.resume("ws_1", ended["event_id"])
            await client.run("noop", **run)
            assert await client.synchronise() == told


async def test_an_end_that_was_lost_in_a_gap_is_told_to_who_stays(shop: Shop) -> None:
    """The node is made to believe that it has missed events for good, at the moment when the run ends."""
    node = shop.nodes[0]
    async with shop.crew() as crew, shop.client() as client:
        execution = await client.start("wait", connection_id="ws_1")
        await client.resume("ws_1")
        await client.until("task_end")
        node.signal(signal.SIGSTOP)
        try:
            redis, keys = shop.broker.redis, shop.broker.keys
            for one in await redis.client_list():
                if one["name"] == "trunkline-feed":
                    await redis.client_kill_filter(_id=one["id"])
            crew.go.set()
            await shop.has_said(execution, "execution_completed")
            await redis.delete(keys.log(shop.workspace))
        finally:
            node.signal(signal.SIGCONT)
        messages = [await client.receive(30)]
        while messages[-1].get("data", {}).get("execution_id") != execution:
            messages.append(await client.receive(30))
        assert "resume.gap" in [message["type"] for message in messages]
        assert messages[-1]["type"] == "execution_completed"
