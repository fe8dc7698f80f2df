"""The OpenAPI document says what the API does, and `/docs` renders it without help from elsewhere."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from gateway.api import answers
from gateway.api.agents import OPERATIONS
from gateway.api.answers import Problem
from gateway.api.operations import Operation

from .chromium import OPTIONS
from .support import Node, http
from .wire.seed import missing

pytest_plugins = ["tests.wire.fixtures"]

PROBLEMS = [value for value in vars(answers).values() if isinstance(value, Problem)]
# A path or a method that is none belongs to no operation.
OF_NO_OPERATION = {answers.METHOD_NOT_ALLOWED, answers.UPGRADE_REQUIRED}


@pytest.fixture(scope="module")
def document(shared_node: Node) -> Any:
    status, headers, body = http(shared_node.http("/openapi.json"))
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def described(document: Any, operation: Operation) -> Any:
    return document["paths"][operation.path][operation.method.lower()]


def test_it_has_every_operation_and_no_other(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    shown = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert shown == {(operation.method, operation.path) for operation in OPERATIONS}
    assert len(OPERATIONS) == 9


def test_it_is_valid_and_so_are_its_schemas(document: Any) -> None:
    OPENAPI_31_VALIDATOR.validate(document)
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_every_reference_leads_somewhere_and_every_schema_is_referred_to(document: Any) -> None:
    names = set(references(document))
    assert names == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    for name in names:
        place = document
        for part in name.removeprefix("#/").split("/"):
            place = place[part]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_shows_its_envelope_and_what_can_go_wrong(document: Any, operation: Operation) -> None:
    responses = described(document, operation)["responses"]
    assert {"429", "500", "503", str(operation.status.value)} <= set(responses)
    assert ({"401", "403"} <= set(responses)) == (operation.scope is not None)
    assert ({"413", "415"} <= set(responses)) == (operation.body is not None)
    for status, response in responses.items():
        assert "X-Request-Id" in response["headers"]
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        if status == "204":
            assert "content" not in response
        elif int(status) < 300:
            assert schema["properties"]["success"] == {"const": True}
        else:
            assert schema == {"$ref": "#/components/schemas/Error"}


def test_every_problem_is_shown_where_it_can_happen(document: Any) -> None:
    shown = {
        code
        for operation in OPERATIONS
        for response in described(document, operation)["responses"].values()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
    }
    assert shown == {problem.code for problem in PROBLEMS} - {problem.code for problem in OF_NO_OPERATION}


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.body], ids=lambda operation: operation.name)
def test_the_example_of_a_body_is_one(document: Any, operation: Operation) -> None:
    media = described(document, operation)["requestBody"]["content"]
    assert all(shown["example"] == operation.example for shown in media.values())
    msgspec.convert(operation.example, operation.body)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_a_parameter_says_what_it_is_for(document: Any, operation: Operation) -> None:
    for parameter in described(document, operation).get("parameters", []):
        assert parameter["description"]
        assert parameter["schema"]["type"]


def test_bounds_stand_in_the_document_as_they_are_checked(document: Any) -> None:
    [limit] = [each for each in described(document, OPERATIONS[0])["parameters"] if each["name"] == "limit"]
    assert limit["schema"].items() >= {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}.items()
    name = document["components"]["schemas"]["Draft"]["properties"]["name"]
    assert (name["minLength"], name["maxLength"]) == (1, 255)


def test_a_list_says_how_its_pages_stay_right(document: Any) -> None:
    listing = described(document, OPERATIONS[0])
    said = {each["name"]: each["description"] for each in listing["parameters"]}
    assert "shift" in said["offset"]
    assert "`Link`" in said["before"]
    assert "Link" in listing["responses"]["200"]["headers"]
    assert all(
        "Link" not in response["headers"] for status, response in listing["responses"].items() if status != "200"
    )
    assert "Link" not in described(document, OPERATIONS[1])["responses"]["201"]["headers"]


def test_any_page_may_read_it_without_a_token(shared_node: Node) -> None:
    assert http(shared_node.http("/openapi.json"))[1]["access-control-allow-origin"] == "*"


def test_the_page_has_a_strict_policy_and_only_files_of_ours(shared_node: Node) -> None:
    status, headers, body = http(shared_node.http("/docs"))
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    sources = re.findall(r'(?:src|href)="([^"]+)"', body.decode())
    assert len(sources) == 4
    for source in sources:
        assert http(shared_node.http(f"/{source}"))[0] == 200
    assert not re.search(rb"<script>|<style>| style=| on\w+=", body)


def test_nothing_else_can_be_read_there(shared_node: Node) -> None:
    for path in ("/docs/files/../__init__.py", "/docs/files/%2e%2e/__init__.py", "/docs/files/", "/docs/files/VERSION"):
        assert http(shared_node.http(path))[0] == 404


def test_a_browser_renders_it_within_its_policy(shared_node: Node, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    options = [*OPTIONS, f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [str(chromium), *options, "--dump-dom", shared_node.http("/docs")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for operation in OPERATIONS:
        assert operation.summary in done.stdout
    assert 'class="btn authorize' in done.stdout
    assert "CONSOLE" not in done.stderr
