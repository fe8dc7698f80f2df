"""Running what a command does, with the broker that the settings describe."""

import contextlib
from collections.abc import Coroutine
from typing import Any

import uvloop

from broker import Broker, TrunklineError

from ..settings import Settings


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end. What a task group found is raised as it was."""

    async def alone() -> int:
        try:
            return await work
        except* TrunklineError as group:
            raise group.exceptions[0] from None

    return uvloop.run(alone())


def connect(settings: Settings) -> contextlib.AbstractAsyncContextManager[Broker]:
    return Broker.connect(
        settings.redis_url, prefix=settings.prefix, log_events=settings.log_events, log_seconds=settings.log_seconds
    )
