"""The baseline of the Agents API: a route of Starlette's, on the server that a node has, that answers from memory.

    python -m tests.bench.plain PORT FILE

Whatever is asked under /v2/agents gets the bytes of FILE, which a node has sent as its answer. So what it costs is HTTP
and its framework: no token is looked at, nothing is counted, logged or read but the request's body.
"""

import gc
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.app import GC_THRESHOLDS
from gateway.server import UVICORN

_UVICORN_ADDS = ("date", "content-length")


def application(answer: bytes) -> Starlette:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    headers = {name: value for name, value in lines if name.lower() not in _UVICORN_ADDS}

    async def say(request: Request) -> Response:
        await request.body()
        return Response(body, headers=headers)

    return Starlette(routes=[Route("/v2/agents", say), Route("/v2/agents/{agent_id}", say, methods=["GET", "PUT"])])


def main() -> None:
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    body = Path(sys.argv[2]).read_bytes()
    uvicorn.run(application(body), host="127.0.0.1", port=int(sys.argv[1]), http="httptools", ws="none", **UVICORN)


if __name__ == "__main__":
    main()
