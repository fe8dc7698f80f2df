"""Sentinel and Cluster, as a fault run breaks them: one thing after the other, each until all is well again."""

import asyncio
import signal
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from redis.exceptions import RedisError

from broker import Unavailable
from broker.topology.slots import slot_of

from .. import topologies
from ..proxy import proxy
from .clocks import Clock
from .plan import Fault, Plan
from .redises import Redises, Server, start
from .story import Story
from .words import WORKSPACES

T = TypeVar("T")

WELL_SECONDS = 20.0
# A fault whose turn comes so long after the last one of the plan is left out.
LATE_SECONDS = 1.0
# For so long a master that was replaced may believe that it is one.
STALE_SECONDS = 3.0
WRONG = "nobody"


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What a thread answers. Raises `LookupError` for a `StopIteration`, which would never wake its waiter."""

    def call() -> T:
        try:
            return work(*arguments)
        except StopIteration:
            raise LookupError("there is no such server now") from None

    return await asyncio.to_thread(call)


class Several(Redises):
    """What Sentinel and Cluster have in common. Which server is struck is mostly decided by who leads."""

    whole: topologies.Sentinels | topologies.Cluster
    more_options: Mapping[str, int] = {}  # of each server

    def __init__(self, plan: Plan, directory: Path, library: Path | None, story: Story) -> None:
        super().__init__(plan, directory, library, story)
        self._turn = asyncio.Lock()

    @property
    def deeds(self) -> dict[str, Callable[[Fault], Awaitable[str]]]:
        deeds: dict[str, Callable[[Fault], Awaitable[str]]] = {
            "kill redis": self._kill,
            "stop redis": self._stop,
            "failover": self._fail_over,
        }
        return deeds | {"lossy failover": self._fail_over_with_loss}

    async def start(self) -> None:
        for redis in self.whole.servers:
            redis.options |= {**self.persistence, **self.more_options}
        await in_thread(self.whole.__enter__)
        self._lives.callback(self.whole.__exit__, None, None, None)
        for number, redis in enumerate(self.whole.servers, 1):
            name = f"redis-{number}"
            self.servers.append(Server(redis, name, Clock(None, self.directory / f"{name}.clock")))

    async def is_well(self) -> bool:
        with suppress(RedisError, OSError, AssertionError, StopIteration, LookupError):
            return await in_thread(self.whole.is_well)
        return False

    @property
    def urls(self) -> list[str]:
        return [self.url] * self.plan.nodes

    @property
    def producers_url(self) -> str:
        return self.url

    @abstractmethod
    async def victim(self, fault: Fault) -> topologies.Server:
        """Whom a fault strikes."""

    async def help(self) -> None:
        """Do what its own keepers do too, but late."""

    async def recover(self, victim: topologies.Server) -> None:
        """Start one that was killed, as whoever runs it would."""
        await start(victim)

    @abstractmethod
    async def ask_to_fail_over(self, victim: topologies.Server) -> None:
        """Have another take its place, in order."""

    @asynccontextmanager
    async def turn(self, fault: Fault) -> AsyncIterator[None]:
        """One at a time, and behind it all is well."""
        async with self._turn:
            if self.story.seconds > self.plan.seconds + LATE_SECONDS:
                raise TimeoutError("its turn came too late")
            yield
            begun = self.story.seconds
            async with asyncio.timeout(WELL_SECONDS):
                while not await self.is_well():
                    if self.story.seconds - begun > STALE_SECONDS:
                        await self.help()
                    await asyncio.sleep(0.1)

    async def _kill(self, fault: Fault) -> str:
        async with self.turn(fault):
            victim = await self.victim(fault)
            self.story.say_fault(fault, self._name(victim))
            await in_thread(victim.kill)
            await asyncio.sleep(fault.seconds)
            await self.recover(victim)
        return self._name(victim)

    async def _stop(self, fault: Fault) -> str:
        async with self.turn(fault):
            victim = await self.victim(fault)
            self.story.say_fault(fault, self._name(victim))
            victim.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                victim.signal(signal.SIGCONT)
        return self._name(victim)

    async def _fail_over(self, fault: Fault) -> str:
        async with self.turn(fault):
            victim = await self.victim(fault)
            self.story.say_fault(fault, self._name(victim))
            await self.ask_to_fail_over(victim)
        return self._name(victim)

    async def _fail_over_with_loss(self, fault: Fault) -> str:
        """Its replicas hear nothing more for a while; then it dies, and what it acknowledged meanwhile with it."""
        async with self.turn(fault):
            victim = await self.victim(fault)
            self.story.say_fault(fault, self._name(victim))
            await in_thread(self._cut_replicas, victim)
            await asyncio.sleep(fault.seconds)
            await in_thread(victim.kill)
            await asyncio.sleep(2 * topologies.DOWN_MS / 1000)
            await in_thread(self._connect_replicas, victim)
            await self.recover(victim)
        return self._name(victim)

    def _cut_replicas(self, victim: topologies.Server) -> None:
        for server in self.whole.servers:
            self._login(server, WRONG)
        victim.ask("CLIENT", "KILL", "TYPE", "replica")

    def _connect_replicas(self, victim: topologies.Server) -> None:
        for server in self.whole.servers:
            if server is not victim:
                self._login(server, "")

    @staticmethod
    def _login(server: topologies.Server, name: str) -> None:
        """As whom it asks its master to be its replica."""
        for directive in ("masteruser", "masterauth"):
            topologies.wait(lambda: server.ask("CONFIG", "SET", directive, name), "a server that is told its login")  # noqa: B023

    def _name(self, victim: topologies.Server) -> str:
        return next(server.name for server in self.servers if server.redis is victim)


class Sentinel(Several):
    """A master, two replicas, three sentinels. All is reached over a link before each server, by which it is known.

    Sentinel tells a master that it is none any more some ten seconds late; we do it sooner, so that more than one fault
    finds its turn. Until then it must not take writes, which would be lost: one whose replicas have left it takes none.
    """

    more_options: Mapping[str, int] = {"min_replicas_to_write": 1, "min_replicas_max_lag": 1}
    replicas = 2

    def __init__(self, plan: Plan, directory: Path, library: Path | None, story: Story) -> None:
        super().__init__(plan, directory, library, story)
        self.whole: topologies.Sentinels = topologies.Sentinels()

    async def start(self) -> None:
        for server in self.whole.servers:
            link = await self._lives.enter_async_context(proxy(server.port))
            self.links.append(link)
            server.public_port = server.options["replica_announce_port"] = link.port
        await super().start()

    @property
    def url(self) -> str:
        return self.whole.url

    @property
    def deeds(self) -> dict[str, Callable[[Fault], Awaitable[str]]]:
        return super().deeds | {"kill sentinel": self._kill_sentinel, "deaf link": self._deafen}

    async def victim(self, fault: Fault) -> topologies.Server:
        if fault.target % 4 == 0:
            return self.whole.servers[fault.target % len(self.whole.servers)]
        return await in_thread(lambda: self.whole.master)

    async def recover(self, victim: topologies.Server) -> None:
        """As a replica of whom the sentinels name: a master that comes back as one misleads who asks too early."""
        port = await in_thread(self._named)
        role = self.directory / f"{self._name(victim)}.conf"
        role.write_text(f"replicaof 127.0.0.1 {port}\n" if port != victim.public_port else "")
        victim.options["include"] = str(role)
        await super().recover(victim)

    async def help(self) -> None:
        with suppress(RedisError, OSError):
            await in_thread(self._demote)

    def _demote(self) -> None:
        """Tell who believes to be the master besides the one on which all sentinels agree."""
        told = [sentinel.ask("SENTINEL MASTER", topologies.SERVICE) for sentinel in self.whole.sentinels]
        if {one["flags"] for one in told} == {"master"} and len({one["port"] for one in told}) == 1:
            for server in self.whole.servers:
                if server.public_port != int(told[0]["port"]) and server.role == "master":
                    server.ask("REPLICAOF", "127.0.0.1", told[0]["port"])

    def _named(self) -> int:
        sentinel = self.whole.sentinels[0]
        asked = ("SENTINEL GET-MASTER-ADDR-BY-NAME", topologies.SERVICE)
        return int(topologies.wait(lambda: sentinel.ask(*asked), "a sentinel that names a master")[1])

    async def ask_to_fail_over(self, victim: topologies.Server) -> None:
        await in_thread(self.whole.sentinels[0].ask, "SENTINEL FAILOVER", topologies.SERVICE)

    async def _deafen(self, fault: Fault) -> str:
        """A partition: one is reached by nobody, neither replicas nor sentinels, and has closed nothing."""
        async with self.turn(fault):
            victim = await self.victim(fault)
            link = self.links[self.whole.servers.index(victim)]
            self.story.say_fault(fault, self._name(victim))
            link.pause()
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                link.go_on()
        return self._name(victim)

    async def _kill_sentinel(self, fault: Fault) -> str:
        async with self.turn(fault):
            sentinel = self.whole.sentinels[fault.target % len(self.whole.sentinels)]
            self.story.say_fault(fault, "a sentinel")
            await in_thread(sentinel.kill)
            await asyncio.sleep(fault.seconds)
            await start(sentinel)
        return "a sentinel"


class Cluster(Several):
    """Three masters with a replica each. All is reached over a link before each server, which it announces itself."""

    replicas = 1

    def __init__(self, plan: Plan, directory: Path, library: Path | None, story: Story) -> None:
        super().__init__(plan, directory, library, story)
        self.whole: topologies.Cluster = topologies.Cluster()

    async def start(self) -> None:
        await super().start()
        for server in self.whole.servers:
            link = await self._lives.enter_async_context(proxy(server.port))
            self.links.append(link)
            server.options["cluster_announce_port"] = link.port
            await in_thread(server.ask, "CONFIG", "SET", "cluster-announce-port", link.port)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{link.port}" for link in self.links)

    @property
    def deeds(self) -> dict[str, Callable[[Fault], Awaitable[str]]]:
        return super().deeds | {"move slot": self._move}

    async def victim(self, fault: Fault) -> topologies.Server:
        if fault.target % 4 == 0:
            return self.whole.servers[fault.target % len(self.whole.servers)]
        return await in_thread(self.whole.master_of, self._slot(fault))

    async def ask_to_fail_over(self, victim: topologies.Server) -> None:
        replica = await in_thread(self._replica, victim)
        await in_thread(replica.ask, "CLUSTER FAILOVER")

    @staticmethod
    def _slot(fault: Fault) -> int:
        """The slot of a workspace, whose name is the hash tag of all its keys."""
        return slot_of(WORKSPACES[fault.target // 4 % len(WORKSPACES)])

    def _replica(self, victim: topologies.Server) -> topologies.Server:
        """Itself, if it is one."""
        if victim.role != "master":
            return victim
        own = self.whole.id_of(victim)
        nodes = victim.ask("CLUSTER NODES").values()
        ids = {node["node_id"] for node in nodes if node["master_id"] == own}
        return next(server for server in self.whole.servers if self.whole.id_of(server) in ids)

    async def _move(self, fault: Fault) -> str:
        """A workspace's slot goes to another master, with all keys in it, while it is in use."""
        async with self.turn(fault):
            slot = self._slot(fault)
            source = await in_thread(self.whole.master_of, slot)
            target = await in_thread(self.whole.other_than, source)
            self.story.say_fault(fault, f"{slot} from {self._name(source)} to {self._name(target)}")
            await in_thread(self.whole.move, slot, target)
        return f"{slot}"


async def started(plan: Plan, directory: Path, library: Path | None, story: Story) -> Redises:
    """The Redis that a plan wants. Its ports were free when they were chosen; if one is taken by now, on others."""
    kinds: dict[str, type[Redises]] = {"single": Redises, "sentinel": Sentinel, "cluster": Cluster}
    redises = kinds[plan.topology](plan, directory, library, story)
    try:
        await redises.start()
    except Unavailable as error:
        story.say("redis", str(error))
        await redises.close()
        redises = kinds[plan.topology](plan, directory, library, story)
        await redises.start()
    return redises
