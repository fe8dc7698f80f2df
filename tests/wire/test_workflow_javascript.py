"""The JavaScript of the AGNT5 document runs in Node and in Chromium against a real gateway, its lines as they are.

Each script is an import of the prelude (workflow_prelude.mjs), one or more of the document's blocks, and behind them
only what the document leaves out. Also what such a client sees of refusals. Skipped where the document, Chromium, Node
or its `ws` package is missing; in CI all are there.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ..agnt5 import Shop, opened
from ..chromium import Chromium, headless
from ..support import Node, http, until
from .javascript import Script, running
from .searching import ENDPOINT, WORKSPACE, Search, check_story
from .seed import glued

pytestmark = pytest.mark.anyio
pytest_plugins = ["tests.agnt5_fixtures"]

PRELUDE = Path(__file__).with_name("workflow_prelude.mjs")
SUPPLIED = "WebSocket, lead, report, setTimeout"

Run = Callable[..., contextlib.AbstractAsyncContextManager[Script]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """For the whole module: one Chromium is enough."""
    return "asyncio"


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Chromium]:
    async with headless(PRELUDE.parent) as chromium:
        yield chromium


@pytest.fixture(scope="module", params=["Node", "Chromium"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Run these pieces of JavaScript, behind an import of the prelude, against a node and with a key."""
    if engine == "Node":
        prelude, start = PRELUDE.as_uri(), partial(running, path=tmp_path / "script.mjs")
    else:
        prelude, start = f"/{PRELUDE.name}", request.getfixturevalue("chromium").run

    def run(node: Node, key: str, *pieces: str) -> contextlib.AbstractAsyncContextManager[Script]:
        lead = f"lead({json.dumps(node.ws(''))}, {json.dumps(key)});"
        return start("\n".join([f"import {{ {SUPPLIED} }} from '{prelude}';", lead, *pieces]))

    return run


@pytest.fixture
async def shop(pair: list[Node]) -> AsyncIterator[Shop]:
    """The endpoint of the document."""
    async with opened(pair, ENDPOINT, WORKSPACE) as shop:
        yield shop


# -- the document


SENDS_THE_EXAMPLE = """
const message = {message};

class Client extends WorkflowSocket {{
  handleOpen() {{
    this.socket.send(JSON.stringify(message));
  }}

  handleMessage(event) {{
    super.handleMessage(event);
    report('handled', JSON.parse(event.data));
  }}

  handleError() {{}}

  handleClose() {{}}
}}

new Client({endpoint}, {key});
"""


async def test_the_workflow_socket_sees_a_run_from_its_start_to_its_end(run: Run, shop: Shop) -> None:
    worker = shop.worker()
    Search(worker).go.set()
    message = glued("Example Message", "json")
    client = SENDS_THE_EXAMPLE.format(message=message, endpoint=json.dumps(ENDPOINT), key=json.dumps(shop.key))
    async with (
        shop.working(worker),
        run(shop.nodes[0], shop.key, glued("Example Implementation"), client) as script,
    ):
        await script.until_true(lambda: "execution_completed" in kinds(script.reports["handled"]))
        assert await script.finish() == []
    handled, example = script.reports["handled"], json.loads(glued("Event Message Format", "json"))
    assert script.reports["opened"] == [f"x-api-key.{shop.key}"]
    assert script.reports["sent"] == [json.loads(message)]
    check_story(handled, json.loads(message)["connection_id"])
    assert handled == script.reports["received"]
    assert all(example["data"].keys() == event["data"].keys() for event in handled)
    assert script.reports["ended"] == [[1005]]


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


async def test_it_connects_with_the_documented_parameters(run: Run, shop: Shop) -> None:
    async with run(shop.nodes[0], shop.key, glued("Example connection parameters:")) as script:
        assert await script.until("opened") == [f"x-api-key.{shop.key}"]
        assert await script.finish() == []
    assert script.reports["ended"] == [[1005]]


async def test_its_handlers_are_told_of_a_connection_that_fails(run: Run, shop: Shop) -> None:
    pieces = [glued("Example connection parameters:"), glued("Example error handling:")]
    async with run(shop.nodes[0], "no-key", *pieces) as script:
        assert await script.until("ended") == [["error", 1006]]
        assert (await script.finish())[0].startswith("WebSocket error:")
    assert script.reports["opened"] == []


def connecting() -> str:
    """The document's `connect`, made whole by what its last comments say."""
    *lines, retry, end = glued("Reconnection Strategy").splitlines()
    _, _, act = retry.partition("If fails, retry with: ")
    attempt = f"new WebSocket('wss://run.agnt5.me/ws?x-wf-endpoint={ENDPOINT}', ['x-api-key.your-api-key-here'])"
    failing = f"({attempt}).onclose = ({{ code }}) => {{ if (code === 1006) {act} }};"
    return "\n".join([*lines, retry, failing, end])


