"""`trunkline dev`: a whole Trunkline on one machine, and nothing left of it afterwards."""

import asyncio
import contextlib
import secrets
import shlex
import sys
from pathlib import Path

import msgspec

from broker import Broker, Unavailable
from broker.credentials import Credentials
from broker.local import LocalRedis, find_redis_server

from . import app, auth, demo
from .settings import Settings

TOKEN_SECONDS = 24 * 3600


async def develop(settings: Settings, *, own_redis: bool) -> int:
    """Run until Ctrl-C: a private Redis (unless a URL was given), the gateway, the demo agents."""
    if not settings.jwt_secret:
        settings = msgspec.structs.replace(settings, jwt_secret=(secrets.token_urlsafe(32),))
    settings = msgspec.structs.replace(settings, drain_wait_seconds=0.0, drain_seconds=0.0)
    with contextlib.ExitStack() as stack:
        if own_redis:
            redis = stack.enter_context(LocalRedis(find_redis_server()))
            settings = msgspec.structs.replace(settings, redis_url=redis.url)
        await _play(settings)
    print("\nAll stopped, nothing left behind.")
    return 0


async def _play(settings: Settings) -> None:
    async with (
        app.running(settings) as server,
        Broker.connect(settings.redis_url, prefix=settings.prefix) as broker,
    ):
        sockets = await server.listen()
        credentials = Credentials(broker.redis, broker.keys)
        created = await credentials.create(demo.ENDPOINT, demo.WORKSPACE)
        serving = asyncio.create_task(server.serve(sockets))
        agents = asyncio.create_task(demo.perform(broker))
        _introduce(settings, sockets[0].getsockname()[1], created.key)
        try:
            await serving
        finally:
            agents.cancel()
            await asyncio.gather(agents, return_exceptions=True)
            with contextlib.suppress(Unavailable):  # a Redis of somebody else stays, without our key
                await credentials.revoke(created.id)


def _introduce(settings: Settings, port: int, key: str) -> None:
    """Say what runs where, and what to try."""
    scope = " ".join(sorted(auth.SCOPES))
    token = auth.sign(
        settings, auth.claims_for(settings, "user-1", [demo.WORKSPACE], TOKEN_SECONDS, scope=scope, agent=None)
    )
    program = shlex.quote(_relative(Path(sys.argv[0])))
    where = f"--redis-url {settings.redis_url}" + (
        f" --prefix {settings.prefix}" if settings.prefix != "trunkline" else ""
    )
    address = f"{settings.host}:{port}"
    example = """task.progress '{"task_id":"task-456","step":3}'"""
    print(
        f"""
Trunkline is running, and demo agents are at work in workspace {demo.WORKSPACE}; now and then they fail, on purpose.

  gateway   http://{address}      /ready  /live  /metrics
  clients   ws://{address}/v2/ws      (MaxiCore)
            ws://{address}/api/v1/ws  (FreeAgentics)
            ws://{address}/ws?x-wf-endpoint={demo.ENDPOINT}  (AGNT5)
  agents    http://{address}/v2/agents      try it at http://{address}/docs
  Redis     {settings.redis_url}

  a token for 24 hours:
{token}

  a key for {demo.ENDPOINT}, until this ends; its workflow is search-candidates:
{key}

  watch events:
{program} tail --workspace {demo.WORKSPACE} {where}

  run a workflow of your own (README, "Workflows"):
{program} key create --endpoint my-shop --workspace {demo.WORKSPACE} {where}
{program} worker shop:worker {where}

  publish one:
{program} publish --workspace {demo.WORKSPACE} --agent agent-123 {where} {example}

Ctrl-C ends all of it.
""",
        flush=True,
    )


def _relative(path: Path) -> str:
    """As somebody in this directory would type it."""
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)
