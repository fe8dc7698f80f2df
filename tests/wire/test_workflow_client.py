"""The flow of the AGNT5 document with a client of our own in Node, as a page would have it: it starts a run, loses its
connection, comes back and is told the rest. It runs where the document is not there.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..agnt5 import opened
from ..support import Node
from .javascript import running
from .searching import ENDPOINT, UNTIL_THE_MODEL, WORKSPACE, Search, check_story

pytestmark = pytest.mark.anyio

PRELUDE = Path(__file__).with_name("workflow_prelude.mjs")

CLIENT = """
import {{ WebSocket, lead, setTimeout }} from '{prelude}';

lead({node}, {key});

const connection_id = 'ws_of_a_page';
const search = {{
  name: 'search-candidates',
  parameters: {{ user_query: 'A potter', organization_id: 'org-1', filters: {{}} }},
  connection_id,
}};
let since;

const connect = () => {{
  const socket = new WebSocket('wss://run.agnt5.me/ws?x-wf-endpoint={endpoint}', [
    'agnt5',
    'x-api-key.your-api-key-here',
  ]);
  socket.onopen = () => socket.send(JSON.stringify(since ? {{ type: 'resume', connection_id, since }} : search));
  socket.onmessage = ({{ data }}) => (since = JSON.parse(data).event_id);
  socket.onclose = ({{ code }}) => code === 1006 && setTimeout(connect, 1000);
  socket.onerror = () => {{}};
}};
connect();
"""


async def test_a_run_outlives_the_connection_that_started_it(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node()
    async with opened([node], ENDPOINT, WORKSPACE) as shop:
        worker = shop.worker()
        search = Search(worker)
        given = {"prelude": PRELUDE.as_uri(), "node": json.dumps(node.ws("")), "key": json.dumps(shop.key)}
        text = CLIENT.format(endpoint=ENDPOINT, **given)
        async with shop.working(worker), running(text, tmp_path / "client.mjs") as script:
            received = await script.until("received", len(UNTIL_THE_MODEL))
            await asyncio.to_thread(node.stop)
            assert await script.until("put_off") == [1000]
            search.go.set()
            await asyncio.to_thread(node.start)
            await script.tell("later")
            await script.until_true(lambda: received[-1]["type"] == "execution_completed")
            assert await script.finish() == []
    check_story(received, "ws_of_a_page")
    assert script.reports["opened"] == ["agnt5", "agnt5"]
    assert [code for *_, code in script.reports["ended"]] == [1006, 1005]
