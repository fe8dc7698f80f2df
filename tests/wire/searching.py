"""The workflow that the AGNT5 document's clients start, and what they are told of it."""

import asyncio
import re
from typing import Any

from broker import Run, Worker

ENDPOINT, WORKSPACE = "coffee-shop-e66b8d23", "ws-456"

TREE = {"workflow": None, "task": "workflow", "llm": "task", "tool": "task"}
UNTIL_THE_MODEL = ["execution_started", "workflow_start", "task_start", "llm_start", "llm_end"]
STORY = [*UNTIL_THE_MODEL, "tool_start", "tool_end", "task_end", "workflow_end", "execution_completed"]
FOUND = [{"name": "Ada", "years": 12}]

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class Search:
    """`search-candidates` of a worker: it asks a model, waits until `go` is set, and asks a tool."""

    def __init__(self, worker: Worker) -> None:
        self.go = asyncio.Event()
        worker.workflow("search-candidates")(self.search)

    async def search(
        self, run: Run, user_query: str, organization_id: str, filters: dict[str, Any]
    ) -> list[dict[str, Any]]:
        async with run.task("shortlist") as task:
            async with task.llm(model="large-1", vendor="acme") as call:
                call.usage(prompt_tokens=812, completion_tokens=96)
            await self.go.wait()
            async with task.tool("crm.lookup", input={"organization_id": organization_id}) as tool:
                tool.output(FOUND)
        return FOUND


def check_story(messages: list[dict[str, Any]], connection_id: str) -> None:
    """They tell of one run, in order and whole, in the documented shape; its steps pair up and make a tree."""
    assert [message["type"] for message in messages] == STORY
    for message in messages:
        assert message.keys() == {"type", "data", "event_id"}
        assert message["data"].keys() == {"timestamp", "details", "execution_id"}
        assert _TIMESTAMP.fullmatch(message["data"]["timestamp"])
    assert len({message["event_id"] for message in messages}) == len(messages)
    assert len({message["data"]["execution_id"] for message in messages}) == 1
    details = {message["type"]: message["data"]["details"] for message in messages}
    assert details["execution_started"]["connection_id"] == connection_id
    assert details["execution_completed"]["output"] == FOUND
    for kind, parent in TREE.items():
        start, end = details[f"{kind}_start"], details[f"{kind}_end"]
        assert start["step_id"] == end["step_id"]
        assert start.get("parent_id") == end.get("parent_id") == (parent and details[f"{parent}_start"]["step_id"])
