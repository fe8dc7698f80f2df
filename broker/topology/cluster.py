"""Cluster: commands go to the node that has their slot.

redis-py has a client for this, which is not for us: an ASK is followed on two connections of a pool, and so is not
followed at all as soon as it has two of them; any CLUSTERDOWN and every fifth MOVED closes the connections of all
others, whose answers are lost; a pool without a free connection is an error; and it fails by errors that are no
`RedisError`. Here each node has a client as one Redis has it, and this file adds the way to the right one.

Redirected     A command that is answered MOVED, ASK or TRYAGAIN did not run: it is sent again, where it is told.
Failed         One whose answer is lost is not sent again. The map of slots is read anew before the next one.
Pipelines      are split by node, and answered in their order. Commands on the same slot keep theirs.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import AskError, ClusterDownError, MovedError, ReadOnlyError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..address import Address
from ..errors import Unavailable
from ..patience import pause
from ..resp import ask_all
from . import Host
from .peers import Peers
from .slots import Slots, slot_of_command

ANSWER_SECONDS = 1.0
MAX_REDIRECTIONS = 16
_TRY_AGAIN_SECONDS = 0.05

_REDIRECTED = (MovedError, AskError, TryAgainError)
# After these another node may have the slot.
_ELSEWHERE = (RedisConnectionError, RedisTimeoutError, ClusterDownError, ReadOnlyError, OSError)

Words = tuple[Any, ...]
Options = Mapping[str, Any]
Staged = tuple[Words, Options]


class Map:
    """Which node has which slot, asked of the nodes themselves."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._nodes = Peers(address.hosts)
        self._asking = asyncio.Lock()
        self.slots = Slots()
        self.is_stale = True
        self._answers = 0

    async def refresh(self) -> None:
        """Ask the nodes, until one answers that can be believed. Raises `Unavailable` when none does."""
        try:
            host, ranges = await self._nodes.ask(self._ask)
        except Unavailable as error:
            raise Unavailable(f"no node answers of {self._address}: {error}") from error
        self.slots.load(ranges, host)
        self._nodes.know(self.slots.nodes)
        self.is_stale = False
        self._answers += 1

    async def owner(self, slot: int) -> Host:
        """The node that has the slot. Raises `Unavailable`."""
        if self.is_stale:
            answers = self._answers
            async with self._asking:
                # Whoever has waited takes what was answered meanwhile. While a node is away, commands to it let the map
                # be stale again at once, and each would wait for all who came before it.
                if self.is_stale and answers == self._answers:
                    await self.refresh()
        owner = self.slots.owner(slot)
        if owner is None:
            self.is_stale = True
            raise Unavailable(f"no node has slot {slot} of {self._address}")
        return owner

    def move(self, slot: int, owner: Host) -> None:
        """Who redirects us knows it newer than the map. Whom it names is asked first, next time."""
        self.slots.move(slot, owner)
        self._nodes.prefer(owner)

    async def _ask(self, host: Host) -> tuple[int, tuple[Host, Any]]:
        """What a node knows. Raises `Unavailable`, also where it is no part of a cluster (any more)."""
        questions = ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")
        info, ranges = await ask_all(self._address.at(host), *questions, seconds=ANSWER_SECONDS)
        if not ranges:
            raise Unavailable(f"{host} knows of no slots")
        return int(info.partition(b"cluster_current_epoch:")[2].split()[0]), (host, ranges)


