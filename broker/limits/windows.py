"""Messages per window over the fleet, and how a limit is decided: by one script in Redis, else by this node alone.

A window is fixed and starts with its first message. Redis counts it for all nodes; each node keeps a count of its own
beside, of what it granted itself, and that decides when Redis gives no answer.
"""

from time import monotonic

from redis.asyncio import Redis

from ..keyspace import Keyspace
from .decisions import Decisions, short
from .window import Taken, Window

MAX_WINDOWS = 100_000


class Windows:
    """The windows of all holders. `by_redis` and `by_node` count the decisions by who made them."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self._keys = keys
        self._decisions = Decisions(redis, "take")
        self._own: dict[str, Window] = {}  # in the order in which they started
        self.by_redis = 0
        self.by_node = 0

    async def take(self, holder: str, limit: int, seconds: float) -> Taken:
        """One message of `holder` (`freeagentics:user-1`): at most `limit` in a window of `seconds`, over all nodes.

        One call of take.lua. When Redis does not make the decision within a second, or failed less than a second ago,
        this node's own count makes it: never an error. A caller that is cancelled may have used up a message.
        """
        name = short(holder)
        answer = await self._decisions.ask((self._keys.messages(name),), (limit, round(seconds * 1000)))
        now = monotonic()
        window = self._window(name, seconds, now)
        if answer is None:
            self.by_node += 1
            return window.count(1, limit, now)
        self.by_redis += 1
        taken = Taken(answer[0] == 1, answer[1], answer[2] / 1000)
        if taken.is_granted:
            window.note(1, taken.resets_in, now)
        return taken

    async def close(self) -> None:
        """End what is under way; the node decides that, and what is taken later."""
        await self._decisions.close()

    def _window(self, name: str, seconds: float, now: float) -> Window:
        """This node's own count of a holder. Making one drops those that are over, the oldest if there are many."""
        window = self._own.get(name)
        if window is None or window.is_over(now):
            self._own.pop(name, None)
            while self._own:
                oldest = next(iter(self._own))
                if len(self._own) < MAX_WINDOWS and not self._own[oldest].is_over(now):
                    break
                del self._own[oldest]
            window = self._own[name] = Window(seconds)
        return window