async def test_its_way_of_coming_back_ends_with_success_or_in_time(run: Run, shop: Shop) -> None:
    """First the node stays away, then it comes while there are attempts left."""
    node = Node(shop.nodes[0].redis_url, shop.nodes[0].prefix)
    try:
        async with run(node, shop.key, connecting(), "connect();") as first:
            await tries(first, 5)
            await first.tell("later")
            assert await first.until("thrown") == ["Maximum retry attempts reached"]
            await first.finish()
        async with run(node, shop.key, connecting(), "connect();") as second:
            await tries(second, 2)
            await asyncio.to_thread(node.start)
            await second.tell("later")
            assert await second.until("opened") == [f"x-api-key.{shop.key}"]
            await second.finish()
    finally:
        node.stop()
    assert first.reports["put_off"] == [1000, 2000, 4000, 8000, 16000]
    assert second.reports["put_off"] == [1000, 2000]


async def tries(script: Script, count: int) -> None:
    """Let it fail so often."""
    for failed in range(1, count + 1):
        await script.until("put_off", failed)
        assert script.reports["ended"] == [["error", 1006]] * failed
        if failed < count:
            await script.tell("later")


async def test_a_browser_may_be_answered_without_its_key(run: Run, shop: Shop) -> None:
    offers = f"new WebSocket('wss://run.agnt5.me/ws?x-wf-endpoint={ENDPOINT}', ['x-api-key.{shop.key}', 'agnt5']);"
    async with run(shop.nodes[0], shop.key, offers) as script:
        assert await script.until("opened") == ["agnt5"]
        await script.finish()


# -- refusals


KNOCKS = """
const knock = ([path, key]) =>
  new Promise((resolve) => {{
    const seen = [];
    const socket = new WebSocket(`wss://run.agnt5.me${{path}}`, [`x-api-key.${{key}}`]);
    socket.onerror = () => seen.push('error');
    socket.onclose = ({{ code }}) => resolve([...seen, code]);
  }});
for (const door of {doors}) report('seen', await knock(door));
"""


async def knock(run: Run, node: Node, *doors: tuple[str, str]) -> list[list[Any]]:
    """Try these paths and keys, all of which are refused; answers status and code of each, if they are shown."""
    async with run(node, "", KNOCKS.format(doors=json.dumps(doors))) as script:
        assert await script.until("seen", len(doors)) == [["error", 1006]] * len(doors)
        await script.finish()
    assert all(body["error"].keys() == {"code", "message"} for _, body in script.reports["refused"])
    return [[status, body["error"]["code"]] for status, body in script.reports["refused"]]


def shown(engine: str, *refusals: list[Any]) -> list[list[Any]]:
    """What a client of this kind is shown of these refusals: a browser hides status and body from its scripts."""
    return [*refusals] if engine == "Node" else []


async def test_refusals_look_like_failed_connections(run: Run, engine: str, shop: Shop) -> None:
    there = f"/ws?x-wf-endpoint={ENDPOINT}"
    other = await shop.credentials.create("tea-house-01", WORKSPACE)
    doors = [("/ws", shop.key), ("/ws?x-wf-endpoint=nowhere", shop.key), (there, "no-key"), (there, other.key)]
    assert await knock(run, shop.nodes[0], *doors) == shown(
        engine,
        [400, "ENDPOINT_MISSING"],
        [404, "ENDPOINT_NOT_FOUND"],
        [401, "INVALID_API_KEY"],
        [403, "FORBIDDEN"],
    )


async def test_the_51st_connection_is_refused(run: Run, engine: str, pair: list[Node]) -> None:
    """Over two nodes."""
    async with opened(pair) as shop, contextlib.AsyncExitStack() as stack:
        for number in range(50):
            await stack.enter_async_context(shop.client(number % 2))
        door = (f"/ws?x-wf-endpoint={shop.endpoint}", shop.key)
        assert await knock(run, pair[0], door) == shown(engine, [429, "TOO_MANY_CONNECTIONS"])


async def test_a_node_that_leaves_refuses(run: Run, engine: str, start_node: Callable[..., Node]) -> None:
    node = start_node(drain_wait_seconds=30)
    async with opened([node]) as shop:
        node.signal(signal.SIGTERM)
        await until(lambda: http(node.http("/ready"))[0] == 503)
        door = (f"/ws?x-wf-endpoint={shop.endpoint}", shop.key)
        assert await knock(run, node, door) == shown(engine, [503, "UNAVAILABLE"])
