"""How a body is read: up to its bound, and not for ever."""

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from broker import Invalid
from gateway.api import bodies
from gateway.api.answers import REQUEST_TIMEOUT, UNAVAILABLE, UNSUPPORTED_MEDIA_TYPE, Failure

from .support import until

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


@pytest.mark.parametrize("content_type", [None, "application/json", bodies.FORM, "Application/X-WWW-Form-Urlencoded"])
async def test_what_curl_says_of_all_that_it_sends_is_json(content_type: str | None) -> None:
    assert await bodies.understand(b'{"a":1}', content_type, dict[str, int], may_be_yaml=True) == {"a": 1}


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/yaml"])
async def test_any_other_type_is_refused(content_type: str) -> None:
    with pytest.raises(Failure) as refused:
        await bodies.understand(b'{"a":1}', content_type, dict[str, int], may_be_yaml=False)
    assert refused.value.problem is UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("value", ["[],", "{},", "0,", '",",'])
async def test_json_of_too_many_values_is_not_even_decoded(value: str) -> None:
    body = '{"a":[' + value * bodies.MAX_VALUES
    with pytest.raises(Invalid, match=r"^\$: expected at most 65536 values$"):
        await bodies.understand(body.encode(), None, dict[str, Any], may_be_yaml=False)


class Slow:
    """Stands in for the YAML parser: each text takes until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun: list[str] = []

    def read(self, text: str) -> dict[str, Any]:
        self.begun.append(text)
        self.go_on.wait(30)
        return {}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr("gateway.api.yaml.read", slow.read)
    return slow


async def _yaml(text: bytes) -> dict[str, Any]:
    return await bodies.understand(text, "application/yaml", dict[str, Any], may_be_yaml=True)


async def test_yaml_is_read_one_at_a_time_and_the_loop_goes_on(slow: Slow) -> None:
    reading = [asyncio.create_task(_yaml(text)) for text in (b"a: 1", b"b: 1", b"c: 1")]
    await until(lambda: slow.begun)
    assert slow.begun == ["a: 1"]
    slow.go_on.set()
    assert await asyncio.gather(*reading) == [{}, {}, {}]
    assert slow.begun == ["a: 1", "b: 1", "c: 1"]


async def test_whoever_waits_too_long_for_that_is_told_to_come_back(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asyncio.create_task(_yaml(b"a: 1"))
    await until(lambda: slow.begun)
    monkeypatch.setattr(bodies, "YAML_SECONDS", 0)
    with pytest.raises(Failure) as refused:
        await _yaml(b"b: 1")
    assert refused.value.problem is UNAVAILABLE
    slow.go_on.set()
    assert await first == {}
    monkeypatch.undo()
    assert await _yaml(b"c: 1") == {"c": 1}
    assert slow.begun == ["a: 1"]
