"""Every curl line and every JSON example of the Agents document (seed 001) works as it stands: a test each, by section.

A curl line is run by bash with the real curl, its text unchanged: only the host in front of its URL becomes the node's.
A body is sent twice: as the document writes it, and as our own documentation does, where the document is not there.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

import pytest

from broker import Broker
from broker.agents.model import Draft
from gateway.api import examples

from ..rest import Rest
from ..support import Node, token, until
from .examples import TASK_COMPLETED
from .helpers import as_event, producer
from .seed import missing, text

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.wire.fixtures"]

HOST = "https://api.maxicore.ch"
CURL = (
    f'curl() {{ command curl --silent --show-error --max-time 10 "${{@/{HOST.replace("/", chr(92) + "/")}/$NODE}}"; }}'
)


def block(heading: str, language: str, number: int = 1) -> str:
    """The `number`th block of `language` after the line `heading`: it ends before the next empty line."""
    lines = text("001")
    at = lines.index(heading)
    for _ in range(number):
        at = lines.index(language, at + 1)
    return "\n".join(lines[at + 1 : lines.index("", at)])


def example(heading: str, number: int = 1) -> Any:
    """A JSON block; what it leaves out stands as an empty object."""
    return json.loads(re.sub(r"/\*.*?\*/", "", block(heading, "json", number)))


def curl(node: Node, heading: str) -> Any:
    """What the curl line of a section is answered."""
    if shutil.which("curl") is None:
        missing("curl is not installed")
    environment = {"PATH": os.environ["PATH"], "TOKEN": token("ws-456"), "NODE": node.http("")}
    done = subprocess.run(
        ["bash", "-c", f"{CURL}\n{block(heading, 'bash')}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return json.loads(done.stdout)


def kinds(value: Any) -> Any:
    """The shape of an answer: its keys, and the kinds of their values."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    return [kinds(inner) for inner in value] if isinstance(value, list) else type(value)


Body = Callable[[str, dict[str, Any]], bytes]


def as_it_stands(heading: str, _: dict[str, Any]) -> bytes:
    """The body under `heading`."""
    return block(heading, "json").encode()


def as_we_show_it(_: str, ours: dict[str, Any]) -> bytes:
    return json.dumps(ours).encode()


BODIES = pytest.mark.parametrize("body", [as_it_stands, as_we_show_it])


@pytest.fixture
def rest(shared_node: Node) -> Rest:
    return Rest(shared_node, "ws-456")


@pytest.fixture
def path(rest: Rest) -> str:
    """An agent that was made as the document makes one."""
    answer = rest.ask("POST", "/v2/agents", examples.CREATE)
    return f"/v2/agents/{answer.data['id']}"


@pytest.fixture
async def agent_123(node: Node) -> AsyncIterator[dict[str, Any]]:
    """The very agent of the document, on a node of its own: it is online and has done work for 5420 credits."""
    rest = Rest(node, "ws-456")
    details = example("Agent-Details abrufen")["data"]
    async with producer(node) as broker:
        await _make(broker, details)
        event = as_event(TASK_COMPLETED, "ws-456")
        event.data["credits_used"] = 5420
        await broker.publish(event)
        listening = asyncio.create_task(anext(broker.commands("agent-123", workspace_id="ws-456")))
        await until(lambda: rest.ask("GET", "/v2/agents/agent-123").data["status"] == "online")
        yield details
        listening.cancel()
        await asyncio.wait((listening,))


async def _make(broker: Broker, details: dict[str, Any]) -> None:
    draft = Draft(name=details["name"], workspace_id="ws-456", soul=details["soul"], shield=details["shield"])
    with mock.patch("secrets.token_hex", return_value="123"):
        assert (await broker.agents.create("ws-456", draft)).id == details["id"]


async def test_list_with_curl(node: Node, agent_123: dict[str, Any]) -> None:
    shown, answer = example("Agents auflisten"), curl(node, "Agents auflisten")
    assert kinds(answer) == kinds(shown)
    [item] = answer["data"]["items"]
    assert item == shown["data"]["items"][0] | {"last_activity": item["last_activity"]}
    # The document asks for 10 and shows 20.
    assert answer["data"] == shown["data"] | {"items": [item], "limit": 10}


async def test_details_with_curl(node: Node, agent_123: dict[str, Any]) -> None:
    answer = curl(node, "Agent-Details abrufen")
    data = answer["data"]
    varying = {name: data[name] for name in ("created_at", "last_activity")}
    assert answer == {"success": True, "data": agent_123 | varying | {"credits_used": 5420}}
    assert kinds(varying) == {"created_at": str, "last_activity": str}


async def test_list_and_details_show_what_was_made(rest: Rest, path: str) -> None:
    details = rest.ask("GET", path).data
    [item] = [each for each in rest.ask("GET", "/v2/agents?limit=100").data["items"] if path.endswith(each["id"])]
    assert list(item) == ["id", "name", "status", "workspace_id", "mode", "last_activity", "credits_used"]
    assert list(details)[:7] == ["id", "name", "status", "mode", "workspace_id", "created_at", "last_activity"]
    assert list(details)[7:] == ["credits_used", "soul", "shield"]
    assert details.items() >= item.items()
    assert details["soul"] == examples.CREATE["soul"]


