"""How many durable events a second one producer publishes with `publish_many`, all of one workspace.

    python -m tests.bench.producer REDIS_PORT PREFIX SECONDS [PROFILE]

Making the events counts too, as it would in a producer. Every position is looked at afterwards: none may be missing,
none may come twice, and they grow. Prints a JSON object; with PROFILE, also writes the samples of `profiled` there.
"""

import asyncio
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from broker import Broker, Event, Position

from . import payload
from .profiled import Sampler

_AT_ONCE = 2000  # events per publish_many
_AGENTS = 50
_WARM_SECONDS = 0.3


async def publish_for(broker: Broker, seconds: float, sequence: int) -> list[Position | None]:
    positions: list[Position | None] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        first = sequence + len(positions)
        positions += await broker.publish_many([make(number) for number in range(first, first + _AT_ONCE)])
    return positions


def make(number: int) -> Event:
    return Event(
        type="task.progress",
        workspace_id=payload.WORKSPACE,
        agent_id=payload.agent(number % _AGENTS),
        data={"task_id": "task-1", "step": number, "output": payload.output(number)},
    )


async def run(port: int, prefix: str, seconds: float, sampler: Sampler | None) -> dict[str, Any]:
    async with Broker.connect(f"redis://127.0.0.1:{port}/0", prefix=prefix) as broker:
        warm = await publish_for(broker, _WARM_SECONDS, 0)
        if sampler:
            sampler.begin()
        start, cpu = time.monotonic(), time.process_time()
        positions = await publish_for(broker, seconds, len(warm))
        took, used = time.monotonic() - start, time.process_time() - cpu
        if sampler:
            sampler.end()
    keys = [tuple(int(part) for part in (position or "0-0").split("-")) for position in warm + positions]
    return {
        "publishes_per_second": len(positions) / took,
        "publish_us": used / len(positions) * 1e6,
        "producer_busy": used / took,
        "published": len(keys),
        "lost": keys.count((0, 0)),
        "doubled": len(keys) - len(set(keys)),
        "reordered": sum(later < earlier for earlier, later in pairwise(keys)),
    }


if __name__ == "__main__":
    _, port, prefix, seconds, *profile = sys.argv
    sampler = Sampler(Path(profile[0])) if profile else None
    print(json.dumps(asyncio.run(run(int(port), prefix, float(seconds), sampler))))
