"""Peers: servers that all know the same and say as of which epoch, as the sentinels of a service or a cluster's nodes.

One that is cut off from the others still answers, as of the past, and for long: whoever believed it would go to a
master that is none any more. So an older epoch than the newest one that was heard is not believed, unless most say so:
then they were set up anew. They are asked in turn, so that who was believed at first is found out.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

from ..errors import Unavailable
from . import Host

# Who did not answer is asked last for so long: meanwhile it would only keep us from the others.
SILENT_SECONDS = 30.0

T = TypeVar("T")


class Peers:
    """Those that the URL names, and those that are known of since."""

    def __init__(self, named: Iterable[Host]) -> None:
        self._named = tuple(named)
        self._hosts = list(self._named)
        self._silent_until: dict[Host, float] = {}
        self._epoch = 0

    def know(self, hosts: Iterable[Host]) -> None:
        """These are all there are now, besides those that the URL names."""
        present = dict.fromkeys([*self._named, *hosts])
        self._hosts = list(dict.fromkeys([*(host for host in self._hosts if host in present), *present]))
        self._silent_until = {host: until for host, until in self._silent_until.items() if host in present}

    def prefer(self, host: Host) -> None:
        """Ask this one first, next time."""
        self._hosts = list(dict.fromkeys([host, *self._hosts]))

    async def ask(self, question: Callable[[Host], Awaitable[tuple[int, T]]]) -> T:
        """The answer to a question, which brings the epoch with it. Raises `Unavailable` when none can be believed."""
        problem = "none was asked"
        older: list[tuple[int, T]] = []
        for host in self._in_turn():
            try:
                epoch, answer = await question(host)
            except Unavailable as error:
                problem = str(error)
                continue
            self._silent_until.pop(host, None)
            if epoch >= self._epoch:
                self._epoch = epoch
                return answer
            problem = f"{host} answers as of epoch {epoch}, and there was {self._epoch}"
            older.append((epoch, answer))
        if 2 * len(older) <= len(self._hosts):
            raise Unavailable(problem)
        self._epoch, answer = max(older, key=lambda each: each[0])
        return answer

    def _in_turn(self) -> Iterator[Host]:
        """Each once. Until it answers it counts as silent, also if whoever waits for it gives up."""
        now = monotonic()
        for host in sorted(self._hosts, key=lambda host: self._silent_until.get(host, 0.0) > now):
            self._hosts = [*(other for other in self._hosts if other != host), host]
            self._silent_until[host] = now + SILENT_SECONDS
            yield host
