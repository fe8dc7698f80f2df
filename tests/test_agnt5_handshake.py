"""AGNT5's handshake (seed 002, "Authentication", and our reading of it): who comes in, and what the others are told.

Keys and places are looked for on two nodes. That a browser sees a refusal as 1006 is shown with a browser, elsewhere.
"""

import asyncio
import contextlib
import json
import secrets
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
import websockets

from .agnt5 import Agnt5, Refusal, Shop, agnt5, opened, refusal, refused
from .support import Node, http, private_redis, until
from .test_secrets import needles

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]

StartNode = Callable[..., Node]


def assert_told(answer: Refusal, status: int, code: str, *, may_come_back: bool = False) -> None:
    """The refusal is this one, in its documented shape, and says when to try again if that is of use."""
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (status, "application/json")
    said = json.loads(answer.body)
    assert said.keys() == {"error"}
    assert said["error"].keys() == {"code", "message"}
    assert said["error"]["code"] == code
    assert said["error"]["message"]
    assert ("Retry-After" in answer.headers) is may_come_back
    assert not may_come_back or int(answer.headers["Retry-After"]) >= 1


# --- Who comes in ---


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        (["{key}"], "{key}"),
        (["{key}", "agnt5"], "agnt5"),
        (["agnt5", "{key}"], "agnt5"),
        (["{key}", "graphql-ws"], "{key}"),
        (["graphql-ws", "{key}", "chat"], "{key}"),
    ],
)
async def test_the_subprotocol_answered_is_the_key_or_agnt5_where_that_is_offered(
    shop: Shop, offered: list[str], answered: str
) -> None:
    key = f"x-api-key.{shop.key}"
    async with shop.client(offered=[word.format(key=key) for word in offered]) as client:
        assert client.socket.subprotocol == answered.format(key=key)
        assert await client.synchronise() == []


async def test_nothing_is_said_before_the_client_speaks(shop: Shop) -> None:
    async with shop.client() as client:
        assert await client.synchronise() == []
        assert [message["type"] for message in client.messages] == ["pong"]


async def test_a_new_key_opens_its_endpoint_on_every_node_beside_the_others(shop: Shop) -> None:
    another = await shop.credentials.create(shop.endpoint, shop.workspace)
    for node in shop.nodes:
        for key in (shop.key, another.key):
            async with agnt5(node, shop.endpoint, key) as client:
                assert await client.synchronise() == []


async def test_of_an_endpoint_given_twice_the_last_counts(shop: Shop) -> None:
    async with agnt5(shop.nodes[0], f"nobody-here&x-wf-endpoint={shop.endpoint}&x=y", shop.key) as client:
        assert await client.synchronise() == []
    assert_told(
        await refusal(shop.nodes[0], f"{shop.endpoint}&x-wf-endpoint=nobody-here", shop.key), 404, "ENDPOINT_NOT_FOUND"
    )


async def test_an_endpoint_may_be_escaped(shop: Shop) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in shop.endpoint.encode())
    async with agnt5(shop.nodes[0], escaped, shop.key) as client:
        assert await client.synchronise() == []


# --- Who does not ---


@pytest.mark.parametrize("endpoint", [None, ""])
async def test_without_an_endpoint_it_is_400(shop: Shop, endpoint: str | None) -> None:
    assert_told(await refusal(shop.nodes[0], endpoint, shop.key), 400, "ENDPOINT_MISSING")


@pytest.mark.parametrize("endpoint", ["nobody-here", "{endpoint}x", "a%20b", "%7Bx%7D", "%ff", "%00", "x" * 300])
async def test_an_endpoint_that_nobody_made_a_key_for_is_404(shop: Shop, endpoint: str) -> None:
    name = endpoint.format(endpoint=shop.endpoint)
    assert_told(await refusal(shop.nodes[0], name, shop.key), 404, "ENDPOINT_NOT_FOUND")


BAD_OFFERS = {
    "none": [],
    "only agnt5": ["agnt5"],
    "a key without what says so": ["{key}"],
    "no key after what says so": ["x-api-key."],
    "rubbish": ["x-api-key.rubbish"],
    "a key that is not whole": ["x-api-key.{short}"],
    "a key and more": ["x-api-key.{key}0"],
    "a key in capitals": ["x-api-key.{capitals}"],
    "another word for it": ["api-key.{key}"],
    "rubbish beside agnt5": ["agnt5", "x-api-key.rubbish"],
}


@pytest.mark.parametrize("offered", BAD_OFFERS.values(), ids=BAD_OFFERS)
async def test_a_bad_key_is_401_and_so_is_none(shop: Shop, offered: list[str]) -> None:
    words = {"key": shop.key, "short": shop.key[:-1], "capitals": shop.key.upper()}
    offered = [word.format(**words) for word in offered]
    assert_told(await refusal(shop.nodes[0], shop.endpoint, offered=offered), 401, "INVALID_API_KEY")


