"""Orders: the commands of this node's clients, on their way to agents and what became of them on its way back."""

from typing import Protocol

from broker.broker import Broker
from broker.commands import Reply
from broker.commands.commander import Commander
from broker.errors import AgentOffline, AgentUnknown, Invalid, QueueFull, TrunklineError, Unavailable

from .messages import Command
from .metrics import Metrics
from .reasons import (
    AGENT_OFFLINE,
    AGENT_UNKNOWN,
    INVALID_MESSAGE,
    TOO_MANY_COMMANDS,
    UNAVAILABLE,
    Reason,
)

_REASONS: dict[type[TrunklineError], Reason] = {
    AgentUnknown: AGENT_UNKNOWN,
    AgentOffline: AGENT_OFFLINE,
    QueueFull: TOO_MANY_COMMANDS,
    Unavailable: UNAVAILABLE,
    Invalid: INVALID_MESSAGE,
}


class Sender(Protocol):
    """A client's connection, to its orders."""

    def unsent(self, command: Command, reason: Reason, detail: str) -> None:
        """Hear that `command` was not sent; an empty `detail` is the reason's own text."""

    def replied(self, command: Command, reply: Reply) -> None:
        """Hear what became of `command`."""


class Orders:
    """Each is answered once: with an error when it was not sent, else with what its agent or its deadline said."""

    def __init__(self, broker: Broker, node: str, metrics: Metrics, seconds: float) -> None:
        """`node` names this life of the node: replies come to it. `seconds` is what an agent has for a command."""
        self._commander = Commander(broker.redis, broker.address, broker.keys, node, self._replied)
        self.run = self._commander.run
        self.waiting = self._commander.waiting
        self.tick = self._commander.tick
        self._metrics = metrics
        self._seconds = seconds
        self._sent: dict[str, tuple[Sender, Command]] = {}  # by the commander's key

    async def send(self, sender: Sender, command: Command, workspaces: frozenset[str], user: str) -> None:
        """Send `command` to its agent in one of `workspaces`, for `user`."""
        try:
            workspace = await self._workspace(command, workspaces)
            key = await self._commander.send(
                workspace,
                command.agent,
                command.name,
                command.parameters,
                request_id=command.request_id or "",
                sender=user,
                seconds=self._seconds,
            )
        except TrunklineError as error:
            reason = _REASONS[type(error)]
            self._metrics.commands.add(reason.code.lower())
            sender.unsent(command, reason, str(error) if isinstance(error, Invalid) else "")
        else:
            self._sent[key] = sender, command

    async def _workspace(self, command: Command, workspaces: frozenset[str]) -> str:
        """The one workspace in which there is such an agent."""
        if len(workspaces) == 1:
            return next(iter(workspaces))
        known = await self._commander.find(sorted(workspaces), command.agent)
        if not known:
            raise AgentUnknown(command.agent)
        if len(known) > 1:
            raise Invalid("$.data.workspace_id", "required, as agents of several workspaces have this id")
        return known[0]

    def _replied(self, reply: Reply) -> None:
        """The commander knows what became of one."""
        sent = self._sent.pop(reply.key, None)
        if sent is not None:
            sender, command = sent
            self._metrics.commands.add(reply.outcome)
            sender.replied(command, reply)
