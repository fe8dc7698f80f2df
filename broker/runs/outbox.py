"""What a run has to say: sent in its order in the background, refused by Redis once the run is another's."""

import asyncio
from collections.abc import Callable
from typing import Any

from ..errors import Lost
from ..events import Event, pack
from ..producer import Fence, Producer, Promise
from .trouble import describe

MAX_UNSENT = 100


class Outbox:
    """The events of one attempt. `on_lost` is called when one is refused."""

    def __init__(
        self, producer: Producer, workspace: str, endpoint: str, fence: Fence, on_lost: Callable[[], None]
    ) -> None:
        self._producer, self._workspace, self._endpoint = producer, workspace, endpoint
        self._fence, self._on_lost = fence, on_lost
        self._unsent: set[Promise] = set()
        # Why the run is being stopped, as steps that are cancelled tell it.
        self.stopped = {"code": "CANCELLED", "message": "the step was cancelled"}

    def say(self, kind: str, details: dict[str, Any], state: str = "") -> Promise:
        """Send an event, one that ends the run in `state` if one is given. Raises `Invalid` for what cannot be told."""
        packed = pack(
            Event(
                type=kind,
                workspace_id=self._workspace,
                agent_id=self._endpoint,
                data={"execution_id": self._fence.execution} | details,
            )
        )
        promise = self._producer.send(packed, self._fence._replace(state=state))
        self._unsent.add(promise)
        promise.add_done_callback(self._sent)
        return promise

    async def room(self) -> None:
        """Wait until not too much is unsent."""
        while len(self._unsent) >= MAX_UNSENT:
            await asyncio.wait(self._unsent, return_when=asyncio.FIRST_COMPLETED)

    async def sent(self) -> None:
        """Wait until Redis has answered all that was said."""
        while self._unsent:
            await asyncio.wait(self._unsent)

    def describe(self, error: BaseException) -> dict[str, str]:
        """What made a step fail."""
        return self.stopped if isinstance(error, asyncio.CancelledError) else describe(error)

    def _sent(self, promise: Promise) -> None:
        self._unsent.discard(promise)
        if not promise.cancelled() and isinstance(promise.exception(), Lost):
            self._on_lost()
