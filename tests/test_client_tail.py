"""`trunkline tail --url`: through a gateway what `tail` prints beside Redis, with a token that shows nowhere."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from broker import Broker

from .support import SECRET, Node, token
from .test_cli import Shell, Tail, end, progress

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"

StartTail = Callable[..., contextlib.AbstractAsyncContextManager[Tail]]


@pytest.fixture
def shell() -> Shell:
    """Without a Redis: there is none where such a watcher is."""
    return Shell(redis_url="redis://127.0.0.1:1/0", log_format="text")


@pytest.fixture
async def broker(node: Node) -> AsyncIterator[Broker]:
    async with Broker.connect(node.redis_url, prefix=node.prefix) as broker:
        yield broker


@pytest.fixture
def tail(shell: Shell, node: Node) -> StartTail:
    @contextlib.asynccontextmanager
    async def start(*arguments: str, **changes: str | None) -> AsyncIterator[Tail]:
        process = await shell.start("tail", "--workspace", WORKSPACE, "--url", node.ws("/v2/ws"), *arguments, **changes)
        try:
            yield Tail(process, WORKSPACE)
        finally:
            await end(process)

    return start


async def test_it_prints_what_tail_prints_beside_redis(broker: Broker, tail: StartTail) -> None:
    secret = token(WORKSPACE)
    async with tail("--since", "0-0", TRUNKLINE_TOKEN=secret) as whole:
        position = await broker.publish(progress(1, timestamp="2026-03-27T10:30:45Z"))
        await broker.publish(progress(2, workspace_id="ws-other"))
        assert await whole.next() == {
            "type": "task.progress",
            "workspace_id": WORKSPACE,
            "agent_id": "agent-1",
            "data": {"task_id": "t", "step": 1},
            "timestamp": "2026-03-27T10:30:45Z",
            "id": position,
        }
        shown = Path(f"/proc/{whole.process.pid}/cmdline").read_bytes().decode()
        assert "--url" in shown
        assert secret not in shown
        whole.process.send_signal(signal.SIGINT)
        _, err = await whole.process.communicate()
        assert (whole.process.returncode, err) == (130, b"")


async def test_its_filters_its_token_file_and_a_gap(
    broker: Broker, tail: StartTail, node: Node, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(token(WORKSPACE) + "\n")
    arguments = ("--agent", "agent-1", "--type", "task.progress", "--since", "0-0", "--token-file", str(file))
    async with tail(*arguments) as narrow:
        for step in range(4):
            await broker.publish(progress(step, f"agent-{step % 2}"))
            await broker.publish(progress(step, "agent-1", type="task.started", data={"task_id": "t"}))
        assert [(await narrow.next())["data"]["step"] for _ in range(2)] == [1, 3]
        # It comes back with what the file says by then.
        file.write_text(token(WORKSPACE, secret=SECRET[::-1]))
        node.signal(signal.SIGKILL)
        await asyncio.to_thread(node.wait)
        await asyncio.to_thread(node.start)
        _, err = await asyncio.wait_for(narrow.process.communicate(), 20)
        assert b"does not accept the token" in err
    async with tail("--since", "1-1", TRUNKLINE_TOKEN=token(WORKSPACE)) as lost:
        assert await lost.complaint() == "trunkline: events after 1-1 are lost"
        await lost.live(broker)


async def test_what_is_missing_or_not_accepted_is_said_and_no_token_repeated(shell: Shell, node: Node) -> None:
    bad = token(WORKSPACE, secret=SECRET[::-1])
    url = node.ws("/v2/ws")
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["--url", url], {}, "TRUNKLINE_TOKEN"),
        (["--url", "http://127.0.0.1:1/"], {"TRUNKLINE_TOKEN": "t"}, "expected ws://"),
        (["--url", url, "--token-file", "/no/such/file"], {}, "--token-file"),
        (["--token-file", "/no/such/file"], {}, "--url"),
        (["--url", url], {"TRUNKLINE_TOKEN": bad}, "does not accept the token"),
    ]
    runs = await asyncio.gather(
        *(shell.run("tail", "--workspace", WORKSPACE, *arguments, **variables) for arguments, variables, _ in cases)
    )
    for ended, (_, _, complaint) in zip(runs, cases, strict=True):
        assert ended.status == 1
        assert complaint in ended.complaint
        assert bad.split(".")[1] not in ended.err
