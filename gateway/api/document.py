"""The OpenAPI 3.1 document, made from the operations and the very types that validate what comes and goes."""

from collections import defaultdict
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from . import answers
from .answers import Problem
from .bodies import JSON, YAML
from .operations import NoQuery, Operation
from .shapes import Items

_REF = "#/components/schemas/{name}"
_SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token that names workspaces and scopes, without `Bearer`; `trunkline token` makes one.",
    }
}

_HEADERS = {
    "X-Request-Id": ("string", "names this request in our logs: yours, or one that we made"),
    "Retry-After": ("integer", "seconds after which it is worth to come back"),
    "WWW-Authenticate": ("string", "how to authenticate"),
    "Link": (
        "string",
        'as long as there is more: `<…>; rel="next"` (RFC 8288) with the path and query of the next page. Whoever '
        "follows it finds each agent that was there throughout, with this status, once, whatever comes and goes",
    ),
}
_HEADERS_OF: dict[Any, tuple[str, ...]] = {  # by status, or by type of what is answered
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate",),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After",),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After",),
    Items: ("Link",),
}

_AGENT_ID = {
    "name": "agent_id",
    "in": "path",
    "required": True,
    "description": "id of the agent, as it was answered when the agent was made",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}

# What every operation may answer; what one with a token, a body or parameters may answer besides.
_ALWAYS = (answers.RATE_LIMITED, answers.INTERNAL, answers.UNAVAILABLE)
_WITH_TOKEN = (answers.INVALID_TOKEN, answers.FORBIDDEN)
_WITH_BODY = (
    answers.INVALID_REQUEST,
    answers.REQUEST_TIMEOUT,
    answers.PAYLOAD_TOO_LARGE,
    answers.UNSUPPORTED_MEDIA_TYPE,
)
_WITH_QUERY = (answers.INVALID_REQUEST,)
_WITH_ID = (answers.AGENT_NOT_FOUND, answers.NOT_FOUND)


def document(operations: Iterable[Operation], description: str) -> dict[str, Any]:
    """The document, ready to be encoded."""
    operations = tuple(operations)
    types = {kind for operation in operations for kind in _types(operation)}
    ordered = sorted(types, key=str)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    schema_of = dict(zip(ordered, schemas, strict=True))
    links = _links(operations)
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for operation in operations:
        paths[operation.path][operation.method.lower()] = _operation(operation, schema_of, links)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Trunkline Agents API", "version": "2.0", "description": description},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components | {"Error": _error()}, "securitySchemes": _SECURITY},
    }


def _types(operation: Operation) -> Iterable[Any]:
    return (kind for kind in (operation.body, operation.answer) if kind is not None)


def _links(operations: Iterable[Operation]) -> dict[str, Any]:
    """What can be done with an agent that has just been made."""
    parameters = {"agent_id": "$response.body#/data/id"}
    return {each.name: {"operationId": each.name, "parameters": parameters} for each in operations if each.has_agent}


def _operation(operation: Operation, schema_of: dict[Any, Any], links: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary, "tags": ["agents"]}
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.body is not None:
        media = (JSON, *YAML) if operation.may_be_yaml else (JSON,)
        content = {name: {"schema": schema_of[operation.body], "example": operation.example} for name in media}
        described["requestBody"] = {"required": True, "content": content}
    answer = _answer(operation, schema_of)
    if operation.status is HTTPStatus.CREATED:
        answer["links"] = links
    described["responses"] = {str(operation.status.value): answer} | _problems(operation)
    if operation.scope is not None:
        described["security"] = [{"token": []}]
        described["description"] = f"The token's scope must have `{operation.scope}`."
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    [query] = msgspec.json.schema(operation.query)["$defs"].values()
    found = [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in query["properties"].items()
    ]
    return [_AGENT_ID, *found] if operation.has_agent else found


def _answer(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": operation.status.phrase, "headers": _headers(operation.answer)}
    if operation.answer is not None:
        data = schema_of[operation.answer]
        schema = {
            "type": "object",
            "properties": {"success": {"const": True}, "data": data},
            "required": ["success", "data"],
            "additionalProperties": False,
        }
        described["content"] = {JSON: {"schema": schema}}
    return described


def _problems(operation: Operation) -> dict[str, Any]:
    """What may go wrong, by status; each code with an example."""
    by_status: dict[HTTPStatus, list[Problem]] = defaultdict(list)
    for problem in dict.fromkeys((*_common(operation), *operation.problems, operation.fault)):
        if problem is not answers.INVALID_REQUEST or operation.body or operation.query is not NoQuery:
            by_status[problem.status].append(problem)
    return {str(status.value): _problem(status, problems) for status, problems in sorted(by_status.items())}


def _common(operation: Operation) -> Iterable[Problem]:
    yield from _ALWAYS
    if operation.scope is not None:
        yield from _WITH_TOKEN
    if operation.body is not None:
        yield from _WITH_BODY
    if operation.query is not NoQuery:
        yield from _WITH_QUERY
    if operation.has_agent:
        yield from _WITH_ID


def _problem(status: HTTPStatus, problems: list[Problem]) -> dict[str, Any]:
    examples = {problem.code: {"value": answers.Failure(problem).body} for problem in problems}
    content = {JSON: {"schema": {"$ref": _REF.format(name="Error")}, "examples": examples}}
    return {"description": status.phrase, "headers": _headers(status), "content": content}


def _headers(answered: Any) -> dict[str, Any]:
    """Of a problem's status, or of the type of what is answered."""
    names = ("X-Request-Id", *_HEADERS_OF.get(answered, ()))
    return {name: {"schema": {"type": _HEADERS[name][0]}, "description": _HEADERS[name][1]} for name in names}


def _error() -> dict[str, Any]:
    codes = sorted({value.code for value in vars(answers).values() if isinstance(value, Problem)})
    error = {
        "type": "object",
        "properties": {"code": {"type": "string", "enum": codes}, "message": {"type": "string"}},
        "required": ["code", "message"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"success": {"const": False}, "error": error},
        "required": ["success", "error"],
        "additionalProperties": False,
    }
