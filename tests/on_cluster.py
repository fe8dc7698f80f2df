"""A pytest plugin: the same tests on a Redis Cluster, where a script that touches a key of another slot fails.

    python -m pytest -p tests.on_cluster tests/test_leases.py

Whatever asks for `redis_url` gets a cluster's. Scripts say `#!lua`: then Redis refuses a key outside the slot of those
that were named, also where the other slot happens to be at the same node. Tests that want the one server of the run
(`redis`) are left out. What a test asks of Redis itself, as administrators do, it may ask in vain. At the end stands
which scripts have answered; test_topologies_slots.py runs enough of the quick tests for all of them.
"""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from hashlib import sha1
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from broker import address
from broker.script import Script
from broker.topology import cluster

from .topologies import Cluster

RAN = "scripts that answered on the cluster: "

_lives = ExitStack()
_found: list[Cluster] = []
_ran: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    make, from_url, execute = Script.__init__, Redis.from_url, cluster.Cluster.execute_command

    def strict(self: Script, redis: Redis, name: str) -> None:
        make(self, redis, name)
        if isinstance(redis, cluster.Cluster):
            self._text = "#!lua\n" + self._text
            self._sha = sha1(self._text.encode()).hexdigest()
            calls = cast(Any, self)
            for method in ("run", "run_many"):
                setattr(calls, method, _noting(name, getattr(calls, method)))

    def any_url(url: str, **options: Any) -> Redis:
        where = address.read(url)
        if not where.is_cluster:
            return from_url(url, **options)
        return cluster.Cluster(where, lambda host: Redis(host=host.name, port=host.port, **options))

    async def on_all(self: cluster.Cluster, *words: Any, **options: Any) -> Any:
        if words[0] != "KEYS":
            return await execute(self, *words, **options)
        await execute(self, "PING")
        masters = [self._node(host) for host in self._map.slots.masters]
        return [name for master in masters for name in await master.execute_command(*words)]

    cluster.Cluster.execute_command = on_all  # type: ignore[method-assign]
    Script.__init__ = strict  # type: ignore[method-assign]
    Redis.from_url = staticmethod(any_url)  # type: ignore[assignment]


def _noting(name: str, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """`run`, and that this script has answered."""

    async def noting(*words: Any) -> Any:
        answer = await run(*words)
        _ran.add(name)
        return answer

    return noting


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.line(f"{RAN}{' '.join(sorted(_ran))}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if "redis" not in getattr(item, "_fixtureinfo").argnames]  # noqa: B009
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Any:
    if fixturedef.argname != "redis_url":
        return None
    if not _found:
        _found.append(_lives.enter_context(Cluster()))
    fixturedef.cached_result = (_found[0].url, fixturedef.cache_key(request), None)
    return _found[0].url


def pytest_unconfigure() -> None:
    _lives.close()
