"""The REST API of a real node: one envelope for everything, and nobody gets more than their token says."""

import asyncio
import base64
import gzip
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from redis import Redis

from .rest import Answer, Rest
from .support import Node, http, private_redis, token, until

pytest_plugins = ["tests.wire.fixtures"]

YAML = "application/yaml"
KEY = re.compile(r"MC-[A-Z0-9]+-[A-Z0-9]+-[A-Z0-9]{6}")


@pytest.fixture
def rest(shared_node: Node) -> Rest:
    """Somebody with a workspace of their own."""
    return Rest(shared_node, f"ws-{secrets.token_hex(4)}", "ws-456")


@pytest.fixture
def agent(rest: Rest) -> str:
    """The path of an agent."""
    return f"/v2/agents/{rest.create()['id']}"


def refusal(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


# -- paths and methods


@pytest.mark.parametrize(
    "path",
    ["/v2", "/v2/", "/v2/nothing", "/v2/agents/", "//v2/agents", "/v2//agents", "/v2/agents/a/b/c", "/v2/agents/a%2Fb"],
)
def test_a_path_that_is_none_is_404_without_asking_who_it_is(shared_node: Node, path: str) -> None:
    assert refusal(Rest(shared_node, credentials="").ask("GET", path)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v2/agents", "GET, HEAD, POST"),
        ("DELETE", "/v2/agents", "GET, HEAD, POST"),
        ("PATCH", "/v2/agents/a", "DELETE, GET, HEAD, PUT"),
        ("GET", "/v2/agents/a/soul", "POST"),
        ("POST", "/v2/agents/a/shield", "GET, HEAD, PUT"),
        ("PATCH", "/v2/agents/pair", "POST"),
        ("OPTIONS", "/v2/agents", "GET, HEAD, POST"),
        ("TRACE", "/v2/agents", "GET, HEAD, POST"),
    ],
)
def test_a_method_that_is_none_is_405_with_those_there_are(
    shared_node: Node, method: str, path: str, allowed: str
) -> None:
    answer = Rest(shared_node, credentials="").ask(method, path)
    assert refusal(answer) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == allowed


def test_the_relays_path_asks_for_a_websocket_in_the_envelope(shared_node: Node) -> None:
    assert refusal(Rest(shared_node, credentials="").ask("GET", "/v2/ws")) == (426, "UPGRADE_REQUIRED")


def test_outside_of_v2_errors_are_for_people(shared_node: Node) -> None:
    status, headers, body = http(shared_node.http("/nothing"))
    assert (status, headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert b"{" not in body


def test_head_is_get_without_its_body(rest: Rest) -> None:
    answer = rest.ask("HEAD", "/v2/agents")
    assert (answer.status, answer.body) == (200, None)


@pytest.mark.parametrize(
    "agent_id",
    ["%00", "a%0D%0AX-Request-Id:b", "%FF", "%ED%A0%80", "..", "%2E%2E", "{agent_id}", "x" * 10_240],
    ids=["NUL", "a line", "not UTF-8", "a surrogate", "dots", "encoded dots", "braces", "10 KB"],
)
def test_what_can_be_no_id_is_404_like_any_other(rest: Rest, agent_id: str) -> None:
    answer = rest.ask("GET", f"/v2/agents/{agent_id}")
    assert refusal(answer) == (404, "AGENT_NOT_FOUND")


def test_requests_may_be_sent_one_behind_the_other(rest: Rest) -> None:
    """After an error too: what came of a request has been read, so the connection goes on."""
    head = f"Host: x\r\nAuthorization: Bearer {rest.token}\r\n"
    asked = (
        f"GET /v2/agents/agent-0 HTTP/1.1\r\n{head}\r\n"
        f"POST /v2/agents HTTP/1.1\r\n{head}Content-Length: 1\r\n\r\n{{"
        f"GET /v2/agents HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", _exchange(rest, asked)) == [b"404", b"400", b"200"]


# -- who asks


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Basic dXNlcjp3b3Jk",
        f"Bearer {token(ttl=-10)}",
        f"Bearer {token(secret='another-secret-of-thirty-two-bytes!')}",
        token(),
    ],
    ids=["empty", "a word", "a space", "nonsense", "basic", "expired", "another secret", "no word before it"],
)
def test_without_a_good_token_nothing_is_said(shared_node: Node, given: str) -> None:
    answer = Rest(shared_node, credentials="").ask("GET", "/v2/agents", Authorization=given)
    assert refusal(answer) == (401, "INVALID_TOKEN")
    assert answer.message == "Token expired or invalid"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_for_one_client_is_no_others(shared_node: Node) -> None:
    rest = Rest(shared_node, fingerprint=sha256(b"device-1").hexdigest())
    assert rest.ask("GET", "/v2/agents", X_Client_Fingerprint="device-1").status == 200
    assert rest.ask("GET", "/v2/agents", X_Client_Fingerprint="device-2").status == 401
    assert rest.ask("GET", "/v2/agents").status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/agents"),
        ("PUT", "/v2/agents/{}"),
        ("DELETE", "/v2/agents/{}"),
        ("POST", "/v2/agents/{}/soul"),
        ("PUT", "/v2/agents/{}/shield"),
    ],
)
def test_who_may_only_read_changes_nothing(rest: Rest, method: str, path: str) -> None:
    agent = rest.create()["id"]
    reader = Rest(rest.node, "ws-456", scope="agents:read")
    answer = reader.ask(method, path.format(agent), {"name": "x", "workspace_id": "ws-456"})
    assert refusal(answer) == (403, "FORBIDDEN")
    assert answer.message == "The token's scope has no agents:write"
    assert reader.ask("GET", f"/v2/agents/{agent}").data["name"] == "Data Pipeline Agent"


