"""What stands before every request under /v2: an id, one line in the log, CORS, and an answer whatever happens.

A refused request may have a body that nobody read. Closing the socket on it would cost the client our answer (TCP
resets what was sent), reading it to its end would let anybody keep us busy: so after the answer a bounded part of it is
read and thrown away, and the connection ends.

A node that is leaving answers as long as it can be reached: a balancer that has not noticed yet may send a GET that was
refused to another node, but no POST.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from time import perf_counter

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..node import Node
from .answers import FORBIDDEN, INTERNAL, Failure

logger = logging.getLogger("trunkline.api")

LINGER_BYTES = 16 * 1024 * 1024
LINGER_SECONDS = 2.0
PREFLIGHT_SECONDS = 600

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


def is_ours(path: str) -> bool:
    """True for what is answered in the envelope: also where a base URL with a slash at its end made two of one."""
    return path.lstrip("/").partition("/")[0] == "v2"


class Front:
    """An ASGI middleware for the routes of `node`."""

    def __init__(self, app: ASGIApp, node: Node) -> None:
        self._app = app
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_ours(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        started, request_id = perf_counter(), _request_id(headers)
        extra = {"X-Request-Id": request_id, **self._cors(headers)}
        exchange = Exchange(headers, receive, send, extra)
        try:
            app: ASGIApp = self._refusal(scope, headers) or self._app
            await app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except Exception:
            logger.exception("a bug ended a request (request %s)", request_id)
            if exchange.status:
                raise  # the answer has begun: uvicorn cuts the connection
            await Failure(INTERNAL).response(scope, exchange.receive, exchange.send)
        finally:
            # The route, not the path: nothing of ours logs what a client said.
            path = getattr(scope.get("route"), "path", "an unknown path")
            self._node.metrics.http_requests.add(str(exchange.status or "left"))
            took, status = 1000 * (perf_counter() - started), exchange.status or "left"
            logger.info("%s %s %s in %.1f ms (request %s)", scope["method"], path, status, took, request_id)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to what need not be asked any further."""
        if scope["method"] == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers:
            return _PREFLIGHT if self._cors(headers) else Failure(FORBIDDEN, "this origin is not allowed").response
        return None

    def _cors(self, headers: Headers) -> dict[str, str]:
        """A token is sent by a script, never by the browser itself: with no list, any origin may."""
        origin, allowed = headers.get("Origin"), self._node.settings.allowed_origins
        if origin is None or (allowed and origin not in allowed):
            return {}
        cors = {"Access-Control-Allow-Origin": origin if allowed else "*"}
        if allowed:
            cors["Vary"] = "Origin"
        return cors | {"Access-Control-Expose-Headers": "X-Request-Id, Retry-After, Link"}


class Exchange:
    """One request and its answer, which has `extra` headers. `status` is None until the answer has begun."""

    def __init__(self, headers: Headers, receive: Receive, send: Send, extra: dict[str, str]) -> None:
        self._receive = receive
        self._send = send
        self._extra = [(name.lower().encode(), value.encode("latin-1")) for name, value in extra.items()]
        self._is_read = headers.get("Content-Length", "0") == "0" and "Transfer-Encoding" not in headers
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            close = [] if self._is_read else [(b"connection", b"close")]
            await self._send({**message, "headers": [*message["headers"], *self._extra, *close]})
        elif self._is_read:
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b""})

    async def _linger(self) -> None:
        """Throw away what the client is still sending, within bounds."""
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._is_read and left > 0:
                    left -= len((await self.receive()).get("body", b""))


def _request_id(headers: Headers) -> str:
    """The one that was given, if it can stand in a log; else a new one."""
    given = headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


_PREFLIGHT = Response(
    status_code=204,
    headers={
        "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-Id, X-Client-Fingerprint",
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    },
)
