"""The desk that every request comes to: who asks, may they, how often, what do they say; then it is performed."""

import time
from collections.abc import Awaitable, Callable
from math import ceil
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.agents import AgentMissing
from broker.errors import Invalid, Unavailable

from .. import addresses
from ..auth import Claims, Denied, UnknownKey, check_fingerprint, digest
from ..node import Node
from .answers import (
    AGENT_NOT_FOUND,
    FORBIDDEN,
    INVALID_AGENT_NAME,
    INVALID_REQUEST,
    INVALID_SHIELD,
    INVALID_SOUL,
    INVALID_TOKEN,
    RATE_LIMITED,
    UNAVAILABLE,
    Failure,
    success,
)
from .bodies import checked, read, understand
from .operations import Call, Operation

REQUESTS_PER_MINUTE = 600  # the default of `max_requests_per_minute`

Q = TypeVar("Q", bound=msgspec.Struct)


class Desk:
    """One node's."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._agents = node.broker.agents
        self._proxies = addresses.networks(node.settings.trusted_proxies)

    def endpoint(self, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        """What Starlette calls for `operation`."""

        async def endpoint(request: Request) -> Response:
            try:
                call = await self._understand(operation, request)
                return success(await operation.perform(call), operation.status)
            except Failure as failure:
                return failure.response
            except AgentMissing:
                return Failure(AGENT_NOT_FOUND).response
            except Unavailable:
                return Failure(UNAVAILABLE).response
            except Invalid as error:
                return _wrong(operation, error).response

        return endpoint

    async def _understand(self, operation: Operation, request: Request) -> Call:
        """Judge the request in the order in which it gets dearer: its body is read last."""
        claims = None
        if operation.scope is None:
            await self._count(f"api:address:{self._address(request)}", self._limit_of_strangers)
        else:
            claims = await self._admit(request, operation.scope)
        if not self._node.is_redis_up:
            raise Failure(UNAVAILABLE)
        agent_id = _agent_id(operation, request, claims)
        query = _query(request, operation.query)
        body = await self._body(operation, request) if operation.body else None
        return Call(self._agents, self._node.settings, claims, agent_id, query, body)

    async def _body(self, operation: Operation, request: Request) -> object:
        raw = await read(request, operation.max_bytes)
        content_type = request.headers.get("Content-Type")
        try:
            return await understand(raw, content_type, operation.body, may_be_yaml=operation.may_be_yaml)
        except Invalid as error:
            # Of what has the wrong shape, only an agent's name has a word of its own.
            if INVALID_AGENT_NAME in operation.problems and error.path == "$.name":
                raise Failure(INVALID_AGENT_NAME) from None
            raise Failure(operation.fault, str(error)) from None

    # -- who asks

    async def _admit(self, request: Request, scope: str) -> Claims:
        """Whose token it is, if it is good for `scope`. Raises `Failure`."""
        token = _token(request)
        try:
            claims = await self._verify(token)
            check_fingerprint(claims, request.headers.get("X-Client-Fingerprint"))
        except Denied as denied:
            self._node.metrics.auth_failures.add(denied.cause)
            raise Failure(INVALID_TOKEN) from None
        # By what is signed of it: the same token may have its signature spelt in several ways.
        await self._count(f"api:token:{digest(token.rpartition('.')[0])}", self._limit)
        if scope not in claims.scope:
            raise Failure(FORBIDDEN, f"The token's scope has no {scope}")
        return claims

    async def _verify(self, token: str) -> Claims:
        verifier = self._node.verifier
        try:
            return verifier.verify(token, time.time())
        except UnknownKey:
            await verifier.refresh()
        try:
            return verifier.verify(token, time.time())
        except UnknownKey:
            raise Denied("key") from None

    # -- how often

    @property
    def _limit(self) -> int:
        """Requests per minute and token; -1: no limit."""
        return self._node.settings.max_requests_per_minute or REQUESTS_PER_MINUTE

    @property
    def _limit_of_strangers(self) -> int:
        """Requests per minute and address from whoever has no token."""
        return self._limit if self._limit < 0 else max(1, self._limit // 10)

    async def _count(self, holder: str, limit: int) -> None:
        if limit < 0:
            return
        taken = await self._node.windows.take(holder, limit, 60)
        if not taken.is_granted:
            seconds = max(1, ceil(taken.resets_in))
            text = f"Too many requests. Try again in {seconds} seconds"
            raise Failure(RATE_LIMITED, text, headers={"Retry-After": str(seconds)})

    def _address(self, request: Request) -> str:
        peer = request.client.host if request.client else ""
        forwarded = request.headers.getlist("X-Forwarded-For")
        return addresses.holder(addresses.client_address(peer, forwarded, self._proxies))


def _token(request: Request) -> str:
    """What stands after `Bearer`; nothing, where that is not all that stands there."""
    given = request.headers.getlist("Authorization")
    scheme, _, token = given[0].strip().partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def _agent_id(operation: Operation, request: Request, claims: Claims | None) -> str:
    """The id in the path. An agent's own token is for that agent alone. Raises `Failure`."""
    own = claims.agent_id if claims else None
    if not operation.has_agent:
        if own is not None:
            raise Failure(FORBIDDEN, "An agent's own token is for that agent alone")
        return ""
    agent_id = str(request.path_params["agent_id"])
    if own is not None and own != agent_id:
        raise Failure(AGENT_NOT_FOUND)
    return agent_id


def _query(request: Request, kind: type[Q]) -> Q:
    """What the query says of `kind`. Raises `Failure`."""
    given = request.query_params
    for name in kind.__struct_fields__:
        # Whoever stands before us may have gone by another of them.
        if len(given.getlist(name)) > 1:
            raise Failure(INVALID_REQUEST, f"{name}: stands twice")
    try:
        return checked(lambda: msgspec.convert(dict(given), kind, strict=False))
    except Invalid as error:
        raise _wrong_query(error) from None


def _wrong_query(error: Invalid) -> Failure:
    return Failure(INVALID_REQUEST, f"{error.path.removeprefix('$.')}: {error.reason}")


def _wrong(operation: Operation, error: Invalid) -> Failure:
    """What a client hears of a value that the registry does not take, by its path in the agent."""
    if operation.body is None:
        return _wrong_query(error)
    if error.path == "$.name":
        return Failure(INVALID_AGENT_NAME)
    problem = operation.fault
    if problem is INVALID_REQUEST and error.path.startswith("$.soul"):
        problem = INVALID_SOUL
    if problem is INVALID_REQUEST and error.path.startswith("$.shield"):
        problem = INVALID_SHIELD
    path = "$" + error.path.removeprefix(operation.root)  # in the body
    return Failure(problem, f"{path}: {error.reason}")