@pytest.mark.parametrize("path", ["/v2/agents", "/v2/agents/a", "/v2/agents/a/shield"])
def test_who_may_not_read_sees_nothing(shared_node: Node, path: str) -> None:
    writer = Rest(shared_node, scope="agents:write events:read")
    assert refusal(writer.ask("GET", path)) == (403, "FORBIDDEN")


def test_a_token_without_scopes_may_read(shared_node: Node) -> None:
    rest = Rest(shared_node, credentials=token("ws-456"))
    assert rest.ask("GET", "/v2/agents").status == 200
    assert rest.ask("POST", "/v2/agents", {}).status == 403


# -- workspaces


def test_a_token_of_several_workspaces_sees_the_agents_of_each(rest: Rest) -> None:
    workspaces = _workspaces(rest)
    made = {workspace: rest.create(workspace)["id"] for workspace in workspaces}
    listed = {item["id"]: item["workspace_id"] for item in rest.ask("GET", "/v2/agents").data["items"]}
    assert listed.items() >= {agent: workspace for workspace, agent in made.items()}.items()
    for workspace in workspaces:
        items = rest.ask("GET", f"/v2/agents?workspace_id={workspace}").data["items"]
        assert {item["workspace_id"] for item in items} == {workspace}


def test_an_agent_elsewhere_costs_redis_what_no_agent_does(rest: Rest, agent: str, redis_url: str) -> None:
    """So the time that it takes tells nothing either."""
    stranger, nowhere = Rest(rest.node, "ws-other"), "/v2/agents/agent-0000000000000000"
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("DELETE", "?purge=true", None),
        ("POST", "/soul", {"a": 1}),
        ("GET", "/shield", None),
        ("PUT", "/shield", {}),
    ):
        stranger.ask(method, f"{nowhere}{path}", body)  # Redis knows the scripts from then on
        seen = [_commands(stranger, redis_url, method, f"{each}{path}", body) for each in (agent, nowhere)]
        assert seen[0] == seen[1] != []


def test_an_agent_elsewhere_is_as_if_it_did_not_exist(rest: Rest, agent: str) -> None:
    stranger = Rest(rest.node, "ws-other")
    for method, path, body in (
        ("GET", agent, None),
        ("PUT", agent, {"name": "mine"}),
        ("DELETE", f"{agent}?purge=true", None),
        ("POST", f"{agent}/soul", {}),
        ("GET", f"{agent}/shield", None),
        ("PUT", f"{agent}/shield", {}),
    ):
        there, nowhere = (stranger.ask(method, path.replace(*swap), body) for swap in (("", ""), ("agent-", "agent-0")))
        assert there.status == nowhere.status == 404
        assert there.body == nowhere.body
        assert there.body["error"] == {"code": "AGENT_NOT_FOUND", "message": "Agent does not exist"}
    assert rest.ask("GET", agent).data["name"] == "Data Pipeline Agent"


