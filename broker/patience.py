"""Waiting between attempts, so that a cancelled task ends though somebody below it swallowed the cancellation."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5


async def pause(seconds: float) -> None:
    """Sleep, unless this task has been cancelled.

    redis-py waits with `asyncio.wait_for`, which on Python 3.11 can lose a cancellation that comes with the answer. A
    loop around it would then go on for ever, and whoever cancelled it would wait as long.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    await asyncio.sleep(seconds)


async def repeat(
    turn: Callable[[], Awaitable[None]],
    log: logging.Logger,
    failing: str,
    *,
    is_over: Callable[[], bool] = lambda: False,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Take a turn over and over, until cancelled or until it `is_over`.

    Outages of Redis are waited out: the first failure in a row is logged, as what is `failing`, and `on_failure` hears
    of each.
    """
    seconds, is_lost = _FIRST_PAUSE, False
    while not is_over():
        try:
            await turn()
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            on_failure()
            if not is_lost:
                log.warning("%s, trying again: %s", failing, type(error).__name__)
            is_lost = True
            await pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)
        else:
            seconds, is_lost = _FIRST_PAUSE, False
            await pause(0)
