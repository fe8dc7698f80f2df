"""What stands before every request under /v2: ids, one line in the log, CORS, and an answer whatever happens."""

import json
import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.front import Front
from gateway.metrics import Metrics

pytestmark = pytest.mark.anyio

ORIGIN = "https://app.example"


class Said(list[Message]):
    """What was sent, message by message."""

    @property
    def status(self) -> int:
        return int(self[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self[1:])


async def well(scope: Scope, receive: Receive, send: Send) -> None:
    """An application without faults."""
    await PlainTextResponse("well")(scope, receive, send)


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a bug with a secret")


async def ask(
    app: ASGIApp,
    *body: Message,
    method: str = "GET",
    path: str = "/v2/agents",
    origins: tuple[str, ...] = (),
    **headers: str,
) -> Said:
    settings = SimpleNamespace(allowed_origins=origins)
    node: Any = SimpleNamespace(settings=settings, metrics=Metrics())
    given = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    messages = iter((*body, {"type": "http.disconnect"}))
    said = Said()

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        said.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": given, "query_string": b"token=secret"}
    await Front(app, node)(scope, receive, send)
    return said


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_request_without_an_id_gets_one() -> None:
    first, second = await ask(well), await ask(well)
    assert re.fullmatch("[0-9a-f]{16}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_an_id_that_is_given_comes_back() -> None:
    assert (await ask(well, X_Request_Id="job-7:b.2_3")).headers["x-request-id"] == "job-7:b.2_3"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, 'x"y', "é"])
async def test_an_id_that_cannot_stand_in_a_log_is_replaced(given: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", (await ask(well, X_Request_Id=given)).headers["x-request-id"])


async def test_a_request_is_one_line_without_its_query(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trunkline.api")
    await ask(well, X_Request_Id="job-7", Authorization="Bearer secret")
    [line] = caplog.messages
    assert re.fullmatch(r"GET an unknown path 200 in \d+\.\d ms \(request job-7\)", line)


async def test_what_is_not_ours_is_let_through_untouched(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trunkline.api")
    assert "x-request-id" not in (await ask(well, path="/metrics")).headers
    assert caplog.messages == []


async def test_a_bug_is_500_with_the_trace_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    said = await ask(broken, X_Request_Id="job-7")
    assert said.status == 500
    assert json.loads(said.body) == {
        "success": False,
        "error": {"code": "INTERNAL", "message": "Something went wrong on our side"},
    }
    assert said.headers["x-request-id"] == "job-7"
    assert "a bug ended a request (request job-7)" in caplog.text
    assert "RuntimeError: a bug with a secret" in caplog.text


async def test_a_bug_after_the_answer_began_ends_the_connection() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await ask(half)


async def test_what_nobody_read_of_a_body_is_thrown_away_after_the_answer() -> None:
    left = [part(b"x" * 1000), part(b"x", more=False)]
    said = await ask(well, *left, method="POST", Content_Length="1001")
    assert said.headers["connection"] == "close"
    assert said.body == b"well"
    assert said[-1] == {"type": "http.response.body", "body": b""}
    assert said[-2]["more_body"] is True


async def test_a_body_without_an_end_is_not_read_for_ever() -> None:
    endless = [part(b"x" * 1_000_000)] * 100
    said = await ask(well, *endless, method="POST", Transfer_Encoding="chunked")
    assert said.body == b"well"


async def test_any_origin_may_ask_unless_there_is_a_list() -> None:
    assert "access-control-allow-origin" not in (await ask(well)).headers
    said = await ask(well, Origin=ORIGIN)
    assert said.headers["access-control-allow-origin"] == "*"
    assert said.headers["access-control-expose-headers"] == "X-Request-Id, Retry-After, Link"


async def test_a_list_of_origins_names_who_may() -> None:
    said = await ask(well, Origin=ORIGIN, origins=(ORIGIN,))
    assert said.headers["access-control-allow-origin"] == ORIGIN
    assert said.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in (await ask(well, Origin="https://other", origins=(ORIGIN,))).headers


async def test_a_preflight_is_answered_without_a_token() -> None:
    said = await ask(broken, method="OPTIONS", Origin=ORIGIN, Access_Control_Request_Method="PUT")
    assert said.status == 204
    assert said.headers["access-control-allow-origin"] == "*"
    assert "PUT" in said.headers["access-control-allow-methods"]
    assert "Authorization" in said.headers["access-control-allow-headers"]


async def test_a_preflight_of_another_origin_is_refused() -> None:
    asked = {"Origin": "https://other", "Access_Control_Request_Method": "PUT"}
    said = await ask(well, method="OPTIONS", origins=(ORIGIN,), **asked)
    assert said.status == 403
    assert json.loads(said.body)["error"]["code"] == "FORBIDDEN"