def test_another_workspace_is_refused_never_silently_empty(rest: Rest) -> None:
    answer = rest.ask("GET", "/v2/agents?workspace_id=ws-other")
    assert refusal(answer) == (403, "FORBIDDEN")
    assert answer.message == "workspace_id: the token does not name this workspace"
    answer = rest.ask("POST", "/v2/agents", {"name": "x", "workspace_id": "ws-other"})
    assert refusal(answer) == (403, "FORBIDDEN")
    assert answer.message == "$.workspace_id: the token does not name this workspace"


def test_an_agents_own_token_is_for_that_agent_alone(rest: Rest) -> None:
    own, other = rest.create()["id"], rest.create()["id"]
    agent = Rest(rest.node, "ws-456", agent_id=own)
    assert agent.ask("GET", f"/v2/agents/{own}/shield").status == 200
    assert refusal(agent.ask("GET", f"/v2/agents/{other}")) == (404, "AGENT_NOT_FOUND")
    assert refusal(agent.ask("GET", "/v2/agents")) == (403, "FORBIDDEN")
    assert refusal(agent.ask("POST", "/v2/agents", {"name": "x", "workspace_id": "ws-456"})) == (403, "FORBIDDEN")


# -- lists


def test_a_list_is_newest_first_and_counts_all(rest: Rest) -> None:
    [workspace] = set(_workspaces(rest)) - {"ws-456"}
    made = [rest.create(workspace, name=f"agent {number}")["id"] for number in range(5)]
    page = rest.ask("GET", f"/v2/agents?workspace_id={workspace}&limit=2&offset=1").data
    assert [item["id"] for item in page["items"]] == made[::-1][1:3]
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 1)
    assert rest.ask("GET", f"/v2/agents?workspace_id={workspace}&status=error").data["total"] == 0


def test_the_header_link_leads_through_all_pages_with_what_was_asked_for(rest: Rest) -> None:
    [workspace] = set(_workspaces(rest)) - {"ws-456"}
    made = [rest.create(workspace, name=f"agent {number}")["id"] for number in range(7)]
    path, found, sizes = f"/v2/agents?workspace_id={workspace}&status=offline&limit=3&offset=1", [], []
    while path:
        answer = rest.ask("GET", path)
        assert list(answer.data) == ["items", "total", "limit", "offset"]
        found += [item["id"] for item in answer.data["items"]]
        sizes.append((len(answer.data["items"]), answer.data["total"]))
        link = answer.headers.get("link", "")
        path = link.removeprefix("<").removesuffix('>; rel="next"')
        if path:
            assert link == f'<{path}>; rel="next"'
            asked = dict(parse_qsl(urlsplit(path).query))
            assert asked.pop("before")
            assert asked == {"workspace_id": workspace, "status": "offline", "limit": "3"}
            # Also that on which the list goes on may leave, and others come.
            rest.ask("DELETE", f"/v2/agents/{found[-1]}")
            rest.create(workspace)
    assert found == made[::-1][1:]
    assert sizes == [(3, 7), (3, 7)]


def test_a_page_goes_on_in_one_way_only(rest: Rest) -> None:
    rest.create()
    rest.create()
    link = rest.ask("GET", "/v2/agents?limit=1").headers["link"]
    path = link.removeprefix("<").removesuffix('>; rel="next"')
    assert rest.ask("GET", f"{path}&offset=0").status == 200
    answer = rest.ask("GET", f"{path}&offset=1")
    assert refusal(answer) == (400, "INVALID_REQUEST")
    assert answer.message.startswith("before: expected")
    assert refusal(rest.ask("GET", f"{path}&before=x")) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "query",
    [
        "before=",
        "before=agent-1",
        "before=%FF",
        "before=W10%3D",
        "offset=1000000001",
        "limit=0",
        "limit=101",
        "limit=many",
        "limit=",
        "limit=1.5",
        "offset=-1",
        "status=asleep",
        "status=",
    ],
)
def test_a_query_that_cannot_be_is_400_with_its_name(rest: Rest, query: str) -> None:
    answer = rest.ask("GET", f"/v2/agents?{query}")
    assert refusal(answer) == (400, "INVALID_REQUEST")
    assert answer.message.startswith(query.partition("=")[0] + ": expected")