async def test_a_key_counts_nowhere_but_in_the_subprotocol(shop: Shop) -> None:
    for endpoint, headers in [
        (shop.endpoint, {"Authorization": f"Bearer {shop.key}"}),
        (shop.endpoint, {"X-Api-Key": shop.key}),
        (f"{shop.endpoint}&x-api-key={shop.key}", {}),
    ]:
        answer = await refusal(shop.nodes[0], endpoint, additional_headers=headers)
        assert_told(answer, 401, "INVALID_API_KEY")
        assert shop.key not in f"{answer}"


async def test_a_key_of_another_endpoint_is_403(shop: Shop) -> None:
    for workspace in (shop.workspace, f"{shop.workspace}-b"):
        async with opened(shop.nodes, workspace=workspace) as other:
            assert_told(await refusal(shop.nodes[0], shop.endpoint, other.key), 403, "FORBIDDEN")
            assert_told(await refusal(shop.nodes[1], other.endpoint, shop.key), 403, "FORBIDDEN")


# --- Fifty connections to an endpoint ---


class Seats(contextlib.AsyncExitStack):
    """Connections of a shop that stay until the end of a test."""

    async def take(self, shop: Shop, node: int) -> Agnt5:
        return await self.enter_async_context(shop.client(node))


async def test_the_51st_connection_to_an_endpoint_is_429_on_either_node(shop: Shop) -> None:
    async with Seats() as seats, opened(shop.nodes, workspace=shop.workspace) as other:
        fifty = [await seats.take(shop, number % 2) for number in range(50)]
        another = await shop.credentials.create(shop.endpoint, shop.workspace)
        for node in shop.nodes:
            for key in (shop.key, another.key):
                answer = await refusal(node, shop.endpoint, key)
                assert_told(answer, 429, "TOO_MANY_CONNECTIONS", may_come_back=True)
            assert_told(await refusal(node, shop.endpoint, "rubbish"), 401, "INVALID_API_KEY")
        await seats.take(other, 0)  # another endpoint has places of its own
        for client in fifty:
            assert await client.synchronise() == []

        fifty[0].vanish()
        await fifty[1].socket.close()
        for number in (1, 0):
            await until(lambda number=number: _has_place(shop, seats, number))  # type: ignore[misc]
        for number in (0, 1):
            answer = await refusal(shop.nodes[number], shop.endpoint, shop.key)
            assert_told(answer, 429, "TOO_MANY_CONNECTIONS", may_come_back=True)


async def _has_place(shop: Shop, seats: Seats, node: int) -> bool:
    with contextlib.suppress(websockets.InvalidStatus):
        await seats.take(shop, node)
        return True
    return False


async def test_who_is_refused_takes_no_place(shop: Shop) -> None:
    async with Seats() as seats:
        for _ in range(60):
            await refusal(shop.nodes[0], shop.endpoint, "rubbish")
        for number in range(50):
            await seats.take(shop, number % 2)


async def test_fifty_come_at_once_and_no_more(shop: Shop) -> None:
    """Seventy of them, to both nodes."""

    async def come(seats: Seats, number: int) -> int:
        try:
            await seats.take(shop, number % 2)
        except websockets.InvalidStatus as refused:
            return refused.response.status_code
        return 101

    async with Seats() as seats:
        answers = await asyncio.gather(*(come(seats, number) for number in range(70)))
        assert (answers.count(101), answers.count(429)) == (50, 20)


# --- A node that cannot ---


async def test_a_draining_node_sends_newcomers_away_and_closes_with_1012(
    start_node: StartNode, redis_url: str, prefix: str
) -> None:
    node = start_node(drain_wait_seconds=1, drain_seconds=0)
    async with opened([node]) as shop, shop.client() as client:
        node.signal(signal.SIGTERM)
        await until(lambda: http(node.http("/ready"))[0] != 200)
        assert_told(await refusal(node, shop.endpoint, shop.key), 503, "UNAVAILABLE", may_come_back=True)
        assert await client.synchronise() == []
        assert (await client.closed())[0] == 1012
        assert {message["type"] for message in client.messages} == {"pong"}  # the document knows no farewell
        assert await asyncio.to_thread(node.wait) == 0


