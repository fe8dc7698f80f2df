"""Replicas: have so many of them what was published that a failover does not take it back?

Redis answers a publish before its replicas have it. Who wants to be sure asks here afterwards, on connections that
carry nothing else: nobody else's publish waits for it.

Round   At one server, for one number of replicas, one at a time: the life of each producer's record is begun anew (the
        smallest write there is), the record is read, and WAIT says how many replicas have acknowledged all of that.
        Whoever asks meanwhile is in the next round, so a thousand who ask cost a few rounds.
Lost    A record that ends before a call is of another history: a failover took the call with it.
Sure    What WAIT counts is in the memory of so many replicas. One of them must be who is promoted: Sentinel and Cluster
        take the replica that has most, of those that they reach.
"""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import hiredis

from .address import Address
from .errors import Unavailable
from .keyspace import PRODUCER_SECONDS, Keyspace
from .patience import pause
from .resp import Command, Connection, connect
from .topology import Host
from .topology.routes import Route, route

ROUND_SECONDS = 0.25
ANSWER_SECONDS = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


class Call(NamedTuple):
    """A call of publish.lua that was answered: by its producer's id and its number."""

    workspace: str
    producer: str
    number: int


# True: so many replicas have it. False: it is lost. Else why neither is known.
Verdict = bool | str


class Replicas:
    """The replicas of all servers behind one address."""

    def __init__(self, address: Address, keys: Keyspace, name: str) -> None:
        self._address = address
        self._keys = keys
        self._name = name
        self._route: Route = route(address, keys)
        self._looking = asyncio.Lock()
        self._is_stale = True
        self._rounds: dict[tuple[Host, int], Rounds] = {}

    async def have(self, calls: Sequence[Call], number: int, deadline: float) -> list[Verdict]:
        """Whether `number` replicas have each of `calls`; why that is not known by the deadline (`monotonic`)."""
        return await asyncio.gather(*(self._have(call, number, deadline) for call in calls))

    async def close(self) -> None:
        await asyncio.gather(*(rounds.close() for rounds in self._rounds.values()))

    async def _have(self, call: Call, number: int, deadline: float) -> Verdict:
        verdict: Verdict = "no answer so far"
        seconds, missed_at = _FIRST_PAUSE, None
        while (left := deadline - monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    rounds = await self._rounds_of(call.workspace, number)
            except (Unavailable, TimeoutError) as error:
                verdict = str(error) or verdict
            else:
                asked = rounds.ask(call)
                await asyncio.wait((asked,), timeout=left)
                if asked.done():
                    verdict = asked.result()
                    # A server that was started anew has nothing, while another one may have taken its place.
                    if verdict is True or (verdict is False and missed_at is rounds):
                        return verdict
                    missed_at = rounds if verdict is False else None
            # Perhaps another server has the workspace by now.
            self._is_stale = True
            await pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)
        return verdict or "it is not known whether Redis has it"

    async def _rounds_of(self, workspace: str, number: int) -> "Rounds":
        """Those at the server that has the workspace. Raises `Unavailable`."""
        if self._is_stale:
            async with self._looking:
                if self._is_stale:
                    await self._route.look()
                    self._is_stale = False
                    self._forget()
        host = self._route.server(workspace)
        if host is None:
            raise Unavailable(f"no server has the workspace, of {self._address}")
        rounds = self._rounds.get((host, number))
        if rounds is None:
            rounds = self._rounds[host, number] = Rounds(self._route.servers[host], self._keys, self._name, number)
        return rounds

    def _forget(self) -> None:
        """Let go of servers that take no writes any more; of one where somebody still waits, when we look again."""
        for place, rounds in list(self._rounds.items()):
            if place[0] not in self._route.servers and rounds.is_idle:
                rounds.disconnect()
                del self._rounds[place]


class Rounds:
    """The rounds at one server, for one number of replicas, on a connection of their own."""

    def __init__(self, address: Address, keys: Keyspace, name: str, number: int) -> None:
        self._address = address
        self._keys = keys
        self._name = name
        self._number = number
        self._waiting: dict[Call, asyncio.Future[Verdict]] = {}
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def ask(self, call: Call) -> "asyncio.Future[Verdict]":
        """Take part in the next round. The future is shared with others: wait for it, but do not await it directly."""
        asked = self._waiting.get(call)
        if asked is None:
            asked = self._waiting[call] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return asked

    @property
    def is_idle(self) -> bool:
        return self._task is None

    def disconnect(self) -> None:
        """The next round connects again."""
        if self._connection is not None:
            self._connection.close("the round has ended")

    async def close(self) -> None:
        """What is still asked stays without an answer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.disconnect()

    def on_pushes(self, pushes: Sequence[list[Any]]) -> None:
        """Nothing is pushed to who subscribes to nothing."""

    def on_lost(self, reason: str) -> None:
        self._connection = None

    async def _run(self) -> None:
        """Rounds, until nobody asks any more."""
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, {}
                for call, verdict in zip(asked, await self._round(list(asked)), strict=True):
                    asked[call].set_result(verdict)
        finally:
            self._task = None

    async def _round(self, calls: list[Call]) -> list[Verdict]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS + ROUND_SECONDS):
                if self._connection is None:
                    self._connection, _ = await connect(self._address, self, self._name)
                *found, count = await self._connection.call(
                    *(command for call in calls for command in self._commands(call)),
                    ("WAIT", self._number, int(1000 * ROUND_SECONDS)),
                )
        except (Unavailable, OSError) as error:  # TimeoutError is an OSError
            self.disconnect()
            return [str(error) or f"Redis at {self._address} does not answer"] * len(calls)
        return [
            judge(call, found[3 * at : 3 * at + 3], count, self._number, str(self._address))
            for at, call in enumerate(calls)
        ]

    def _commands(self, call: Call) -> tuple[Command, ...]:
        record = self._keys.producer(call.workspace, call.producer)
        # While a slot is on its way its keys are at two servers, and the replicas of one have not got all: the last
        # command fails then.
        rest = (self._keys.log(call.workspace), self._keys.workspace(call.workspace))
        return ("EXPIRE", record, PRODUCER_SECONDS), ("HGET", record, "number"), ("EXISTS", record, *rest)


def judge(call: Call, answers: Sequence[Any], count: Any, wanted: int, server: str) -> Verdict:
    """What the answers of one round say of `call`: those to its own commands, and what WAIT counted."""
    for answer in (*answers, count):
        if isinstance(answer, hiredis.ReplyError):
            return f"{server} refuses it: {answer}"
    _, number, _ = answers
    if number is None or int(number) < call.number:
        return False
    return count >= wanted or f"{count} of {wanted} replicas of {server} have acknowledged it"
