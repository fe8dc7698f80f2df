"""Coming back to AGNT5's runs (our reading of seed 002, "Reconnection Strategy"): nothing lost and nothing twice.

Most come back on the other node. A client has not heard what was said while it was away: that is waited for in the log.
"""

import asyncio
import random
import secrets
import signal
import socket
from collections.abc import Callable

import pytest

from broker import Run, Worker
from broker.local import LocalRedis
from broker.positions import order

from .agnt5 import ENDS, HALF, WHOLE, Agnt5, Crew, Message, Shop, execution_of, opened, types
from .proxy import proxy
from .support import Node, until

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]


async def lose_one(shop: Shop, connection: str = "ws_1") -> tuple[str, list[Message]]:
    """Start `wait`, hear its first half and be gone; answers the execution and what was heard of it."""
    async with shop.client() as client:
        execution = await client.start("wait", connection_id=connection)
        await client.until("task_end")
        client.vanish()
        return execution, client.of(execution)


async def finish(shop: Shop, crew: Crew, execution: str) -> None:
    """Let the run end while its client is away."""
    crew.go.set()
    await shop.has_said(execution, *ENDS)


def unanswered(client: Agnt5) -> list[Message]:
    """All that it was sent, pongs left out."""
    return [message for message in client.messages if message["type"] != "pong"]


# --- What was missed ---


@pytest.mark.parametrize("node", [0, 1], ids=["same node", "other node"])
async def test_who_comes_back_hears_what_it_missed_and_then_goes_on(shop: Shop, node: int) -> None:
    async with shop.crew() as crew:
        execution, heard = await lose_one(shop)
        async with shop.client(node) as client:
            await client.resume("ws_1", heard[1]["event_id"])
            assert await client.synchronise() == heard[2:]
            crew.go.set()
            await client.end(execution)
            assert await client.synchronise() == []
            assert types(heard[:2] + client.of(execution)) == WHOLE