def test_a_parameter_that_stands_twice_is_not_guessed_at(rest: Rest, agent: str) -> None:
    for method, path, name in (
        ("GET", "/v2/agents?limit=5&limit=6", "limit"),
        ("DELETE", f"{agent}?purge=false&purge=true", "purge"),
    ):
        answer = rest.ask(method, path)
        assert refusal(answer) == (400, "INVALID_REQUEST")
        assert answer.message == f"{name}: stands twice"
    assert rest.ask("GET", f"{agent}?other=1&other=2").status == 200


# -- bodies


BAD: list[tuple[str, bytes, str, str]] = [
    ("no JSON", b"{", "INVALID_REQUEST", "$: not JSON"),
    ("nothing", b"", "INVALID_REQUEST", "$: not JSON"),
    ("not UTF-8", b'{"name":"\xff"}', "INVALID_REQUEST", "$: not JSON"),
    ("no number", b'{"name":NaN}', "INVALID_REQUEST", "$: not JSON"),
    ("half a character", b'{"name":"x\\ud800yyyyyyyy"}', "INVALID_REQUEST", "$: not JSON"),
    ("a list", b"[]", "INVALID_REQUEST", "$: expected object, got array"),
    ("nested", b'{"soul":{"a":' + b"[" * 60_000, "INVALID_REQUEST", "$: nested too deeply"),
    ("many values", b'{"soul":{"a":' + b"[]," * 300_000, "INVALID_REQUEST", "$: expected at most 65536 values"),
    ("no name", b'{"workspace_id":"ws-456"}', "INVALID_AGENT_NAME", "Agent name must be 1-255 characters"),
    ("no workspace", b'{"name":"x"}', "INVALID_REQUEST", "$.workspace_id: required"),
    ("an unknown field", b'{"name":"x","workspace_id":"ws-456","nam":1}', "INVALID_REQUEST", "$.nam: no such field"),
    ("a number", b'{"name":"x","workspace_id":5}', "INVALID_REQUEST", "$.workspace_id: expected str, got int"),
    ("a soul in words", b'{"name":"x","workspace_id":"ws-456","soul":"kind"}', "INVALID_REQUEST", "$.soul: "),
    ("an empty mode", b'{"name":"x","workspace_id":"ws-456","mode":""}', "INVALID_REQUEST", "$.mode: "),
]


@pytest.mark.parametrize(("body", "code", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_body_that_cannot_be_is_400_with_the_path(rest: Rest, body: bytes, code: str, message: str) -> None:
    answer = rest.ask("POST", "/v2/agents", body)
    assert refusal(answer) == (400, code)
    assert answer.message.startswith(message)


@pytest.mark.parametrize("name", ["", "x" * 256, None, 5])
def test_a_name_has_1_to_255_characters(rest: Rest, agent: str, name: Any) -> None:
    for answer in (
        rest.ask("POST", "/v2/agents", {"name": name, "workspace_id": "ws-456"}),
        rest.ask("PUT", agent, {"name": name}),
    ):
        assert refusal(answer) == (400, "INVALID_AGENT_NAME")
        assert answer.message == "Agent name must be 1-255 characters"
    assert rest.ask("PUT", agent, {"name": "한" * 255}).data["name"] == "한" * 255


def test_what_has_no_name_knows_no_word_for_a_wrong_one(rest: Rest, agent: str) -> None:
    pairing = rest.ask("POST", "/v2/agents/pair", {"pairing_key": "MC-X-1", "name": "x"})
    assert refusal(pairing) == (400, "INVALID_REQUEST")
    assert pairing.message == "$.name: no such field"
    assert refusal(rest.ask("PUT", f"{agent}/shield", {"name": 5})) == (400, "INVALID_SHIELD")
    assert rest.ask("POST", f"{agent}/soul", {"name": 5}).data == {"name": 5}


def test_a_body_that_httptools_throws_away_is_not_called_broken(rest: Rest) -> None:
    """It takes it for HTTP/2's: some clients offer that with their first request, whatever it carries."""
    body = '{"name":"x","workspace_id":"ws-456"}'
    head = f"Host: x\r\nAuthorization: Bearer {rest.token}\r\nContent-Length: {len(body)}\r\n"
    upgrade = (
        "Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    answer = _exchange(rest, f"POST /v2/agents HTTP/1.1\r\n{head}{upgrade}\r\n{body}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Upgrade: a request with a body cannot ask for another protocol" in answer


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"soul": []}, "$.soul"),
        ({"shield": []}, "$.shield"),
        ({"shield": {"filesystem": "x"}}, "$.shield.filesystem"),
        ({"shield": {"filesystem": {"allowed_paths": ["/x", 5]}}}, "$.shield.filesystem.allowed_paths[1]"),
        ({"shield": {"files": {}}}, "$.shield.files"),
        ({"shield": {"version": "1.0"}}, "$.shield.version"),
    ],
    ids=str,
)
def test_what_has_not_the_shape_of_an_agent_is_the_requests_fault(
    rest: Rest, agent: str, section: dict[str, Any], path: str
) -> None:
    draft = {"name": "x", "workspace_id": "ws-456"}
    for answer in (rest.ask("POST", "/v2/agents", draft | section), rest.ask("PUT", agent, section)):
        assert refusal(answer) == (400, "INVALID_REQUEST")
        assert answer.message.startswith(f"{path}: ")
    assert rest.ask("GET", f"{agent}/shield").data == {"version": "2.0"}


