"""A registry full of agents, every second one of them online.

    python -m tests.bench.registry REDIS_PORT PREFIX        (keeps them present until it is ended)

`fill` makes them. The process gives their signs of life as many programs would: a few at a time, all within a beat.
"""

import asyncio
import itertools
import sys
from typing import Any

from broker import Broker
from broker.agents.model import Draft
from broker.presence import BEAT_SECONDS

from . import payload

_TOGETHER = 100
_FEW = 20

# The agent of seed 001, "Agent erstellen".
_SOUL = {
    "name": "DataBot",
    "role": "Data Engineer",
    "capabilities": ["python", "sql", "bash"],
    "memory": {"long_term_enabled": True, "max_history": 5000},
}
_SHIELD = {"filesystem": {"allowed_paths": ["/data", "/tmp"], "blocked_paths": ["/root", "/etc"]}}


def fill(port: int, prefix: str, agents: int) -> None:
    """Make so many agents in the one workspace."""

    async def make_all() -> None:
        async with _broker(port, prefix) as broker:
            for start in range(0, agents, _TOGETHER):
                numbers = range(start, min(start + _TOGETHER, agents))
                await asyncio.gather(*(_make(broker, number) for number in numbers))

    asyncio.run(make_all())


def _broker(port: int, prefix: str) -> Any:
    return Broker.connect(f"redis://127.0.0.1:{port}/0", prefix=prefix)


async def _make(broker: Broker, number: int) -> None:
    name = f"Data Pipeline Agent {number:05d}"
    draft = Draft(name=name, workspace_id=payload.WORKSPACE, soul=_SOUL, shield=_SHIELD)
    await broker.agents.create(payload.WORKSPACE, draft)


async def keep_present(port: int, prefix: str) -> None:
    async with _broker(port, prefix) as broker:
        names: Any = await broker.redis.zrange(broker.keys.agents(payload.WORKSPACE), 0, -1)
        online = [name.decode() for name in names[::2]]
        await broker.presence.renew(payload.WORKSPACE, online)
        batches = [online[start : start + _FEW] for start in range(0, len(online), _FEW)]
        for batch in itertools.cycle(batches):
            await asyncio.sleep(BEAT_SECONDS / len(batches))
            await broker.presence.renew(payload.WORKSPACE, batch)


if __name__ == "__main__":
    asyncio.run(keep_present(int(sys.argv[1]), sys.argv[2]))
