"""Asking Redis for what may be asked twice: again when there is no answer, as long as that is bearable."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from ..errors import Unavailable
from ..patience import pause

PATIENCE_SECONDS = 3.0
_PAUSE_SECONDS = 0.05

T = TypeVar("T")


async def ask(call: Callable[[], Awaitable[T]]) -> T:
    """Redis' answer to `call`, whose repetition changes nothing. Raises `Unavailable` when there is none in 3 s."""
    problem = "TimeoutError"
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    return await call()
                except (RedisError, OSError) as error:
                    problem = type(error).__name__
                await pause(_PAUSE_SECONDS)
    except TimeoutError:
        # The error's own words may hold the command, and that a client's.
        raise Unavailable(f"no answer from Redis ({problem})") from None
