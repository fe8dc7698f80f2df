"""How a body is read: up to its bound, and not for ever."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from gateway.api import bodies
from gateway.api.answers import REQUEST_TIMEOUT, Failure

pytestmark = pytest.mark.anyio


async def test_a_body_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "READ_SECONDS", 0)

    async def nothing_more() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "headers": [(b"content-length", b"9")]}, nothing_more)
    with pytest.raises(Failure) as refused:
        await bodies.read(request, 9)
    assert refused.value.problem is REQUEST_TIMEOUT


async def test_one_that_comes_bit_by_bit_is_read_to_its_end() -> None:
    parts = iter([b'{"na', b'me":', b'"x"}'])

    async def receive() -> Message:
        part = next(parts)
        return {"type": "http.request", "body": part, "more_body": part[-1:] != b"}"}

    request = Request({"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}, receive)
    assert await bodies.read(request, 12) == b'{"name":"x"}'
