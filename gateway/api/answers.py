"""What the REST API says (seed 001): one envelope for everything, and one table of what can go wrong.

{"success": true, "data": …}        {"success": false, "error": {"code": "AGENT_NOT_FOUND", "message": "…"}}
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response

# Headers of every answer with such a status, unless it says its own. `Retry-After` is in seconds.
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "1"},
}


class Problem(NamedTuple):
    """`code` names it for programs, `text` is for people: the seed's own words where it has any."""

    status: HTTPStatus
    code: str
    text: str


INVALID_REQUEST = Problem(HTTPStatus.BAD_REQUEST, "INVALID_REQUEST", "The request cannot be understood")
INVALID_AGENT_NAME = Problem(
    HTTPStatus.BAD_REQUEST, "INVALID_AGENT_NAME", "Agent name must be 1-255 characters"
)  # fmt: skip
INVALID_SOUL = Problem(HTTPStatus.BAD_REQUEST, "INVALID_SOUL", "The soul is not valid")
INVALID_SHIELD = Problem(HTTPStatus.BAD_REQUEST, "INVALID_SHIELD", "The shield is not valid")
INVALID_TOKEN = Problem(HTTPStatus.UNAUTHORIZED, "INVALID_TOKEN", "Token expired or invalid")
INVALID_PAIRING_KEY = Problem(
    HTTPStatus.UNAUTHORIZED, "INVALID_PAIRING_KEY", "The pairing key is unknown, used or expired"
)
FORBIDDEN = Problem(HTTPStatus.FORBIDDEN, "FORBIDDEN", "The token does not allow this")
AGENT_NOT_FOUND = Problem(HTTPStatus.NOT_FOUND, "AGENT_NOT_FOUND", "Agent does not exist")
NOT_FOUND = Problem(HTTPStatus.NOT_FOUND, "NOT_FOUND", "There is nothing at this path")
METHOD_NOT_ALLOWED = Problem(
    HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "The path has no such method"
)  # fmt: skip
REQUEST_TIMEOUT = Problem(HTTPStatus.REQUEST_TIMEOUT, "REQUEST_TIMEOUT", "The body did not come in time")
PAYLOAD_TOO_LARGE = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "PAYLOAD_TOO_LARGE", "The body is too large")
UNSUPPORTED_MEDIA_TYPE = Problem(
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", "The body is of a type that is not read here"
)
UPGRADE_REQUIRED = Problem(
    HTTPStatus.UPGRADE_REQUIRED, "UPGRADE_REQUIRED", "This is a WebSocket: connect with ws:// or wss://"
)
RATE_LIMITED = Problem(HTTPStatus.TOO_MANY_REQUESTS, "RATE_LIMITED", "Too many requests")
INTERNAL = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", "Something went wrong on our side")
UNAVAILABLE = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE", "The service is not available at the moment, try again"
)


class Failure(Exception):  # noqa: N818
    """A request that is answered with `problem`. `detail` takes the place of its text; never with a secret in it."""

    def __init__(self, problem: Problem, detail: str = "", *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail or problem.text)
        self.problem = problem
        self.headers = _HEADERS.get(problem.status, {}) | dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"success": False, "error": {"code": self.problem.code, "message": str(self)}}

    @property
    def response(self) -> Response:
        return _response(self.body, self.problem.status, self.headers)


class Headed(NamedTuple):
    """What an operation answers, with headers besides."""

    data: Any
    headers: Mapping[str, str]


def success(answer: Any, status: int = HTTPStatus.OK) -> Response:
    """The answer that carries `answer`, which may be `Headed`; for 204 there is nothing to carry."""
    if status == HTTPStatus.NO_CONTENT:
        return Response(status_code=status)
    data, headers = answer if isinstance(answer, Headed) else (answer, {})
    return _response({"success": True, "data": data}, status, headers)


def _response(body: dict[str, Any], status: int, headers: Mapping[str, str]) -> Response:
    # A pairing key or a token may be in it.
    headers = {"Cache-Control": "no-store", **headers}
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
