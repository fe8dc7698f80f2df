"""Waiting between attempts, so that a cancelled task ends though somebody below it swallowed the cancellation."""

import asyncio


async def pause(seconds: float) -> None:
    """Sleep, unless this task has been cancelled.

    redis-py waits with `asyncio.wait_for`, which on Python 3.11 can lose a cancellation that comes with the answer. A
    loop around it would then go on for ever, and whoever cancelled it would wait as long.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    await asyncio.sleep(seconds)