class Cluster(Redis):
    """The nodes of a cluster as one client."""

    def __init__(self, address: Address, connect: Callable[[Host], Redis]) -> None:
        """`connect` makes the client of one node."""
        super().__init__()  # for the methods that make commands; it opens nothing
        self._connect = connect
        self._nodes: dict[Host, Redis] = {}
        self._map = Map(address)
        self._silent: set[Host] = set()

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        slot = slot_of_command(words, options.get("keys", ()))
        if slot is None:
            return await self._anywhere(words, options)
        return await self._lead(slot, words, options)

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> "ClusterPipeline":
        """There are no transactions over nodes: what must be atomic is a script."""
        assert not transaction
        return ClusterPipeline(self)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections; the next command opens what it needs."""
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.aclose(close_connection_pool)

    async def run_all(self, commands: Sequence[Staged]) -> list[Any]:
        """One round trip to each node concerned; answers, or how they failed, in the order of `commands`."""
        slots: list[int] = []
        for words, options in commands:
            slot = slot_of_command(words, options.get("keys", ()))
            # What any node can answer goes with the command before it.
            slots.append(slot if slot is not None else slots[-1] if slots else 0)
        by_node: dict[Host, list[int]] = {}
        for at, slot in enumerate(slots):
            by_node.setdefault(await self._owner(slot), []).append(at)
        answers: list[Any] = [None] * len(commands)

        parts = [self._run_many(host, [commands[at] for at in numbers]) for host, numbers in by_node.items()]
        for numbers, found in zip(by_node.values(), await _all(parts), strict=True):
            for at, answer in zip(numbers, found, strict=True):
                answers[at] = answer
        for at, answer in enumerate(answers):
            if isinstance(answer, _ELSEWHERE):
                self._map.is_stale = True
            elif isinstance(answer, _REDIRECTED):
                try:
                    answers[at] = await self._lead(slots[at], *commands[at])
                except Exception as error:
                    answers[at] = error
        return answers

    async def _lead(self, slot: int, words: Words, options: Options) -> Any:
        """Send a command to whoever has the slot, wherever that is by the time."""
        problem: Exception | None = None
        asked: Host | None = None
        for _ in range(MAX_REDIRECTIONS):
            host = await self._owner(slot)
            try:
                if asked is None:
                    return await self._run(host, words, options)
                host, asked = asked, None
                # Both on one connection, as the permission is for the next command alone.
                _, answer = await self._run_many(host, [(("ASKING",), {}), (words, options)])
                if not isinstance(answer, Exception):
                    return answer
                raise answer
            except MovedError as error:
                problem = error
                self._map.move(slot, Host(error.host or host.name, error.port))
            except AskError as error:
                problem, asked = error, Host(error.host or host.name, error.port)
            except TryAgainError as error:
                problem = error
                await pause(_TRY_AGAIN_SECONDS)
        assert problem is not None
        raise problem

    async def _anywhere(self, words: Words, options: Options) -> Any:
        """What any node can answer, from the first that does."""
        if not self._map.slots.masters:
            try:
                await self._map.refresh()
            except Unavailable as error:
                raise RedisConnectionError(str(error)) from error
        problem: Exception | None = None
        for host in sorted(self._map.slots.masters, key=self._silent.__contains__):
            # Until it answers: whoever asks meanwhile, or after giving this up, asks another one first.
            self._silent.add(host)
            try:
                answer = await self._run(host, words, options)
            except _ELSEWHERE as error:
                problem = error
            else:
                self._silent.discard(host)
                return answer
        assert problem is not None
        raise problem

    async def _run(self, host: Host, words: Words, options: Options) -> Any:
        with self._noting_loss():
            return await self._node(host).execute_command(*words, **options)  # type: ignore[no-untyped-call]

    async def _run_many(self, host: Host, commands: Sequence[Staged]) -> list[Any]:
        with self._noting_loss():
            async with self._node(host).pipeline(transaction=False) as pipe:
                for words, options in commands:
                    pipe.execute_command(*words, **options)
                return await pipe.execute(raise_on_error=False)

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        """What fails as if another node had the slot, or is given up, lets the map be asked for before the next."""
        try:
            yield
        except (*_ELSEWHERE, asyncio.CancelledError):
            self._map.is_stale = True
            raise

    async def _owner(self, slot: int) -> Host:
        try:
            return await self._map.owner(slot)
        except Unavailable as error:
            raise RedisConnectionError(str(error)) from error

    def _node(self, host: Host) -> Redis:
        node = self._nodes.get(host)
        if node is None:
            node = self._nodes[host] = self._connect(host)
        return node


class ClusterPipeline(Pipeline):
    """Commands that are sent together, each to its node."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction=False, shard_hint=None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = self.command_stack, []
        answers = await self._cluster.run_all(commands)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers


async def _all(calls: Sequence[Coroutine[Any, Any, list[Any]]]) -> list[list[Any]]:
    """Their answers, when all have ended; one alone needs no task."""
    if len(calls) == 1:
        return [await calls[0]]
    found = await asyncio.gather(*calls, return_exceptions=True)
    for answers in found:
        if isinstance(answers, BaseException):
            raise answers
    return cast(list[list[Any]], found)
