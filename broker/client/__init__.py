"""Watching from Python through a gateway: one filter's events as an async iterator, over lost connections and deploys.

    from broker.client import watch

    async for item in watch("wss://events.example.com/v2/ws", token=token, agent_id="agent-123"):
        print(item)

Needs a token and the gateway's address, and no Redis. What stands beside Redis has `broker.watch`.
"""

from ..lines import Gap
from .course import Denied
from .watching import watch

__all__ = ["Denied", "Gap", "watch"]
