"""A house of guests: some stay all the time, the others come and go, and some of those never come again."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from broker.positions import START, Position

from ..roll.words import FREEAGENTICS, MAXICORE
from ..support import token, until
from .guest import Diary, Guest
from .words import AGENTS, Interest, Published

STRANGER_SHARE = 0.25  # of those who come were never here
LAST_SECONDS = 60.0  # in which everybody has all, at the end


class Habits(NamedTuple):
    """Between how many seconds guests stay, and stay away."""

    stay: tuple[float, float] = (10.0, 70.0)
    away: tuple[float, float] = (0.5, 20.0)


class House:
    """One resident for each workspace, who wants all its events from the first on, so that its node hears all of them;
    and `seats` for those who come and go, for all events of a workspace, for one agent's or for FreeAgentics'."""

    def __init__(self, port: int, workspaces: Sequence[str], seats: int = 0, habits: Habits | None = None) -> None:
        self.diary = Diary()
        self._port = port
        self._habits = habits or Habits()
        self._workspaces = workspaces
        self._names = 0
        self._residents = [self._newcomer(Interest(MAXICORE, workspace), START) for workspace in workspaces]
        self._visitors = [self._newcomer(self._interest(seat)) for seat in range(seats)]
        self._lives: list[asyncio.Task[None]] = []

    @property
    def guests(self) -> list[Guest]:
        return self._residents + self._visitors

    @property
    def present(self) -> int:
        return sum(guest.is_here for guest in self.guests)

    async def open(self, lives: asyncio.TaskGroup) -> None:
        """Wait until the residents are here; the others begin to come then."""
        self._lives = [lives.create_task(_reside(guest)) for guest in self._residents]
        await until(lambda: self.present == len(self._residents), LAST_SECONDS, "the residents to come")
        self._lives += [lives.create_task(self._come_and_go(seat)) for seat in range(len(self._visitors))]

    async def close(self, lives: asyncio.TaskGroup, published: Published) -> None:
        """Wait until everybody has come once more and has all that was published, or does not get it; settle, and end
        all visits."""
        visitors = self._lives[len(self._residents) :]
        await _end(visitors)
        self._lives += [lives.create_task(_reside(guest)) for guest in self._visitors]
        with suppress(AssertionError):  # whoever asks the diary is told what is missing
            await until(lambda: all(one.is_here and one.has_all(published) for one in self.guests), LAST_SECONDS)
        for guest in self.guests:
            guest.settle(published)
        await _end(self._lives)

    async def _come_and_go(self, seat: int) -> None:
        while True:
            await asyncio.sleep(random.uniform(*self._habits.away))
            guest = self._visitors[seat]
            await guest.stay(random.uniform(*self._habits.stay), is_polite=random.random() < 0.5)
            if random.random() < STRANGER_SHARE:
                guest.settle(None)
                self._visitors[seat] = self._newcomer(guest.interest)

    def _newcomer(self, interest: Interest, since: Position | None = None) -> Guest:
        self._names += 1
        credentials = token(interest.workspace, sub=f"user-{self._names}", ttl=24 * 3600)
        return Guest(interest, credentials, port=self._port, diary=self.diary, since=since)

    def _interest(self, seat: int) -> Interest:
        kinds = ((FREEAGENTICS, None), (MAXICORE, AGENTS[seat % len(AGENTS)]), (MAXICORE, None))
        tongue, agent = kinds[seat % len(kinds)]
        return Interest(tongue, self._workspaces[seat % len(self._workspaces)], agent)


async def _reside(guest: Guest) -> None:
    """Stay; and come again whenever the server ends the visit."""
    while True:
        await guest.stay()
        await asyncio.sleep(random.uniform(0.1, 1.0))


async def _end(lives: Sequence[asyncio.Task[None]]) -> None:
    for life in lives:
        life.cancel()
    if lives:
        await asyncio.wait(lives)
