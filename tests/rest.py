"""A client of the REST API for tests: says what it is told to say, and checks that every answer is in the envelope."""

import http.client
import json
from typing import Any, NamedTuple

from .support import Node, token

SCOPE = "agents:read agents:write"


class Answer(NamedTuple):
    """`body` is the decoded JSON, None where there is none; `headers` are by lower-case name."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def data(self) -> Any:
        assert self.body["success"] is True, self.body
        return self.body["data"]

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.body["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.body["error"]["message"])


class Rest:
    """Somebody who asks `node`: with a token for `workspaces`, unless told to use another or none ('')."""

    def __init__(self, node: Node, *workspaces: str, credentials: str | None = None, **claims: Any) -> None:
        self.node = node
        self.token = token(*workspaces, **({"scope": SCOPE} | claims)) if credentials is None else credentials

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`body` goes as JSON unless it is bytes; a header's underscores stand for dashes."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            given = {"Authorization": f"Bearer {self.token}"} | given
        if body is not None and not isinstance(body, bytes):
            body, given = json.dumps(body).encode(), {"Content-Type": "application/json"} | given
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=10)
        try:
            connection.request(method, path, body, given)
            return _answer(connection.getresponse())
        finally:
            connection.close()

    def create(self, workspace: str = "ws-456", **fields: Any) -> dict[str, Any]:
        """A new agent, as it is answered."""
        answer = self.ask("POST", "/v2/agents", {"name": "Data Pipeline Agent", "workspace_id": workspace} | fields)
        assert answer.status == 201, answer
        return dict(answer.data)


def _answer(response: http.client.HTTPResponse) -> Answer:
    raw = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    if not raw:
        return Answer(response.status, headers, None)
    body = json.loads(raw)
    assert headers["content-type"] == "application/json"
    if body["success"]:
        assert list(body) == ["success", "data"]
    else:
        assert list(body) == ["success", "error"]
        assert sorted(body["error"]) == ["code", "message"]
        assert response.status >= 400
    return Answer(response.status, headers, body)
