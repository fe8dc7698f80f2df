"""What a node answers over HTTP: is it alive, is it ready, how is it, and the Agents API. All of it by Starlette."""

from http import HTTPStatus

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api import docs
from .api.agents import OPERATIONS
from .api.answers import METHOD_NOT_ALLOWED, NOT_FOUND, UPGRADE_REQUIRED, Failure, Problem
from .api.desk import Desk
from .api.front import Front, is_ours
from .dialects import ALL
from .node import Node


def application(node: Node) -> Starlette:
    """The HTTP side of `node`."""
    registry = CollectorRegistry()
    registry.register(node.metrics)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)

    async def live(_: Request) -> Response:
        """The process runs."""
        return PlainTextResponse("live\n")

    async def ready(_: Request) -> Response:
        """A newcomer would be served: Redis answers, the feed brings what is published, the node is not leaving."""
        if node.is_ready:
            return PlainTextResponse("ready\n")
        why = "leaving" if node.is_draining else "the feed is deaf" if node.feed.is_deaf else "no Redis"
        return PlainTextResponse(f"not ready: {why}\n", status_code=503, headers={"Retry-After": "1"})

    async def metrics(request: Request) -> Response:
        """Prometheus' format, in the form that the scraper asks for."""
        node.collect_counts()
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # it trips over versions that are none
            encode, content_type = choose_encoder("")
        return Response(encode(registry), media_type=content_type)

    desk = Desk(node)
    routes = [Route("/live", live), Route("/ready", ready), Route("/metrics", metrics)]
    routes += docs.routes()
    routes += [Route(each.path, desk.endpoint(each), methods=[each.method], name=each.name) for each in OPERATIONS]
    routes += [Route(dialect.path, _upgrade_required, methods=["GET"]) for dialect in ALL]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(LastAnswers, node), Middleware(Front, node)],
        exception_handlers={HTTPStatus.NOT_FOUND: _not_found, HTTPStatus.METHOD_NOT_ALLOWED: _not_allowed},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the host that the client says, and in no envelope
    return app


class LastAnswers:
    """An ASGI middleware: each answer of a node that is leaving is the last on its connection.

    What is asked next on a new one goes to another node. A connection on which nothing is asked is left alone until the
    end: to close it could cross with a request.
    """

    def __init__(self, app: ASGIApp, node: Node) -> None:
        self._app = app
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and self._node.is_draining:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, answer)


async def _upgrade_required(request: Request) -> Response:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return _refuse(request, UPGRADE_REQUIRED, headers)


async def _not_found(request: Request, _: Exception) -> Response:
    return _refuse(request, NOT_FOUND, {})


async def _not_allowed(request: Request, _: Exception) -> Response:
    """With the methods of every route of this path: Starlette tells those of one."""
    path = request.scope["route"].path
    methods = {method for route in request.app.routes if route.path == path for method in route.methods}
    return _refuse(request, METHOD_NOT_ALLOWED, {"Allow": ", ".join(sorted(methods))})


def _refuse(request: Request, problem: Problem, headers: dict[str, str]) -> Response:
    """In the envelope under /v2, elsewhere for people."""
    if is_ours(request.scope["path"]):
        return Failure(problem, headers=headers).response
    return PlainTextResponse(f"{problem.text}\n", problem.status, headers)
