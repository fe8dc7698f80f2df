"""Workers: what people write to have their workflows run.

    worker = Worker("redis://localhost:6379/0", endpoint="coffee-shop-e66b8d23", concurrency=10)

    @worker.workflow("search-candidates")
    async def search(run: Run, user_query: str, organization_id: str, filters: dict) -> list[dict]:
        async with run.task("shortlist") as task:
            async with task.llm(model="large-1", vendor="acme") as call:
                call.usage(prompt_tokens=812, completion_tokens=96)
        return []

`trunkline worker module:worker` runs it as a process, `await worker.run()` inside a program.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.exceptions import RedisError

from .. import address as addresses
from ..broker import LOG_EVENTS, LOG_SECONDS, Broker
from ..errors import Invalid
from ..keyspace import Keyspace, check_endpoint, check_id, check_workspace
from ..patience import pause
from .attempt import Workflow
from .parameters import Parameters
from .queue import Queue
from .shift import Shift

logger = logging.getLogger("trunkline.worker")

REDIS_URL = "redis://127.0.0.1:6379/0"
PREFIX = "trunkline"
_LOOK_SECONDS = 1.0

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class Worker:
    """Runs the workflows of one endpoint, at most `concurrency` at a time.

    Its workspace is the one that the endpoint's first key was made for, unless `workspace_id` is given; while there is
    none, the worker waits. `prefix`, `log_events` and `log_seconds` are as for `Broker.connect`. Of these and of
    `redis_url` it takes what is not given here from `run`.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        endpoint: str,
        concurrency: int = 10,
        workspace_id: str | None = None,
        prefix: str | None = None,
        log_events: int | None = None,
        log_seconds: int | None = None,
    ) -> None:
        """Raises `Invalid` for what cannot be."""
        if not isinstance(concurrency, int):
            raise Invalid("concurrency", f"expected int, got {type(concurrency).__name__}")
        if concurrency < 1:
            raise Invalid("concurrency", "expected at least 1")
        if redis_url is not None:
            addresses.read(redis_url)
        if prefix is not None:
            Keyspace(prefix)
        self.endpoint = check_endpoint(endpoint, "endpoint")
        self.workspace_id = workspace_id if workspace_id is None else check_workspace(workspace_id, "workspace_id")
        self._redis_url, self._prefix, self._concurrency = redis_url, prefix, concurrency
        self._log_events, self._log_seconds = log_events, log_seconds
        self._workflows: dict[str, Workflow] = {}
        self._leave = asyncio.Event()

    def workflow(self, name: str) -> Callable[[F], F]:
        """Run the decorated async function when `name` is started.

        It is given the run, and the client's parameters by their names, checked against its annotations as
        `msgspec.convert` does: a client that gives others hears `INVALID_PARAMETERS` with the path. What it returns, of
        JSON types, is the run's output; what it raises is final, unless it is a `Retry`. Raises `Invalid`.
        """
        if callable(name):
            raise Invalid(getattr(name, "__qualname__", "workflow"), 'expected a name: @worker.workflow("search")')
        check_id(name, "name")
        if name in self._workflows:
            raise Invalid("name", f"there is a workflow {name!r} already")

        def register(function: F) -> F:
            self._workflows[name] = Workflow(function, Parameters(function))
            return function

        return register

    async def run(
        self,
        *,
        grace_seconds: float = 0.0,
        redis_url: str | None = None,
        prefix: str | None = None,
        log_events: int | None = None,
        log_seconds: int | None = None,
    ) -> None:
        """Work until `stop` is called or until cancelled; outages of Redis are waited out.

        Where the worker was made without `redis_url`, `prefix`, `log_events` or `log_seconds` it takes these, and where
        there are none the defaults of a gateway: `redis://127.0.0.1:6379/0`, `trunkline`, 10,000 and 3,600.

        After `stop` runs have `grace_seconds` to end; what is left then, or at a cancellation, is stopped and given
        back to others. Nobody can end a workflow that swallows its cancellation: after `FAREWELL_SECONDS` (5 s) its run
        is left to whoever comes when the lease ends, an error is logged, and this returns. What is left of the workflow
        is a task of the program then, which should end.

        Raises `Invalid` without any workflow, and where the endpoint is another workspace's than the given one;
        `Unavailable` when Redis does not answer at the beginning.
        """
        if not self._workflows:
            raise Invalid("worker", "expected at least one workflow")
        async with Broker.connect(
            _first(self._redis_url, redis_url, REDIS_URL),
            prefix=_first(self._prefix, prefix, PREFIX),
            log_events=_first(self._log_events, log_events, LOG_EVENTS),
            log_seconds=_first(self._log_seconds, log_seconds, LOG_SECONDS),
        ) as broker:
            finding = asyncio.create_task(self._find(broker))
            leaving = asyncio.create_task(self._leave.wait())
            try:
                await asyncio.wait((finding, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not finding.done():
                    return
                workspace = finding.result()
            finally:
                finding.cancel()
                leaving.cancel()
                await asyncio.gather(finding, leaving, return_exceptions=True)
            logger.info("working for endpoint %s in workspace %s", self.endpoint, workspace)
            queue = Queue(broker.redis, broker.keys, workspace, self.endpoint)
            await Shift(broker, queue, self._workflows, self._concurrency).work(self._leave, grace_seconds)

    def stop(self) -> None:
        """Let `run` end: nothing new is taken."""
        self._leave.set()

    async def _find(self, broker: Broker) -> str:
        """The workspace of the endpoint: its owner, as soon as it has one, or until then the one that was given."""
        is_told = False
        while True:
            try:
                found: Any = await broker.redis.hget(broker.keys.endpoint(self.endpoint), "workspace")
            except (RedisError, OSError):
                pass
            else:
                owner = self.workspace_id if found is None else check_workspace(found.decode(), "workspace_id")
                if owner is not None:
                    return self._check_owner(owner)
                if not is_told:
                    logger.warning("endpoint %s has no workspace yet: make a key for it", self.endpoint)
                is_told = True
            await pause(_LOOK_SECONDS)

    def _check_owner(self, owner: str) -> str:
        """Nobody's runs would ever come to a worker of another workspace than its endpoint's."""
        if self.workspace_id not in (None, owner):
            reason = f"the endpoint {self.endpoint!r} belongs to {owner!r}, not to {self.workspace_id!r}: leave it out"
            raise Invalid("workspace_id", reason)
        return owner


def _first(given: T | None, told: T | None, default: T) -> T:
    """The first of them that there is."""
    if given is not None:
        return given
    return default if told is None else told
