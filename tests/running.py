"""A client's end of runs, for tests: starts them and reads what was said of them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from broker import Broker, Event, Runs, address
from broker.positions import START
from broker.runs import Submitted

from .support import until
from .workflows import ENDPOINT, WORKSPACE

ENDS = {"execution_completed", "execution_failed", "execution_cancelled"}


class Client:
    """A gateway's end: starts runs and reads what was said of them."""

    def __init__(self, broker: Broker, **options: Any) -> None:
        self.broker, self.runs = broker, Runs(broker, **options)

    async def start(self, name: str = "sleep", /, connection: str | None = "ws_1", **more: Any) -> Submitted:
        terms: dict[str, Any] = {"seconds": more.pop("seconds", 60.0), "max_attempts": more.pop("max_attempts", 3)}
        terms["execution"] = more.pop("execution", None)
        metadata = {"idempotency_key": more.pop("key")} if "key" in more else {}
        return await self.runs.submit(
            more.pop("workspace", WORKSPACE), more.pop("endpoint", ENDPOINT), name, more, metadata, connection, **terms
        )

    async def events(self, execution: str | None = None) -> list[Event]:
        """All that was said, of one execution or of all."""
        events, end, is_last = [], START, False
        while not is_last:
            page, end, is_last, _ = await self.broker.log.page(WORKSPACE, end, 1000)
            events += [event.event() for event in page]
        return [event for event in events if execution in (None, event.data["execution_id"])]

    async def kinds(self, execution: str) -> list[str]:
        return [event.type for event in await self.events(execution)]

    async def end(self, execution: str, seconds: float = 10.0) -> Event:
        """Its one end event, as soon as it is there."""

        async def ended() -> list[Event]:
            return [event for event in await self.events(execution) if event.type in ENDS]

        (event,) = await until(ended, seconds)
        return event  # type: ignore[no-any-return]

    async def state(self, execution: str) -> str:
        return (await self.broker.redis.hget(self.broker.keys.run(WORKSPACE, execution), "state") or b"").decode()

    async def is_left_nothing(self) -> bool:
        """No run waits or is held."""
        keys, redis = self.broker.keys, self.broker.redis
        left = await redis.xlen(keys.runs(WORKSPACE, ENDPOINT)) + await redis.zcard(keys.held(WORKSPACE, ENDPOINT))
        return not left

    async def journal(self, word: str = "") -> list[list[str]]:
        """What the workers wrote down: word, run, attempt, process."""
        lines = await self.broker.redis.lrange(f"{self.broker.keys.prefix}-journal", 0, -1)
        return [line.decode().split() for line in lines if line.decode().startswith(word)]


@contextlib.asynccontextmanager
async def connected(redis_url: str, prefix: str) -> AsyncIterator[Client]:
    """A client whose connections to Redis have a name of their own: who cuts a worker's leaves them alone."""
    broker = Broker(address.read(redis_url), prefix=prefix, log_events=100_000, name="tests")
    try:
        yield Client(broker)
    finally:
        await broker.close()