def test_what_is_wrong_in_a_soul_or_a_shield_has_a_code_of_its_own(rest: Rest, agent: str) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    wrong = {"filesystem": {"allowed_paths": ["relative"]}}
    entry = "filesystem.allowed_paths[0]"
    for answer, code, path in (
        (rest.ask("PUT", agent, {"soul": deep}), "INVALID_SOUL", "$.soul"),
        (rest.ask("POST", f"{agent}/soul", deep), "INVALID_SOUL", "$"),
        (rest.ask("PUT", agent, {"shield": wrong}), "INVALID_SHIELD", f"$.shield.{entry}"),
        (rest.ask("PUT", f"{agent}/shield", wrong), "INVALID_SHIELD", f"$.{entry}"),
        (rest.ask("PUT", f"{agent}/shield", {"filesystem": 5}), "INVALID_SHIELD", "$.filesystem"),
        (rest.ask("PUT", f"{agent}/shield", {"files": {}}), "INVALID_SHIELD", "$.files"),
    ):
        assert refusal(answer) == (400, code)
        assert answer.message.startswith(f"{path}: ")
    assert rest.ask("GET", agent).data["soul"] == {}
    assert rest.ask("GET", f"{agent}/shield").data == {"version": "2.0"}


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON; charset="UTF-8"', 200),
        ("application/merge-patch+json", 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 200),
        ("application/yaml", 415),
        ("", 200),
    ],
)
def test_a_body_is_json_unless_it_says_otherwise(rest: Rest, agent: str, content_type: str, status: int) -> None:
    answer = rest.ask("PUT", agent, b'{"mode": "cloud"}', Content_Type=content_type)
    assert answer.status == status
    if status == 415:
        assert answer.code == "UNSUPPORTED_MEDIA_TYPE"


def test_a_body_without_a_type_is_json(rest: Rest, agent: str) -> None:
    assert rest.ask("PUT", agent, b'{"mode": "cloud"}').data["mode"] == "cloud"


@pytest.mark.parametrize("content_type", [YAML, "application/x-yaml", "text/yaml", "text/yaml; charset=utf-8"])
def test_a_soul_may_be_yaml(rest: Rest, agent: str, content_type: str) -> None:
    body = b"name: DataBot v2\npersonality:\n  tone: technical\n"
    soul = rest.ask("POST", f"{agent}/soul", body, Content_Type=content_type).data
    assert soul == {"name": "DataBot v2", "personality": {"tone": "technical"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"a: &x [1]\nb: *x", "$.a: anchors and aliases are refused"),
        (b"a: !!python/object/apply:os.system ['id']", "$.a: tags are refused"),
        (b"[" * 60_000, "$[0]"),
        (b"a: [", "$: not YAML, line 2, column 1"),
        (b"a: \xff", "$: not UTF-8"),
        (b"- a", "$: expected an object"),
        (b"name: &x 1", "$.name: anchors"),
        (b"soul: {a: !x 1}", "$.soul.a: tags"),
    ],
    ids=["an alias", "a tag", "nested", "broken", "not UTF-8", "a list", "in a name", "in a soul of a soul"],
)
def test_yaml_that_json_could_not_say_is_400(rest: Rest, agent: str, body: bytes, message: str) -> None:
    answer = rest.ask("POST", f"{agent}/soul", body, Content_Type=YAML)
    assert refusal(answer) == (400, "INVALID_SOUL")
    assert answer.message.startswith(message)