@BODIES
async def test_create(rest: Rest, body: Body) -> None:
    answer = rest.ask("POST", "/v2/agents", body("Agent erstellen", examples.CREATE), Content_Type="application/json")
    assert answer.status == 201
    assert list(answer.data) == ["id", "name", "pairing_key"]
    assert answer.data["name"] == "Data Pipeline Agent"
    assert re.fullmatch(r"agent-\w+", answer.data["id"])
    assert re.fullmatch(r"MC-DATA-\w+-\w{6}", answer.data["pairing_key"])
    kept = rest.ask("GET", f"/v2/agents/{answer.data['id']}").data
    assert kept.items() >= (examples.CREATE | {"shield": examples.CREATE["shield"] | {"version": "2.0"}}).items()


@BODIES
async def test_update(rest: Rest, path: str, body: Body) -> None:
    answer = rest.ask("PUT", path, body("Agent aktualisieren", examples.UPDATE))
    assert answer.status == 200
    assert answer.data["name"] == "Production Data Pipeline"
    assert answer.data["soul"] == examples.CREATE["soul"] | examples.UPDATE["soul"]
    assert answer.data == rest.ask("GET", path).data


async def test_curl_may_leave_the_type_of_a_body_to_itself(rest: Rest, path: str) -> None:
    """Then it says that it is a form."""
    if shutil.which("curl") is None:
        missing("curl is not installed")
    headers = ("--header", f"Authorization: Bearer {rest.token}")
    command = ("curl", "--silent", "--max-time", "10", "-X", "PUT", rest.node.http(path), *headers, "-d")
    done = subprocess.run([*command, json.dumps(examples.UPDATE)], capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout)["data"]["name"] == examples.UPDATE["name"]


@pytest.mark.parametrize("query", ["", "?purge=false", "?purge=true"])
async def test_delete(rest: Rest, path: str, query: str) -> None:
    answer = rest.ask("DELETE", path + query)
    assert (answer.status, answer.body) == (204, None)
    assert rest.ask("GET", path).status == 404


@BODIES
async def test_soul(rest: Rest, path: str, body: Body) -> None:
    answer = rest.ask("POST", f"{path}/soul", body("Soul-Dokument aktualisieren", examples.SOUL))
    assert answer.status == 200
    assert answer.data == examples.CREATE["soul"] | examples.SOUL


@BODIES
async def test_soul_as_yaml(rest: Rest, path: str, body: Body) -> None:
    """JSON is YAML, so the example is both."""
    said = body("Soul-Dokument aktualisieren", examples.SOUL)
    answer = rest.ask("POST", f"{path}/soul", said, Content_Type="application/yaml")
    assert answer.data == examples.CREATE["soul"] | examples.SOUL


async def test_get_shield(rest: Rest, path: str) -> None:
    shown = example("Shield-Policies abrufen")
    assert rest.ask("PUT", f"{path}/shield", shown["data"]).status == 200
    answer = rest.ask("GET", f"{path}/shield")
    assert answer.status == 200
    assert answer.body == shown


@BODIES
async def test_put_shield(rest: Rest, path: str, body: Body) -> None:
    answer = rest.ask("PUT", f"{path}/shield", body("Shield-Policies aktualisieren", examples.SHIELD))
    assert answer.status == 200
    assert answer.data == {"version": "2.0"} | examples.SHIELD


async def test_400(rest: Rest) -> None:
    answer = rest.ask("POST", "/v2/agents", examples.CREATE | {"name": ""})
    assert (answer.status, answer.body) == (400, example("400 Bad Request"))


async def test_401(shared_node: Node) -> None:
    answer = Rest(shared_node, credentials=token(ttl=-1)).ask("GET", "/v2/agents")
    assert (answer.status, answer.body) == (401, example("401 Unauthorized"))


async def test_404(rest: Rest) -> None:
    answer = rest.ask("GET", "/v2/agents/agent-0")
    assert (answer.status, answer.body) == (404, example("404 Not Found"))


async def test_429(start_node: Callable[..., Node]) -> None:
    rest = Rest(start_node(max_requests_per_minute=1))
    rest.ask("GET", "/v2/agents")
    answer = rest.ask("GET", "/v2/agents")
    seconds = answer.headers["retry-after"]
    shown = json.dumps(example("429 Too Many Requests")).replace("60 seconds", f"{seconds} seconds")
    assert (answer.status, answer.body) == (429, json.loads(shown))


def test_the_examples_that_we_show_are_the_documents() -> None:
    assert example("Agent erstellen") == examples.CREATE
    assert example("Agent aktualisieren") == examples.UPDATE
    assert example("Soul-Dokument aktualisieren") == examples.SOUL
    assert example("Shield-Policies aktualisieren") == examples.SHIELD
    made = example("Agent erstellen", 2)["data"]
    assert made["name"] == examples.CREATE["name"]
    assert list(made) == ["id", "name", "pairing_key"]
    assert made["pairing_key"] == examples.PAIR["pairing_key"]
