"""The guard: an agent's actions held against the shield that is stored for it, and violations told.

A shield is compiled once for each change. Whether it has changed is asked of Redis itself, once a second and agent, and
not of `agent_updated`: an event may be missed, so that a shield that was taken away would count for ever, and who waits
for events reads all of an agent's. A busy agent costs one small read a second.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..errors import Invalid
from ..events import Event
from ..keyspace import check_id, check_workspace
from ..shield import Action, Allowed, Policy, Resolve, Violation
from .asking import ask
from .errors import AgentMissing

if TYPE_CHECKING:
    from ..broker import Broker

FRESH_SECONDS = 1.0
# Of the shields that are kept, as they are stored; compiled, one is some ten times, at worst 200 times as large.
MAX_BYTES = 4 * 1024 * 1024
OWN_BYTES = 1024  # for each, besides its entries


class _Whose(NamedTuple):
    """Whose shield, and how the agent's machine reads it."""

    workspace: str
    agent_id: str
    home: str | None
    resolve: Resolve | None


class _Known(NamedTuple):
    """A shield as it is stored and as it is compiled, and until when it is taken for the newest."""

    shield: bytes
    policy: Policy
    fresh_until: float

    @property
    def size(self) -> int:
        return OWN_BYTES + len(self.shield)


class Guard:
    """The shields of the agents that act in this process."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._known: dict[_Whose, _Known] = {}  # in the order in which they were read
        self._bytes = 0

    async def check(
        self,
        agent_id: str,
        action: Action,
        workspace_id: str | None,
        *,
        task_id: str | None = None,
        home: str | None = None,
        resolve: Resolve | None = None,
    ) -> Allowed | Violation:
        """As `Agents.guard` says."""
        workspace = self._broker.workspace_id if workspace_id is None else workspace_id
        if workspace is None:
            raise Invalid("workspace_id", "expected one here or in Broker.connect")
        check_workspace(workspace, "workspace_id")
        task = {} if task_id is None else {"task_id": check_id(task_id, "task_id")}
        policy = await self._policy(_Whose(workspace, check_id(agent_id, "agent_id"), home, resolve))
        verdict = policy.check(action)
        if isinstance(verdict, Violation):
            data = {**task, "violation": msgspec.structs.asdict(verdict)}
            await self._broker.publish(
                Event(type="shield.violation", workspace_id=workspace, agent_id=agent_id, data=data)
            )
        return verdict

    async def _policy(self, whose: _Whose) -> Policy:
        known = self._known.get(whose)
        if known is not None and monotonic() < known.fresh_until:
            return known.policy
        fresh_until = monotonic() + FRESH_SECONDS
        shield = await self._read(whose)
        if known is not None and known.shield == shield:
            policy = known.policy
        else:  # in a thread, as `resolve` asks the file system
            policy = await asyncio.to_thread(
                Policy, msgspec.json.decode(shield), home=whose.home, resolve=whose.resolve
            )
        self._keep(whose, _Known(shield, policy, fresh_until))
        return policy

    async def _read(self, whose: _Whose) -> bytes:
        """The shield as it is stored. Raises `AgentMissing`."""
        name = self._broker.keys.agent(whose.workspace, whose.agent_id)
        found: Any = await ask(lambda: self._broker.redis.hmget(name, "created", "shield"))
        created, shield = found
        if created is None:
            self._drop(whose)
            raise AgentMissing(whose.agent_id)
        return bytes(shield)

    def _keep(self, whose: _Whose, known: _Known) -> None:
        self._drop(whose)
        self._known[whose] = known
        self._bytes += known.size
        while self._bytes > MAX_BYTES:
            self._drop(next(iter(self._known)))

    def _drop(self, whose: _Whose) -> None:
        if (known := self._known.pop(whose, None)) is not None:
            self._bytes -= known.size