# -- size


def test_what_is_too_large_is_413(rest: Rest, agent: str) -> None:
    for path, limit in (("/v2/agents", 1024 * 1024), (f"{agent}/soul", 64 * 1024)):
        fits = b'{"a":"' + b"x" * (limit - 8) + b'"}'
        assert rest.ask("POST", path, fits).status != 413
        answer = rest.ask("POST", path, fits + b" ")
        assert refusal(answer) == (413, "PAYLOAD_TOO_LARGE")
        assert answer.message == f"The body may have at most {limit:,} bytes"
        assert answer.headers["connection"] == "close"


def test_it_is_refused_while_it_is_read(rest: Rest) -> None:
    """Of 1 GB that is announced nothing is waited for; of one that is not, no more than the limit."""
    for head in ("Content-Length: 1000000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", rest.node.port), 10) as raw:
            raw.sendall(f"POST /v2/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rest.token}\r\n{head}".encode())
            if "chunked" in head:
                raw.sendall(b"100001\r\n" + b"x" * 0x100001 + b"\r\n")
            answer = b""
            while not answer.endswith(b"}}"):
                answer += raw.recv(65536)
            assert answer.startswith(b"HTTP/1.1 413 "), head


@pytest.mark.anyio
async def test_who_leaves_in_the_middle_of_a_body_is_no_bug(rest: Rest) -> None:
    request = secrets.token_hex(8)
    with socket.create_connection(("127.0.0.1", rest.node.port), 10) as raw:
        head = f"Host: x\r\nAuthorization: Bearer {rest.token}\r\nX-Request-Id: {request}\r\nContent-Length: 9\r\n\r\n"
        raw.sendall(f"POST /v2/agents HTTP/1.1\r\n{head}{{".encode())
    line = re.compile(rf"POST /v2/agents left in \S+ ms \(request {request}\)")
    await until(lambda: line.search(rest.node.output()))
    assert "a bug ended" not in rest.node.output()


def test_whoever_sends_on_still_gets_the_answer(rest: Rest) -> None:
    assert refusal(rest.ask("POST", "/v2/agents", b"x" * 8_000_000)) == (413, "PAYLOAD_TOO_LARGE")
    stranger = Rest(rest.node, credentials="")
    assert refusal(stranger.ask("POST", "/v2/agents", b"x" * 8_000_000)) == (401, "INVALID_TOKEN")


BOMBS: list[tuple[str, bytes, int]] = [
    (YAML, b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (b, b, a, a) for a, b in pairwise(b"abcdefg")), 400),
    (YAML, b"a: &a " + b"x" * 60_000 + b"\nb: [" + b"*a," * 1000 + b"]", 400),
    (YAML, b"a: [" + b"!!python/tuple [1]," * 3000 + b"]", 400),
    (YAML, b"[" * 65_000, 400),
    (YAML, b"{a: " * 16_000, 400),
    (YAML, b"- " * 32_000, 400),
    (YAML, b"? " * 32_000, 400),
    (YAML, b"a: [" + b"1," * 32_000 + b"]", 400),
    (YAML, b"a: [" + b"{}," * 9_999 + b"]", 200),
    (YAML, b"a: " + b"x" * 65_000, 200),
    (YAML, b"a: " + b"x" * 65_536, 413),
    ("application/json", b'{"a":' * 13_000, 400),
    ("application/json", b'{"a":' + b"[" * 32_000 + b"]" * 32_000 + b"}", 400),
    ("application/json", b'{"a":[' + b"{}," * 21_000 + b"{}]}", 400),
    ("application/json", b'{"a":[' + b"{}," * 9_998 + b"{}]}", 200),
    ("application/json", b"x" * 8_000_000, 413),
]


def test_what_is_made_to_burst_a_node_is_refused_and_leaves_no_memory_behind(rest: Rest, agent: str) -> None:
    process = psutil.Process(rest.node.pid)

    def throw() -> None:
        for content_type, bomb, status in BOMBS:
            assert rest.ask("POST", f"{agent}/soul", bomb, Content_Type=content_type).status == status, bomb[:20]

    throw()
    before = process.memory_info().rss
    for _ in range(3):
        throw()
    assert process.memory_info().rss - before < 16_000_000


