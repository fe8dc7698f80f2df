"""What a node answers over HTTP: is it alive, is it ready, how is it. All of it by Starlette."""

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

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
        """A newcomer would be served: Redis answers, the feed stands, the node is not leaving."""
        if node.is_ready:
            return PlainTextResponse("ready\n")
        why = "leaving" if node.is_draining else "no Redis"
        return PlainTextResponse(f"not ready: {why}\n", status_code=503, headers={"Retry-After": "1"})

    async def metrics(request: Request) -> Response:
        """Prometheus' format, in the form that the scraper asks for."""
        node.collect_counts()
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # it trips over versions that are none
            encode, content_type = choose_encoder("")
        return Response(encode(registry), media_type=content_type)

    routes = [Route("/live", live), Route("/ready", ready), Route("/metrics", metrics)]
    routes += [Route(dialect.path, _upgrade_required, methods=["GET"]) for dialect in ALL]
    return Starlette(routes=routes)


async def _upgrade_required(_: Request) -> Response:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return PlainTextResponse("this is a WebSocket: connect with ws:// or wss://\n", status_code=426, headers=headers)
