"""The guard: an agent's actions held against the shield that is stored for it, and violations told.

A shield is compiled once for each change of its agent. Which change is the newest is asked again once a second and
agent, as `agent_updated` may be missed and a question to Redis cannot: so a busy agent costs one small read a second.
"""

from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..errors import Invalid
from ..events import Event
from ..keyspace import check_id, check_workspace
from ..shield import Action, Policy, Violation
from .asking import ask
from .errors import AgentMissing

if TYPE_CHECKING:
    from ..broker import Broker

FRESH_SECONDS = 1.0
MAX_POLICIES = 10_000


class _Known(NamedTuple):
    """The shield of an agent after its change `version`, and until when that is taken for the newest."""

    version: bytes
    policy: Policy
    fresh_until: float


class Guard:
    """The policies of the agents that act in this process."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._known: dict[tuple[str, str], _Known] = {}  # in the order in which they were read

    async def check(self, agent_id: str, action: Action, workspace_id: str | None) -> Violation | None:
        """As `Agents.guard` says."""
        workspace = self._broker.workspace_id if workspace_id is None else workspace_id
        if workspace is None:
            raise Invalid("workspace_id", "expected one here or in Broker.connect")
        check_workspace(workspace, "workspace_id")
        policy = await self._policy(workspace, check_id(agent_id, "agent_id"))
        violation = policy.check(action)
        if violation is not None:
            data = {"violation": msgspec.structs.asdict(violation)}
            await self._broker.publish(
                Event(type="shield.violation", workspace_id=workspace, agent_id=agent_id, data=data)
            )
        return violation

    async def _policy(self, workspace: str, agent_id: str) -> Policy:
        known = self._known.get((workspace, agent_id))
        if known is not None and monotonic() < known.fresh_until:
            return known.policy
        asked_at = monotonic()
        version, shield = await self._read(workspace, agent_id)
        policy = known.policy if known is not None and known.version == version else Policy(msgspec.json.decode(shield))
        self._known.pop((workspace, agent_id), None)
        self._known[workspace, agent_id] = _Known(version, policy, asked_at + FRESH_SECONDS)
        if len(self._known) > MAX_POLICIES:
            del self._known[next(iter(self._known))]
        return policy

    async def _read(self, workspace: str, agent_id: str) -> tuple[bytes, bytes]:
        name = self._broker.keys.agent(workspace, agent_id)
        found: Any = await ask(lambda: self._broker.redis.hmget(name, "created", "calls", "shield"))
        created, calls, shield = found
        if created is None:
            self._known.pop((workspace, agent_id), None)
            raise AgentMissing(agent_id)
        return calls.partition(b",")[0], shield