def test_a_compressed_body_is_not_inflated(rest: Rest, agent: str) -> None:
    answer = rest.ask("PUT", agent, gzip.compress(b'{"mode": "cloud"}'), Content_Encoding="gzip")
    assert answer.status == 400


# -- pairing


def test_an_agent_gets_a_token_for_its_pairing_key_once(rest: Rest) -> None:
    made = rest.create()
    assert KEY.fullmatch(made["pairing_key"])
    stranger = Rest(rest.node, credentials="")
    identity = stranger.ask("POST", "/v2/agents/pair", {"pairing_key": made["pairing_key"]}).data
    assert (identity["agent_id"], identity["workspace_id"]) == (made["id"], "ws-456")
    assert identity["expires_in"] == 365 * 24 * 3600
    agent = Rest(rest.node, credentials=identity["token"])
    assert agent.ask("GET", f"/v2/agents/{made['id']}").data["name"] == "Data Pipeline Agent"
    assert refusal(agent.ask("DELETE", f"/v2/agents/{made['id']}")) == (403, "FORBIDDEN")
    again = stranger.ask("POST", "/v2/agents/pair", {"pairing_key": made["pairing_key"]})
    assert refusal(again) == (401, "INVALID_PAIRING_KEY")
    assert again.headers["www-authenticate"] == "Bearer"


def test_a_node_that_cannot_sign_leaves_the_key_unused(start_node: Callable[..., Node], tmp_path: Path) -> None:
    public = Ed25519PrivateKey.generate().public_key()
    file = tmp_path / "key.pem"
    file.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    signing, verifying = start_node(), start_node(jwt_secret="", jwt_public_key=file)
    key = Rest(signing).create()["pairing_key"]
    pairing = ("POST", "/v2/agents/pair", {"pairing_key": key})
    assert refusal(Rest(verifying, credentials="").ask(*pairing)) == (503, "UNAVAILABLE")
    assert Rest(signing, credentials="").ask(*pairing).status == 200


def test_keys_cannot_be_tried_out(start_node: Callable[..., Node]) -> None:
    stranger = Rest(start_node(), credentials="")
    answers = [stranger.ask("POST", "/v2/agents/pair", {"pairing_key": f"MC-X-{number}"}) for number in range(61)]
    assert {refusal(answer) for answer in answers[:60]} == {(401, "INVALID_PAIRING_KEY")}
    assert refusal(answers[60]) == (429, "RATE_LIMITED")


# -- how often


def test_a_token_may_ask_so_often_over_all_nodes(start_node: Callable[..., Node]) -> None:
    one, two = start_node(max_requests_per_minute=5), start_node(max_requests_per_minute=5)
    rests = [Rest(node, sub="busy") for node in (one, two)]
    rests[1].token = rests[0].token
    assert [rests[number % 2].ask("GET", "/v2/agents").status for number in range(5)] == [200] * 5
    for rest in rests:
        answer = rest.ask("GET", "/v2/agents")
        assert refusal(answer) == (429, "RATE_LIMITED")
        seconds = int(answer.headers["retry-after"])
        assert 1 <= seconds <= 60
        assert answer.message == f"Too many requests. Try again in {seconds} seconds"
    assert Rest(one, sub="another").ask("GET", "/v2/agents").status == 200


def test_a_token_counts_once_however_its_signature_is_spelt(start_node: Callable[..., Node], tmp_path: Path) -> None:
    """Of an ECDSA signature (r, s) anybody can make the other one that is as good: (r, n - s)."""
    key = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "key.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    rest = Rest(start_node(max_requests_per_minute=1, jwt_public_key=file))
    claims = jwt.decode(rest.token, options={"verify_signature": False})
    signed, _, signature = jwt.encode(claims, key, "ES256").rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    twin = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    spellings = [signature, base64.urlsafe_b64encode(twin).rstrip(b"=").decode()]
    rests = [Rest(rest.node, credentials=f"{signed}.{each}") for each in spellings]
    assert [each.ask("GET", "/v2/agents").status for each in rests] == [200, 429]


def test_redis_knows_the_token_by_a_digest(rest: Rest, redis_url: str) -> None:
    assert rest.ask("GET", "/v2/agents").status == 200
    names = Redis.from_url(redis_url).keys("*")
    assert any(b":messages:" in name for name in names)
    assert not any(rest.token[-20:].encode() in name for name in names)


