"""A guest: a client that comes, stays and goes, and wants what it missed when it comes again. All keep one diary."""

import asyncio
from array import array
from collections import Counter
from collections.abc import Iterable
from time import monotonic
from typing import NamedTuple

from websockets.frames import Close, Frame, Opcode

from broker.positions import Position

from ..bench.clients import masked
from ..bench.reading import Tally
from ..roll.client import NOBODY, PATIENCE_SECONDS, Ending, Line, request
from ..roll.words import GAPS, PING
from . import words
from .words import Interest, Published

GOODBYE_SECONDS = 2.0


class Page(NamedTuple):
    """Events that came `live`, and those that were published before the guest was there."""

    live: "array[float]"
    caught_up: "array[float]"


def joined(pages: Iterable[Page]) -> Page:
    """Of several diaries."""
    whole = Page(array("d"), array("d"))
    for page in pages:
        whole.live.extend(page.live)
        whole.caught_up.extend(page.caught_up)
    return whole


class Diary:
    """What the guests of one house have seen.

    The page that is open has, of each event, the seconds from publish to guest. `wrong` counts events lost, doubled and
    reordered without a word, `said` those lost and doubled where a gap was said; `endings` are the connections that the
    server ended, or refused, by code or status.
    """

    def __init__(self) -> None:
        self.page = Page(array("d"), array("d"))
        self.visits = 0
        self.gaps = 0
        self.wrong = Counter[str]()
        self.said = Counter[str]()
        self.endings = Counter[int]()

    def turn_over(self) -> Page:
        """The page, after which a new one begins."""
        page, self.page = self.page, Page(array("d"), array("d"))
        return page


class Guest:
    """`is_here` is True while it is connected and has all up to now.

    It wants what came after `since`, from the first number on; without it what comes from its first event on.
    """

    def __init__(
        self, interest: Interest, token: str, *, port: int, diary: Diary, since: Position | None = None
    ) -> None:
        self.interest = interest
        self.here_since: float | None = None
        self._request = request(interest.tongue.path + token)
        self._port = port
        self._diary = diary
        self._tally = Tally()
        self._since: str | None = since
        self._was_told_a_gap = False

    @property
    def is_here(self) -> bool:
        return self.here_since is not None

    async def stay(self, seconds: float | None = None, *, is_polite: bool = True) -> Ending | None:
        """One visit: how the server ended it, or None when the guest left after `seconds`; politely with a close frame,
        else as who walks out of the network."""
        opening = masked(self.interest.subscribe(self._since)) + masked(PING)
        visit = Visit(self._request, opening, self.take)
        self._diary.visits += 1
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: visit, "127.0.0.1", self._port)
                await visit.answered.wait()
            ended, _ = await asyncio.wait((visit.ended,), timeout=seconds)
            if not ended:
                if is_polite:
                    visit.take_leave()
                    await asyncio.wait((visit.ended,), timeout=GOODBYE_SECONDS)
                return None
            ending = visit.ended.result()
        except OSError:
            ending = Ending(monotonic(), 1006, NOBODY)
        finally:
            visit.abort()
            self.here_since = None
        self._diary.endings[ending.code if ending.status == 101 else ending.status] += 1
        return ending

    def take(self, payload: bytes) -> None:
        """One message of the server."""
        told = words.hear(payload)
        if told.type == self.interest.tongue.kind and told.data is not None:
            self._see(self.interest.number(told.data))
            self._since = told.event_id
            is_live = self.here_since is not None and told.data.at >= self.here_since
            page = self._diary.page
            (page.live if is_live else page.caught_up).append(monotonic() - told.data.at)
        elif told.type == "pong":
            self.here_since = monotonic()  # what it asked for before its ping has been sent
        elif told.type in GAPS:
            self._diary.gaps += 1
            self._was_told_a_gap = True

    def has_all(self, published: Published) -> bool:
        """True when it has what was published since it came first."""
        return self._since is None or self._tally.expected >= published[words.key(self.interest)]

    def settle(self, published: Published | None) -> None:
        """Write down what it did not get in order; of what came after its last visit only if it is told the whole."""
        if self._since is not None:
            total = self._tally.expected if published is None else published[words.key(self.interest)]
            wrong = {"doubled": self._tally.doubled, "reordered": self._tally.reordered}
            self._diary.wrong.update(wrong | {"lost": self._tally.lost(total)})

    def _see(self, number: int) -> None:
        tally = self._tally
        if self._since is None:
            tally.expected = number  # it may come to a show that has begun
        elif self._was_told_a_gap:
            self._diary.said.update(lost=max(0, number - tally.expected), doubled=max(0, tally.expected - number))
            tally.expected = number
        self._was_told_a_gap = False
        tally.see(number)


class Visit(Line):
    """A connection that its client may end."""

    def take_leave(self) -> None:
        assert self._transport is not None
        self._transport.write(Frame(Opcode.CLOSE, Close(1000, "").serialize()).serialize(mask=True))
