"""Agents with a socket of their own: they say what they do, and are present for as long as they are there."""

import asyncio
import json
import random
from itertools import count
from typing import Any

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .journal import Journal
from .story import Story
from .watchers import BALANCERS_OWN, old_token
from .words import Key

SAY_SECONDS = 0.4


class Resident:
    """One agent of `workspace`. What it has said is told when the pong behind it comes and no error came before."""

    def __init__(  # noqa: PLR0917 (made in one place)
        self, name: str, workspace: str, url: str, journal: Journal, story: Story, chance: random.Random
    ) -> None:
        self.name, self._workspace = name, workspace
        self.token = old_token(workspace, sub=name, agent_id=name, scope="events:write")
        self._url = f"{url}/v2/ws?token={self.token}"
        self._journal, self._story, self._chance = journal, story, chance
        self._visits = 0
        self.surprises: list[str] = []

    async def run(self) -> None:
        while True:
            try:
                await self._visit()
            except InvalidStatus as refused:
                if refused.response.status_code not in BALANCERS_OWN:
                    self.surprises.append(f"was not let in: {refused.response.status_code}")
            except (OSError, InvalidHandshake, ConnectionClosed):
                pass
            await asyncio.sleep(self._chance.uniform(0.05, 0.4))

    async def _visit(self) -> None:
        options: dict[str, Any] = {"ping_interval": None, "compression": None, "proxy": None}
        async with websockets.asyncio.client.connect(self._url, open_timeout=8, close_timeout=1, **options) as socket:
            self._story.say(self.name, "connected")
            # What was on its way on the connection before may arrive behind what is said on this one.
            self._visits += 1
            for number in count():
                key = Key(self._workspace, f"{self.name}.{self._visits}", number)
                self._journal.try_([key])
                await socket.send(json.dumps({"type": "task.progress", "task_id": str(key), "step": key.number}))
                await socket.send(json.dumps({"type": "ping"}))
                if await self._is_taken(socket):
                    self._journal.told([(key, None)])
                await asyncio.sleep(self._chance.uniform(0, 2 * SAY_SECONDS))

    async def _is_taken(self, socket: websockets.asyncio.client.ClientConnection) -> bool:
        is_refused = False
        while (message := json.loads(await socket.recv()))["type"] != "pong":
            if message["type"] == "error":
                is_refused = True
                if message["error"]["code"] != "UNAVAILABLE":
                    self.surprises.append(f"was told {message}")
        return not is_refused
