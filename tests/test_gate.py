"""A node lets in as many newcomers per second as it can carry, and tells the others when to come again."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.gate import LONGEST_SECONDS, Gate

from .support import Node, token


def test_a_quiet_node_lets_in_a_second_s_worth_at_once_and_the_rest_of_a_storm_later() -> None:
    gate = Gate(100, now=0.0)
    told = Counter(gate.wait(5.0) for _ in range(350))
    assert told == {0: 100, 1: 100, 2: 100, 3: 50}


def test_whoever_comes_back_when_told_is_let_in() -> None:
    gate = Gate(100, now=0.0)
    back = Counter(5.0 + gate.wait(5.0) for _ in range(350))
    del back[5.0]
    assert {at: {gate.wait(at) for _ in range(number)} for at, number in sorted(back.items())} == {
        6.0: {0},
        7.0: {0},
        8.0: {0},
    }


def test_whoever_comes_back_too_early_takes_nobody_s_place() -> None:
    gate = Gate(10, now=0.0)
    assert [gate.wait(0.0) for _ in range(10)] == [0] * 10
    for tick in range(1, 100):
        assert gate.wait(tick / 1000) > 0
    assert [gate.wait(1.0) for _ in range(10)] == [0] * 10


def test_whoever_will_not_be_told_sends_nobody_else_away_for_long() -> None:
    gate = Gate(10, now=0.0)
    assert max(gate.wait(0.0) for _ in range(100_000)) == LONGEST_SECONDS


def test_a_steady_stream_at_the_rate_is_let_in_for_ever() -> None:
    gate = Gate(50, now=0.0)
    assert {gate.wait(number / 50) for number in range(5_000)} == {0}


def test_a_rate_of_0_lets_everybody_in() -> None:
    gate = Gate(0, now=0.0)
    assert {gate.wait(1.0) for _ in range(10_000)} == {0}


@pytest.mark.anyio
async def test_a_storm_is_told_to_come_again_and_the_node_serves_who_is_in(start_node: Callable[..., Node]) -> None:
    node = start_node(max_handshakes_per_second=5)
    url, refused = f"{node.ws('/v2/ws')}?token={token('ws-1')}", []
    async with connect(url) as within:
        for _ in range(20):
            try:
                async with connect(url):
                    pass
            except InvalidStatus as error:
                refused.append(error.response)
        await within.send('{"type":"ping"}')
        async with asyncio.timeout(5):
            assert '"pong"' in str(await within.recv())
    assert len(refused) >= 10
    assert {answer.status_code for answer in refused} == {503}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    await asyncio.sleep(int(refused[0].headers["Retry-After"]))  # what it was told is the subject
    async with connect(url):
        pass
