"""Purging: what is left of an agent that was deleted goes, and nothing of any other agent.

Its events   They are left out of a copy of the workspace's log, which takes the log's place (purge.lua): a stretch at a
             time, so that nobody waits for a long log or for large events. The event that says it was deleted stays, so
             that whoever was away hears of it. A position of an event that is gone is none any more: a gap.
Its runs     An agent may run workflows under its own id, as an endpoint. Nothing lists the runs that have ended, so the
             names of all keys are read; only for an agent that has been such an endpoint.
Its hash     It goes last: as long as it is there, a purge that was cut short can be called again.
"""

import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from redis.asyncio import Redis

from ..commands.exchange import unpack_command
from ..credentials import Credentials, KeyUnknown
from ..errors import Invalid
from ..keyspace import Keyspace
from ..script import Script
from .asking import ask

STRETCH_ENTRIES = 200
COPY_SECONDS = 60
SCAN_NAMES = 1000


class Purge:
    """Every method raises `Unavailable` when Redis does not answer; all can be called again."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self._redis = redis
        self._keys = keys
        self._script = Script(redis, "purge")
        self._credentials = Credentials(redis, keys)

    async def run(self, workspace: str, agent: str) -> None:
        """Remove all that is left of an agent that was deleted."""
        await self._events(workspace, agent)
        await self._commands(workspace, agent)
        if await self._was_endpoint(workspace, agent):
            await self._runs(workspace, agent)
            await self._api_keys(workspace, agent)
        keys = self._keys
        kinds = (
            keys.listening,
            keys.commands,
            keys.runs,
            keys.held,
            keys.served,
            keys.returned,
            keys.cancels,
            keys.agent,
        )
        await self._delete(*(name(workspace, agent) for name in kinds))

    async def _events(self, workspace: str, agent: str) -> None:
        keys = self._keys
        stays: Any = await ask(lambda: self._redis.hget(keys.agent(workspace, agent), "position"))
        names = [keys.log(workspace), keys.purging(workspace, secrets.token_hex(8)), keys.workspace(workspace)]
        if stays is None:
            return  # another has just finished this purge
        terms = [agent, stays, STRETCH_ENTRIES, COPY_SECONDS]
        rest: list[bytes] = [b""]  # as when all begins anew
        while rest:
            arguments = terms + ([] if rest == [b""] else rest)
            rest = await ask(lambda arguments=arguments: self._script.run(names, arguments))  # type: ignore[misc]

    async def _commands(self, workspace: str, agent: str) -> None:
        """Those that it has not settled wait no longer."""
        entries: Any = await ask(lambda: self._redis.xrange(self._keys.commands(workspace, agent)))
        waiting = [key for _, fields in entries if (key := _command_key(fields.get(b"c", b"")))]
        if waiting:
            await ask(lambda: self._redis.zrem(self._keys.waiting(workspace), *waiting))

    async def _was_endpoint(self, workspace: str, agent: str) -> bool:
        keys = self._keys
        names = [keys.runs(workspace, agent), keys.held(workspace, agent), keys.served(workspace, agent)]
        if await self._owner(agent) == workspace.encode():
            return True
        return bool(await ask(lambda: self._redis.exists(*names)))

    async def _owner(self, endpoint: str) -> Any:
        """The workspace of an endpoint; its name is one for all workspaces."""
        return await ask(lambda: self._redis.hget(self._keys.endpoint(endpoint), "workspace"))

    async def _runs(self, workspace: str, agent: str) -> None:
        """Its runs, wherever they stand, and what its clients' connections remember of them."""
        first = self._keys.run(workspace, "")
        async for names in self._scan(first):
            owners: Any = await self._owners(names)
            gone = [name for name, owner in zip(names, owners, strict=True) if owner == agent.encode()]
            executions = [name.removeprefix(first.encode()) for name in gone]
            ends = [self._keys.end(workspace, execution.decode()) for execution in executions]
            if gone:
                await ask(lambda executions=executions: self._redis.zrem(self._keys.queued(workspace), *executions))  # type: ignore[misc]
                await self._delete(*ends, *gone)  # only the run says whose end it is
        async for names in self._scan(self._keys.connection(workspace, agent, "")):
            await self._delete(*names)

    async def _owners(self, names: list[bytes]) -> Any:
        async def owners() -> Any:
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(name.decode(), "endpoint")
                return await pipe.execute()

        return await ask(owners)

    async def _api_keys(self, workspace: str, agent: str) -> None:
        """They open nothing any more, on any node, and are forgotten; so is the endpoint, unless another owns it."""
        for key in await self._credentials.list(agent, workspace):
            hash_: Any = await ask(lambda key=key: self._redis.hget(self._keys.api_keys, key.id))  # type: ignore[misc]
            if hash_ is None:
                continue  # another purge has just forgotten it
            with contextlib.suppress(KeyUnknown):  # now
                await self._credentials.revoke(key.id)
            await self._forget(key.id, self._keys.key(hash_.decode()))
        if await self._owner(agent) == workspace.encode():
            await self._delete(self._keys.endpoint(agent))

    async def _forget(self, key_id: str, record: str) -> None:
        """As one step: cut short between the two, nobody would find the other."""

        async def forget() -> None:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(record)
                pipe.hdel(self._keys.api_keys, key_id)
                await pipe.execute()

        await ask(forget)

    async def _scan(self, beginning: str) -> AsyncIterator[list[bytes]]:
        """The names that begin so, some at a time."""
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", beginning) + "*"
        cursor = 0
        while True:
            # They all lie in the slot of `beginning`: in a cluster that is one node.
            scan = partial(self._redis.scan, cursor, pattern, SCAN_NAMES, keys=[beginning])
            answer: Any = await ask(scan)
            cursor, names = answer
            if names:
                yield names
            if not cursor:
                return

    async def _delete(self, *names: str | bytes) -> None:
        """One call for each: they need not lie in one slot."""

        async def delete() -> None:
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.unlink(name)
                await pipe.execute()

        await ask(delete)


def _command_key(raw: bytes) -> str | None:
    try:
        return unpack_command(raw).key
    except Invalid:
        return None