async def test_a_run_that_ended_meanwhile_is_told_to_its_end(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, heard = await lose_one(shop)
        await finish(shop, crew, execution)
    async with shop.client(1) as client:
        await client.resume("ws_1", heard[-1]["event_id"])
        missed = await client.synchronise()
        assert types(heard + missed) == WHOLE
        assert {message["data"]["execution_id"] for message in missed} == {execution}


async def test_without_since_all_is_told_from_the_beginning(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, heard = await lose_one(shop)
        async with shop.client(1) as client:
            await client.resume("ws_1")
            assert await client.synchronise() == heard
            crew.go.set()
            await client.end(execution)
        async with shop.client() as late:
            await late.resume("ws_1")
            await late.synchronise()
            assert unanswered(late) == client.of(execution)


async def test_since_the_newest_position_brings_nothing(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, _ = await lose_one(shop)
        await finish(shop, crew, execution)
        async with shop.client() as client:
            await client.resume("ws_1")
            newest = (await client.synchronise())[-1]["event_id"]
        async with shop.client(1) as client:
            await client.resume("ws_1", newest)
            assert await client.synchronise() == []


async def test_all_runs_of_a_connection_come_back_and_no_others(shop: Shop) -> None:
    async with opened(shop.nodes, workspace=shop.workspace) as other, shop.crew() as crew, other.crew() as others:
        async with shop.client() as client, shop.client() as neighbour, other.client() as stranger:
            mine = [await client.start("wait", connection_id="ws_1") for _ in range(3)]
            await client.start("wait")  # without a name it is nobody's who comes later
            await neighbour.start("wait", connection_id="ws_2")
            await stranger.start("wait", connection_id="ws_1")  # of another endpoint
            await until(lambda: len(crew.begun) == 5)
            client.vanish()
        others.go.set()
        async with shop.client(1) as back:
            await back.resume("ws_1")
            crew.go.set()
            for _ in mine:
                await back.end()
            assert await back.synchronise() == []
            for execution in mine:
                assert types(back.of(execution)) == WHOLE
            assert len(unanswered(back)) == len(mine) * len(WHOLE)


async def test_a_connection_id_that_nobody_used_brings_nothing_and_is_no_error(shop: Shop) -> None:
    async with shop.client() as client:
        await client.resume("ws_nobody")
        assert await client.synchronise() == []


async def test_who_resumes_what_it_follows_already_hears_nothing_twice(shop: Shop) -> None:
    async with shop.crew() as crew, shop.client() as client:
        execution = await client.start("wait", connection_id="ws_1")
        await client.until("task_end")
        await client.resume("ws_1")
        await client.resume("ws_1", client.messages[0]["event_id"])
        crew.go.set()
        await client.end(execution)
        await client.resume("ws_1")
        await client.synchronise()
        assert types(unanswered(client)) == WHOLE


async def test_who_resumes_may_cancel_and_start_more(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, _ = await lose_one(shop)
        async with shop.client(1) as client:
            await client.resume("ws_1")
            await client.cancel(execution)
            assert (await client.end(execution))["type"] == "execution_cancelled"
            another = await client.start("noop", connection_id="ws_1")
            await client.end(another)
        assert crew.left == [execution]


async def test_several_names_may_be_resumed_on_one_connection(shop: Shop) -> None:
    async with shop.crew() as crew:
        first, _ = await lose_one(shop, "ws_1")
        second, _ = await lose_one(shop, "ws_2")
        async with shop.client() as client:
            await client.resume("ws_1")
            await client.resume("ws_2")
            crew.go.set()
            await client.end()
            await client.end()
            assert types(client.of(first)) == types(client.of(second)) == WHOLE


async def test_a_pong_says_up_to_where_an_idle_client_has_heard_all(shop: Shop) -> None:
    async with shop.crew() as crew:
        async with shop.client() as client:
            execution = await client.start("wait", connection_id="ws_1")
            last = (await client.until("task_end"))["event_id"]
            await client.send({"type": "ping"})
            since = (await client.receive()).get("event_id", last)
        await finish(shop, crew, execution)
        async with shop.client(1) as back:
            await back.resume("ws_1", since)
            missed = await back.synchronise()
            assert types(client.of(execution) + missed) == WHOLE


# --- Cut off at any moment ---


def long_worker(shop: Shop) -> Worker:
    """Its workflow `long` has so many tasks, each with an output of this size and a pause."""
    worker = shop.worker()

    @worker.workflow("long")
    async def long(run: Run, tasks: int, size: int = 0, seconds: float = 0.01) -> None:
        for number in range(tasks):
            async with run.task(f"step-{number}") as task:
                task.output("x" * size)
                await asyncio.sleep(seconds)

    return worker


def long_run(tasks: int) -> list[str]:
    """What `long` says."""
    return [*HALF[:2], *["task_start", "task_end"] * tasks, "workflow_end", "execution_completed"]


async def test_who_comes_and_goes_all_the_time_hears_everything_once(shop: Shop) -> None:
    """A run is put together from what was heard before and after."""
    chance = random.Random(seed := secrets.randbits(32))
    print(f"seed {seed}")
    heard: dict[str, Message] = {}
    async with shop.working(long_worker(shop)):
        async with shop.client() as client:
            execution = await client.start("long", {"tasks": 40}, connection_id="ws_1")
            since = client.messages[-1]["event_id"]
            heard[since] = client.messages[-1]
        connects = 1
        while not ENDS & set(types(list(heard.values()))):
            async with shop.client(connects % 2) as client:
                await client.resume("ws_1", since)
                for _ in range(chance.randint(1, 8)):
                    message = await client.receive()
                    since = message["event_id"]
                    assert since not in heard
                    heard[since] = message
                    if message["type"] in ENDS:
                        break
                client.vanish()
            connects += 1
    assert types(list(heard.values())) == long_run(40) == await shop.said(execution)
    assert connects > 5


async def test_a_pong_never_says_more_than_was_heard(shop: Shop) -> None:
    """Whatever comes after it is newer than its position, and whatever came before it is not."""
    async with shop.working(long_worker(shop)), shop.client() as client:
        execution = await client.start("long", {"tasks": 60}, connection_id="ws_1")
        while not ENDS & set(types(client.messages)):
            await client.synchronise()
            await asyncio.sleep(0.02)
    assert types(client.of(execution)) == long_run(60)
    positions = [order(message["event_id"]) for message in client.messages if "event_id" in message]
    assert positions == sorted(positions)
    assert "pong" in types(client.messages)


async def test_who_reads_too_slowly_is_closed_with_1013_and_comes_back_for_the_rest(
    start_node: Callable[..., Node],
) -> None:
    words = {"tasks": 200, "size": 60_000, "seconds": 0.003}
    node = start_node(max_backlog_bytes=64 * 1024)
    async with opened([node]) as shop, shop.working(long_worker(shop)):
        async with shop.client(sock=narrow(node), max_queue=1) as slow:
            execution = await slow.start("long", words, connection_id="ws_1")
            await shop.has_said(execution, *ENDS)
            assert (await slow.closed())[0] == 1013
            heard = slow.of(execution)
        assert len(heard) < len(long_run(200))
        async with shop.client() as client:
            await client.resume("ws_1", heard[-1]["event_id"])
            await client.end(execution)
            assert types(heard + client.of(execution)) == long_run(200)


def narrow(node: Node) -> socket.socket:
    """A connection of which the kernel keeps little that is not read yet."""
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connected.connect(("127.0.0.1", node.port))
    return connected


async def test_who_stays_hears_everything_once_though_redis_is_cut_off_again_and_again(
    start_node: Callable[..., Node], redis: LocalRedis
) -> None:
    async with proxy(redis.port) as middle:
        node = await asyncio.to_thread(start_node, redis_url=middle.url)
        async with (
            opened([node], redis_url=redis.url) as shop,
            shop.working(long_worker(shop)),
            shop.client() as client,
        ):
            execution = await client.start("long", {"tasks": 100}, connection_id="ws_1")
            for _ in range(6):
                await client.until("task_end")
                middle.cut()
            assert (await client.end(execution))["type"] == "execution_completed"
            assert types(client.of(execution)) == long_run(100)


async def test_who_asks_again_while_redis_is_cut_off_has_each_run_once(
    start_node: Callable[..., Node], redis: LocalRedis
) -> None:
    """What was refused as unavailable may run all the same: its key makes asking again safe."""
    async with proxy(redis.port) as middle:
        node = await asyncio.to_thread(start_node, redis_url=middle.url)
        async with opened([node], redis_url=redis.url) as shop, shop.crew() as crew, shop.client() as client:
            crew.go.set()
            executions = []
            for number in range(30):
                if number % 3 == 0:
                    middle.cut()
                elif number % 3 == 1:
                    middle.lose_answers(1)
                executions.append(await until(lambda number=number: _done(client, number)))  # type: ignore[misc]
            assert await client.synchronise() == []
            assert crew.begun == executions
            for execution in executions:
                assert types(client.of(execution)) == WHOLE


async def _done(client: Agnt5, number: int) -> str | None:
    """Ask for the run of this number; None if it was refused."""
    await client.run("wait", connection_id="ws_1", metadata={"idempotency_key": number})
    return execution_of(await client.end())


# --- What is no longer known ---


async def test_the_newest_position_of_an_endpoint_is_known_longer_than_the_log(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, _ = await lose_one(shop)
        await finish(shop, crew, execution)
        async with shop.client() as client:
            await client.resume("ws_1")
            newest = (await client.synchronise())[-1]["event_id"]
        await shop.broker.redis.xtrim(shop.broker.keys.log(shop.workspace), maxlen=0, approximate=False)
        async with shop.client() as client:
            await client.resume("ws_1", newest)
            assert await client.synchronise() == []


async def test_a_wrong_position_is_a_gap_whoever_asks(shop: Shop) -> None:
    async with shop.client() as client:
        await client.resume("ws_nobody", "1-0")
        (gap,) = await client.synchronise()
        assert (gap["type"], gap["since"]) == ("resume.gap", "1-0")


async def test_what_is_newer_than_a_position_that_has_left_the_log_comes_behind_the_gap(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, heard = await lose_one(shop)
        async with shop.client(1) as client:
            await client.resume("ws_1", "1-0")
            gap, *missed = await client.synchronise()
            assert gap == {"type": "resume.gap", "since": "1-0", "oldest": heard[0]["event_id"]}
            assert missed == heard
            crew.go.set()
            await client.end(execution)
            assert types(client.of(execution)) == WHOLE


@pytest.mark.parametrize("since", ["99999999999999-0", "yesterday", "exec_abc123"])
async def test_a_position_that_is_not_in_the_log_is_a_gap_and_then_live(shop: Shop, since: str) -> None:
    async with shop.crew() as crew:
        execution, heard = await lose_one(shop)
        async with shop.client(1) as client:
            await client.resume("ws_1", since)
            gap, *_ = await client.synchronise()
            assert gap == {"type": "resume.gap", "since": since, "oldest": heard[0]["event_id"]}
            crew.go.set()
            await client.end(execution)
            assert types(client.of(execution)) == WHOLE[len(HALF) :]


async def test_what_the_log_let_go_is_a_gap_and_then_live(shop: Shop) -> None:
    async with shop.crew() as crew:
        execution, heard = await lose_one(shop)
        log = shop.broker.keys.log(shop.workspace)
        await shop.broker.redis.xtrim(log, minid=heard[2]["event_id"], approximate=False)
        async with shop.client(1) as client:
            since = heard[0]["event_id"]
            await client.resume("ws_1", since)
            assert (await client.synchronise())[0] == {
                "type": "resume.gap",
                "since": since,
                "oldest": heard[2]["event_id"],
            }
            crew.go.set()
            await client.end(execution)
            assert types(client.of(execution))[-4:] == WHOLE[len(HALF) :]


# --- Nodes that go ---


async def test_a_run_survives_the_death_and_the_restart_of_its_clients_node(
    start_node: Callable[..., Node],
) -> None:
    nodes = [start_node(drain_seconds=0) for _ in range(2)]
    async with opened(nodes) as shop, shop.crew() as crew:
        async with shop.client() as client:
            execution = await client.start("wait", connection_id="ws_1")
            await client.until("task_end")
            nodes[0].signal(signal.SIGKILL)
            assert (await client.closed())[0] == 1006
            heard = client.of(execution)
        async with shop.client(1) as client:
            await client.resume("ws_1", heard[-1]["event_id"])
            assert await client.synchronise() == []
            nodes[1].signal(signal.SIGTERM)
            assert (await client.closed())[0] == 1012
        await finish(shop, crew, execution)
        await asyncio.to_thread(nodes[0].wait)
        await asyncio.to_thread(nodes[0].start)
        async with shop.client() as client:
            await client.resume("ws_1", heard[-1]["event_id"])
            await client.end(execution)
            assert types(heard + client.of(execution)) == WHOLE
        assert crew.begun == [execution]
