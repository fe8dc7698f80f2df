"""A worker's loops, each a turn that is made over and over."""

import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from ..patience import pause

logger = logging.getLogger("trunkline.worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5


async def repeat(turn: Callable[[], Awaitable[None]], is_over: Callable[[], bool] = lambda: False) -> None:
    """Outages of Redis are waited out."""
    seconds, is_lost = _FIRST_PAUSE, False
    while not is_over():
        try:
            await turn()
        except (RedisError, OSError) as error:
            if not is_lost:
                logger.warning("a worker cannot reach Redis, trying again: %s", type(error).__name__)
            is_lost = True
            await pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)
        else:
            seconds, is_lost = _FIRST_PAUSE, False
            await pause(0)