async def test_without_redis_nobody_comes_in_and_who_is_in_stays(start_node: StartNode) -> None:
    with private_redis(appendonly="yes", appendfsync="always") as redis:
        node = start_node(redis_url=redis.url)
        async with opened([node]) as shop, shop.client() as client:
            assert await client.synchronise() == []
            await asyncio.to_thread(redis.stop)
            assert_told(await refusal(node, shop.endpoint, shop.key), 503, "UNAVAILABLE", may_come_back=True)
            await client.run("noop", connection_id="ws_1")
            answer = await client.receive()
            assert refused([answer]) == ["UNAVAILABLE"]
            details = answer["data"]["details"]
            assert (details["name"], details["connection_id"]) == ("noop", "ws_1")
            assert await client.synchronise() == []

            await asyncio.to_thread(redis.start)
            await until(lambda: _opens(shop))
            async with shop.crew():
                await client.start("noop")
                assert (await client.end())["type"] == "execution_completed"


async def _opens(shop: Shop) -> bool:
    with contextlib.suppress(websockets.InvalidStatus):
        async with shop.client():
            return True
    return False


# --- A key that is revoked ---


async def test_revoking_a_key_closes_its_connections_on_every_node_within_a_second(shop: Shop) -> None:
    another = await shop.credentials.create(shop.endpoint, shop.workspace)
    async with Seats() as seats:
        theirs = [await seats.take(shop, number % 2) for number in range(4)]
        kept = [await seats.enter_async_context(agnt5(node, shop.endpoint, another.key)) for node in shop.nodes]
        revoked = monotonic()
        await shop.credentials.revoke(shop.made.id)
        for client in theirs:
            code, reason = await client.closed()
            assert code == 1008
            assert shop.key not in reason
            assert client.messages == []
        assert monotonic() - revoked < 1
        for client in kept:
            assert await client.synchronise() == []
        for node in shop.nodes:
            assert_told(await refusal(node, shop.endpoint, shop.key), 401, "INVALID_API_KEY")
            async with agnt5(node, shop.endpoint, another.key) as client:
                assert await client.synchronise() == []


async def test_a_run_goes_on_when_the_key_that_started_it_is_revoked(shop: Shop) -> None:
    another = await shop.credentials.create(shop.endpoint, shop.workspace)
    async with shop.crew() as crew:
        async with shop.client() as client:
            execution = await client.start("wait", connection_id="ws_1")
            await shop.credentials.revoke(shop.made.id)
            assert (await client.closed())[0] == 1008
        async with agnt5(shop.nodes[1], shop.endpoint, another.key) as client:
            await client.resume("ws_1")
            crew.go.set()
            assert (await client.end(execution))["type"] == "execution_completed"


# --- Keys stay secret ---


async def test_no_key_is_in_anything_a_node_says(start_node: StartNode) -> None:
    node = start_node(log_level="debug")
    async with opened([node]) as shop, opened([node]) as other:
        bad = f"tlk_{secrets.token_hex(24)}"
        answers: list[Any] = [await refusal(node, endpoint, bad) for endpoint in (None, "nobody-here", shop.endpoint)]
        answers.append(await refusal(node, shop.endpoint, other.key))
        answers.append(await refusal(node, shop.endpoint, offered=[bad, f"api-key.{bad}"]))
        answers.append(await refusal(node, f"nobody-here&x-api-key={bad}&key={shop.key}"))
        answers.append(await refusal(node, shop.key, bad))  # in the wrong place
        async with shop.crew(), shop.client(offered=["agnt5", f"x-api-key.{shop.key}"]) as client:
            answers.append(client.socket.response)
            for words in (shop.key, {"name": shop.key}, {"type": shop.key}, {"name": "noop", "x-api-key": shop.key}):
                await client.ask(words)
            await client.start("echo", {"key": shop.key})
            await client.end()
            await shop.credentials.revoke(shop.made.id)
            answers.append((await client.closed())[1])
        answers.append(await refusal(node, shop.endpoint, shop.key))
        _, _, metrics = http(node.http("/metrics"))
        for key in (shop.key, other.key, bad):
            for needle in needles(key):
                assert needle not in f"{answers}"
                assert needle not in metrics.decode()
                assert needle not in node.output()


async def test_who_vanishes_while_its_key_is_checked_leaves_nothing(start_node: StartNode) -> None:
    node = start_node(max_connections_per_endpoint=1000)
    async with opened([node]) as shop:
        request = (
            f"GET /ws?x-wf-endpoint={shop.endpoint} HTTP/1.1\r\nHost: x\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: x-api-key.{shop.key}\r\n\r\n"
        )

        async def vanish(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(request.encode())
            await asyncio.sleep(number % 40 / 10_000)  # before, while and after Redis answers
            writer.transport.abort()

        for _ in range(5):
            await asyncio.gather(*(vanish(number) for number in range(80)))
        await until(lambda: not node.metric("trunkline_connections"), what="nobody to be here")
        await until(lambda: not node.metric("trunkline_leases"), what="all places to be free")
