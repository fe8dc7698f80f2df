"""A producer of a fault run: it publishes steadily and writes down what it was told.

`python -m tests.faults.producer` runs it until SIGTERM. From the environment: REDIS_URL, PREFIX, JOURNAL, NAME, SEED
INSISTS and MIN_REPLICAS, which so many must have before it counts as told. Who insists publishes an equal event again
until it is told; others leave it in doubt and go on.
"""

import asyncio
import os
import random
import signal
from pathlib import Path

from broker import Broker, Unavailable, Unreplicated, address

from .journal import Journal
from .words import WORKSPACES, Key, event

PACE_SECONDS = 0.12
PATIENCE_SECONDS = 1.5
LOG_EVENTS = 200_000


async def produce(
    broker: Broker, journal: Journal, name: str, chance: random.Random, *, insists: bool, min_replicas: int
) -> None:
    """Publish until cancelled between two publishes."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    number = 0
    while not over.is_set():
        workspace, size = chance.choice(WORKSPACES), chance.choice((1, 1, 2, 5))
        keys = [Key(workspace, name, number + more) for more in range(size)]
        number += size
        journal.try_(keys)
        is_told = False
        while not is_told:
            try:
                positions = await broker.publish_many([event(key) for key in keys], min_replicas=min_replicas)
            except (Unavailable, Unreplicated):
                if not insists or over.is_set():
                    break
            else:
                journal.told(zip(keys, positions, strict=True))
                is_told = True
        await asyncio.sleep(chance.uniform(0, 2 * PACE_SECONDS))


async def main() -> None:
    words = os.environ
    broker = Broker(
        address.read(words["REDIS_URL"]),
        prefix=words["PREFIX"],
        log_events=LOG_EVENTS,
        patience_seconds=PATIENCE_SECONDS,
        name="trunkline-producer",
    )
    try:
        name = words["NAME"]
        chance = random.Random(f"{words['SEED']} {name}")
        insists, min_replicas = words["INSISTS"] == "yes", int(words["MIN_REPLICAS"])
        journal = Journal(Path(words["JOURNAL"]))
        await produce(broker, journal, name, chance, insists=insists, min_replicas=min_replicas)
    finally:
        await broker.close()


if __name__ == "__main__":
    asyncio.run(main())
