"""Performs a plan's faults on the fleet, each at its time, whatever the others are doing then."""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from redis.exceptions import RedisError

from broker import TrunklineError

from ..proxy import Proxy
from .clocks import now
from .fleet import Fleet
from .members import Member
from .model import NEVER, Loss, loss
from .plan import Fault
from .redises import Server
from .watchers import Watcher
from .words import flood

SLOW_SECONDS = 0.03  # for each piece that passes
LOST_ANSWERS = 3
FLOOD_EVENTS, FLOOD_BYTES = 60, 100_000


class Havoc:
    """What breaks. `done` counts the faults by kind, `undone` those for which something was missing, `losses` are those
    for which Redis may lose something."""

    def __init__(self, fleet: Fleet, readers: Sequence[Watcher]) -> None:
        self._fleet, self._readers = fleet, readers
        self.done, self.undone = Counter[str](), Counter[str]()
        self.losses: list[Loss] = []
        self._deeds: dict[str, Callable[[Fault], Awaitable[str]]] = {
            "kill node": self._kill_node,
            "term node": self._term_node,
            "stop node": self._stop_node,
            "roll nodes": self._roll_nodes,
            "node clock": self._jump,
            "stop redis": self._stop_redis,
            "redis clock": self._jump_of_redis,
            "restart redis": self._restart_redis,
            "kill redis": self._kill_redis,
            "kill connections": self._kill_connections,
            "cut link": self._cut_link,
            "deaf link": self._deafen_link,
            "slow link": self._slow_link,
            "lose answers": self._lose_answers,
            "stop reader": self._stop_reader,
            "kill producer": self._kill_producer,
            "kill worker": self._kill_worker,
            **fleet.redises.deeds,
        }

    async def wreak(self) -> None:
        """All of them; everything is there again when this returns, or on its way."""
        async with asyncio.TaskGroup() as group:
            for fault in self._fleet.plan.faults:
                await asyncio.sleep(max(0.0, fault.at - self._fleet.story.seconds))
                group.create_task(self._perform(fault))

    async def _perform(self, fault: Fault) -> None:
        story, is_done = self._fleet.story, False
        try:
            words = await self._deeds[fault.kind](fault)
        except (
            RedisError,
            OSError,
            TrunklineError,
            AssertionError,
            LookupError,
        ) as error:  # what it needs is not there
            self.undone[fault.kind] += 1
            words = f"could not be done: {type(error).__name__}: {error}"
        else:
            is_done = True
            self.done[fault.kind] += 1
        story.say("FAULT over", f"{fault.kind}: {words}")
        plan, struck = self._fleet.plan, story.struck.get(fault)
        reach, spares_copies = plan.reach(fault.kind), plan.spares_copies(fault.kind)
        if struck is not None and reach:
            # One that went wrong may have left a failover behind that is still to come.
            self.losses.append(loss(struck, now() if is_done else NEVER, reach, spares_copies=spares_copies))

    # -- nodes

    def _member(self, fault: Fault) -> Member:
        return self._fleet.members[fault.target % len(self._fleet.members)]

    async def _kill_node(self, fault: Fault) -> str:
        return await self._renew(fault, signal.SIGKILL)

    async def _term_node(self, fault: Fault) -> str:
        return await self._renew(fault, signal.SIGTERM)

    async def _renew(self, fault: Fault, number: int) -> str:
        member = self._member(fault)
        async with member.lock:
            self._fleet.story.say_fault(fault, member.name)
            await member.end(number)
            await asyncio.sleep(fault.seconds)
            await member.start()
        return member.name

    async def _stop_node(self, fault: Fault) -> str:
        member = self._member(fault)
        async with member.lock:
            self._fleet.story.say_fault(fault, member.name)
            await member.halt(fault.seconds)
        return member.name

    async def _roll_nodes(self, fault: Fault) -> str:
        """A deploy: one after the other, and each is ready before the next one leaves."""
        for member in self._fleet.members:
            async with member.lock:
                self._fleet.story.say_fault(fault, member.name)
                await member.end(signal.SIGTERM)
                await member.start()
            async with asyncio.timeout(20):
                while not await member.is_ready():
                    await asyncio.sleep(0.1)
        return "all"

    async def _jump(self, fault: Fault) -> str:
        member = self._member(fault)
        self._fleet.story.say_fault(fault, member.name)
        member.clock.jump(fault.seconds)
        return member.name

    # -- Redis

    def _server(self, fault: Fault) -> Server:
        servers = self._fleet.redises.servers
        return servers[fault.target % len(servers)]

    async def _stop_redis(self, fault: Fault) -> str:
        server = self._server(fault)
        async with server.lock:
            self._fleet.story.say_fault(fault, server.name)
            await server.halt(fault.seconds)
        return server.name

    async def _jump_of_redis(self, fault: Fault) -> str:
        server = self._server(fault)
        self._fleet.story.say_fault(fault, server.name)
        server.clock.jump(fault.seconds)
        return server.name

    async def _restart_redis(self, fault: Fault) -> str:
        return await self._renew_redis(fault, signal.SIGTERM)

    async def _kill_redis(self, fault: Fault) -> str:
        return await self._renew_redis(fault, signal.SIGKILL)

    async def _renew_redis(self, fault: Fault, number: int) -> str:
        server = self._server(fault)
        async with server.lock:
            self._fleet.story.say_fault(fault, server.name)
            await server.end(number)
            await asyncio.sleep(fault.seconds)
            await self._fleet.redises.revive(server)
        return server.name

    async def _kill_connections(self, fault: Fault) -> str:
        """Of the first server that has some: to most replicas nobody is connected."""
        servers, kind = self._fleet.redises.servers, ("normal", "pubsub")[fault.target // 8 % 2]
        first = fault.target % len(servers)
        for server in (*servers[first:], *servers[:first]):
            async with server.lock:
                if killed := await server.kill_connections(kind):
                    self._fleet.story.say_fault(fault, f"{killed} {kind} of {server.name}")
                    return server.name
        raise OSError("nobody is connected")

    # -- links

    def _link(self, fault: Fault) -> tuple[Proxy, str]:
        number = fault.target % len(self._fleet.links)
        return self._fleet.links[number], f"link {number}"

    async def _cut_link(self, fault: Fault) -> str:
        link, name = self._link(fault)
        self._fleet.story.say_fault(fault, name)
        link.cut()
        return name

    async def _deafen_link(self, fault: Fault) -> str:
        """Nothing passes, and nobody is told."""
        link, name = self._link(fault)
        self._fleet.story.say_fault(fault, name)
        link.pause()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            link.go_on()
        return name

    async def _slow_link(self, fault: Fault) -> str:
        link, name = self._link(fault)
        self._fleet.story.say_fault(fault, name)
        link.delay_seconds = SLOW_SECONDS
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            link.delay_seconds = 0.0
        return name

    async def _lose_answers(self, fault: Fault) -> str:
        """Redis has done what it was asked, and nobody hears of it. The last link, which may be the producers' own, is
        struck twice as often."""
        links = self._fleet.redises.links
        number = min(fault.target % (len(links) + 1), len(links) - 1)
        link, name = links[number], f"link {number}"
        self._fleet.story.say_fault(fault, name)
        link.lose_answers(LOST_ANSWERS)
        return name

    # -- who publishes, works and watches

    async def _stop_reader(self, fault: Fault) -> str:
        """It stops reading while more comes for it than any buffer takes."""
        reader = self._readers[fault.target % len(self._readers)]
        self._fleet.story.say_fault(fault, reader.name)
        reader.reads.clear()
        try:
            async with asyncio.timeout(fault.seconds):
                for number in range(FLOOD_EVENTS):
                    await self._fleet.broker.publish(flood(reader.words.flood, number, FLOOD_BYTES))
                await asyncio.sleep(fault.seconds)
        except TimeoutError:
            pass
        finally:
            reader.reads.set()
        return reader.name

    async def _kill_producer(self, fault: Fault) -> str:
        publishers = self._fleet.publishers
        number = fault.target % len(publishers)
        self._fleet.story.say_fault(fault, f"producer {number}")
        await publishers[number].kill()
        return f"producer {number}"

    async def _kill_worker(self, fault: Fault) -> str:
        self._fleet.crew.complete()
        self._fleet.story.say_fault(fault, "a worker")
        await asyncio.to_thread(self._fleet.crew.kill, fault.target % 2)
        return "a worker"