# -- logs


@pytest.mark.anyio
async def test_a_request_is_one_line_without_what_the_client_said(rest: Rest, agent: str) -> None:
    request = secrets.token_hex(8)
    answer = rest.ask("GET", f"/v2/agents?status=online&token={rest.token}", X_Request_Id=request)
    assert answer.headers["x-request-id"] == request
    rest.ask("GET", agent, X_Request_Id=f"{request}-2")
    assert re.search(rf"GET /v2/agents 200 in \d+\.\d ms \(request {request}\)", await _logged(rest, request))
    assert "GET /v2/agents/{agent_id} 200 in" in await _logged(rest, f"{request}-2")
    assert rest.token not in rest.node.output()
    assert "status=online" not in rest.node.output()


@pytest.mark.anyio
async def test_a_pairing_key_and_its_token_stay_out_of_the_log(rest: Rest) -> None:
    key, request = rest.create()["pairing_key"], secrets.token_hex(8)
    asked = {"pairing_key": key}
    given = Rest(rest.node, credentials="").ask("POST", "/v2/agents/pair", asked, X_Request_Id=request).data["token"]
    await _logged(rest, request)
    assert key not in rest.node.output()
    assert given not in rest.node.output()


# -- when the node or Redis leaves


@pytest.mark.anyio
async def test_a_leaving_node_answers_to_the_last(start_node: Callable[..., Node]) -> None:
    """The balancer has not noticed yet, and no balancer sends a POST that was refused to another node."""
    node = start_node(drain_wait_seconds=30)
    rest = Rest(node)
    node.signal(signal.SIGTERM)
    await until(lambda: http(node.http("/ready"))[0] == 503)
    answer = rest.ask("POST", "/v2/agents", {"name": "Late", "workspace_id": "ws-456"})
    assert (answer.status, answer.headers["connection"]) == (201, "close")


@pytest.mark.anyio
async def test_without_redis_it_is_503_soon(start_node: Callable[..., Node]) -> None:
    with private_redis() as redis:
        rest = Rest(start_node(redis_url=redis.url))
        agent = f"/v2/agents/{rest.create()['id']}"
    started = time.monotonic()
    answer = await asyncio.to_thread(rest.ask, "GET", agent)
    assert refusal(answer) == (503, "UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
    assert time.monotonic() - started < 8


@pytest.mark.anyio
async def test_a_redis_that_says_nothing_is_none(start_node: Callable[..., Node]) -> None:
    with private_redis() as redis:
        rest = Rest(start_node(redis_url=redis.url))
        os.kill(redis.pid, signal.SIGSTOP)
        started = time.monotonic()
        answer = await asyncio.to_thread(rest.ask, "GET", "/v2/agents")
        assert refusal(answer) == (503, "UNAVAILABLE")
        assert time.monotonic() - started < 8
        os.kill(redis.pid, signal.SIGCONT)
        await until(lambda: rest.ask("GET", "/v2/agents").status == 200)


async def _logged(rest: Rest, request: str) -> str:
    """The one line of a request, which is written once its answer is."""
    mark = f"(request {request})"
    await until(lambda: mark in rest.node.output())
    [line] = [line for line in rest.node.output().splitlines() if mark in line]
    return line


def _exchange(rest: Rest, asked: str) -> bytes:
    """All that a node says to `asked`, which tells it to close the connection in the end."""
    with socket.create_connection(("127.0.0.1", rest.node.port), 10) as raw:
        raw.sendall(asked.encode())
        return b"".join(iter(lambda: raw.recv(65536), b""))


def _commands(rest: Rest, redis_url: str, method: str, path: str, body: Any) -> list[str]:
    """What Redis is asked about the workspace `ws-other` for a request, with its agent's id as `<id>`."""
    with Redis.from_url(redis_url) as redis, redis.monitor() as monitor:
        assert rest.ask(method, path, body).status == 404
        redis.echo("the end")
        said = iter(lambda: str(monitor.next_command()["command"]), "ECHO the end")
        return [re.sub(r"agent-[0-9a-f]+", "<id>", each) for each in said if "{ws-other}" in each]


def _workspaces(rest: Rest) -> list[str]:
    return list(jwt.decode(rest.token, options={"verify_signature": False})["workspaces"])
