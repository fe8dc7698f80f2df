"""The fleet of a fault run: its Redis, nodes and HAProxy, and who publishes and works. All of it can be broken."""

import os
import random
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from broker import Broker, address
from broker.credentials import Credentials

from ..agnt5_chaos import Crew
from ..agnt5_chaos_worker import ENDPOINT, WORKSPACE
from ..proxy import Proxy, proxy
from ..support import Node, free_port
from .clocks import Clock, build
from .journal import read
from .members import PREFIX, Member
from .model import Receipt
from .plan import Plan
from .producer import LOG_EVENTS
from .programs import haproxy
from .publishers import CommandLine, Publisher, Where
from .redises import OUR_NAME, Redises
from .story import Story
from .topologies import started
from .words import WORKSPACES

HAPROXY = Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"


class Fleet:
    """An async context manager: inside it everything runs, and who publishes has not begun."""

    def __init__(self, plan: Plan, directory: Path, story: Story, chance: random.Random) -> None:
        self.plan, self.directory, self.story, self._chance = plan, directory, story, chance
        self.journal = directory / "receipts"
        self.producers_log = directory / "producers.log"
        for path in (self.journal, self.producers_log):
            path.touch()
        self._lives = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as lives:
            library = build(self.directory)
            if library is None:
                self.story.say("clocks", "there is no C compiler: none of them jumps")
            self.redises: Redises = await started(self.plan, self.directory, library, self.story)
            lives.push_async_callback(self.redises.close)
            self.members = [
                Member(number, url, self.directory, Clock(library, self.directory / f"node-{number}.clock"), self.story)
                for number, url in enumerate(self.redises.urls, 1)
            ]
            for member in self.members:
                lives.callback(member.kill)
                await member.start()
            self.port = self._start_haproxy(lives)
            self.link = await lives.enter_async_context(proxy(self.port))
            self.broker = Broker(
                address.read(self.redises.url), prefix=PREFIX, log_events=LOG_EVENTS, name=OUR_NAME, patience_seconds=20
            )
            lives.push_async_callback(self.broker.close)
            self.key = (await Credentials(self.broker.redis, self.broker.keys).create(ENDPOINT, WORKSPACE)).key
            self.crew = Crew(2, self.redises.producers_url, PREFIX, self.directory)
            lives.callback(self.crew.dismiss)
            self.crew.complete()
            where = Where(self.redises.producers_url, self.journal, self.producers_log, self.plan.seed)
            self.publishers = [Publisher(number, where, insists=number != 1) for number in range(2)]
            self.publishers.append(Publisher(2, where, insists=True, min_replicas=self.redises.replicas))
            for publisher in self.publishers:
                lives.callback(publisher.abandon)
            self.command_line = CommandLine(WORKSPACES[0], where, self._chance)
            self._lives = lives.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lives.aclose()

    @property
    def links(self) -> list[Proxy]:
        return [*self.redises.links, self.link]

    def receipts(self) -> tuple[frozenset[str], list[Receipt]]:
        return read(self.journal)

    @property
    def fronts(self) -> list[Node]:
        """HAProxy as tests know a node: at its own port, and over a link."""
        return [Node("", "", port=port) for port in (self.port, self.link.port)]

    def _start_haproxy(self, lives: AsyncExitStack) -> int:
        """From the file in deploy/, with two lines more for each further node, as it says itself."""
        port = free_port()
        nodes = {f"NODE_{number}": f"127.0.0.1:{member.node.port}" for number, member in enumerate(self.members, 1)}
        text = HAPROXY.read_text()
        for name in nodes:
            if f'"${{{name}}}"' not in text:
                server = name.lower().replace("_", "-")
                text += f'    server {server} "${{{name}}}"\n'
                text += f'    server {server}-unready "${{{name}}}" backup no-check\n'
        path = self.directory / "haproxy.cfg"
        path.write_text(text)
        program = haproxy()
        assert program is not None, "no haproxy found"
        with (self.directory / "haproxy.log").open("ab") as log:
            process = subprocess.Popen(
                [program, "-db", "-f", str(path)],
                env=os.environ | nodes | {"LISTEN": f"127.0.0.1:{port}"},
                stdout=log,
                stderr=log,
            )
        lives.callback(_end, process)
        return port


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(10)
