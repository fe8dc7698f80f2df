"""`/openapi.json`, and `/docs`, which renders it: Swagger UI, from the files of the package flask-swagger-ui.

Of that package nothing is imported. The page loads nothing from elsewhere and runs no script that is not a file of
ours; so its policy forbids all else.
"""

from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from .agents import OPERATIONS
from .document import document

_DESCRIPTION = """MaxiCore's Agents API: create, change, list and delete agents, their souls and their shields.

Every answer but 204 is `{"success": true, "data": …}` or `{"success": false, "error": {"code", "message"}}`, also for
paths and methods that do not exist. The message of a wrong field begins with its path, as `$.soul.memory`.
An agent in a workspace that the token does not name does not exist."""

_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trunkline Agents API</title>
<link rel="stylesheet" href="docs/files/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/files/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<script src="docs/files/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

# The validator would send the document elsewhere.
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null});\n'


def routes() -> list[Route]:
    """The document and its page."""
    encoded = msgspec.json.encode(document(OPERATIONS, _DESCRIPTION))

    async def openapi(_: Request) -> Response:
        return Response(encoded, media_type="application/json", headers={"Access-Control-Allow-Origin": "*"})

    async def page(_: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_POLICY)

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript", headers=_POLICY)

    folder = _folder()

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return FileResponse(folder / name, headers=_POLICY)

    return [
        Route("/openapi.json", openapi),
        Route("/docs", page),
        Route("/docs/start.js", start),
        Route("/docs/files/{name}", file),
    ]


def _folder() -> Path:
    """Where the package keeps Swagger UI."""
    package = find_spec("flask_swagger_ui")
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0]) / "dist"
