"""Residents: agents that are here by a connection of their own, with a token that is the agent's.

Such a connection is a sign of life of its agent, publishes what the agent says and brings it its commands. It listens
as any program does (`Broker.commands`): so several connections of an agent, here or at other nodes, share its commands,
and what one leaves unsettled goes to another.
"""

import asyncio
import logging
from contextlib import aclosing
from typing import Protocol

from broker.agents import AgentMissing
from broker.broker import Broker
from broker.commands import Command
from broker.commands.command import MAX_HELD
from broker.errors import Invalid, Unavailable
from broker.events import Packed

from .messages import Request, Said, Settle
from .reasons import COMMAND_GONE, INVALID_MESSAGE, UNAVAILABLE, Reason

logger = logging.getLogger("trunkline.residents")


class Resident(Protocol):
    """An agent's own connection."""

    @property
    def is_gone(self) -> bool:
        """True when nothing more is taken."""

    def order(self, command: Command) -> None:
        """Hear what the agent is to do."""

    def refused(self, request: Request, reason: Reason, detail: str) -> None:
        """Hear that `request` cannot be; an empty `detail` is the reason's own text."""

    def dismiss(self) -> None:
        """Hear that there is no such agent any more."""

    def fail(self) -> None:
        """Hear of a bug of ours."""


class _Stay:
    """What one connection has: the task that brings its commands, and those that it has not settled."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.commands: dict[str, Command] = {}

    def take(self, command: Command) -> None:
        """No more than `MAX_HELD` wait at a time: past that the oldest are past their deadline."""
        self.commands[command.id] = command
        if len(self.commands) > MAX_HELD:
            del self.commands[next(iter(self.commands))]


class Residents:
    """All of one node's."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stays: dict[Resident, _Stay] = {}

    async def come(self, resident: Resident, workspace: str, agent: str) -> None:
        """The agent is present before anything that it says is done; from now on it is brought its commands."""
        try:
            await self._broker.agents.present(agent, workspace_id=workspace)
        except AgentMissing:
            resident.dismiss()
            return
        except Unavailable:
            pass  # its listener goes on trying
        if not resident.is_gone:
            stay = self._stays[resident] = _Stay()
            stay.task = asyncio.create_task(self._bring(resident, stay, workspace, agent))

    def leave(self, resident: Resident) -> None:
        """The connection has ended, if it was one of an agent's own. The listener says so to Redis."""
        stay = self._stays.pop(resident, None)
        if stay is not None and stay.task is not None:
            stay.task.cancel()

    async def publish(self, resident: Resident, said: Said, packed: Packed) -> None:
        """Publish what an agent has said; the next that it says waits for that."""
        try:
            (position,) = await self._broker.producer.publish([packed])
        except Unavailable:
            resident.refused(said, UNAVAILABLE, "")
        else:
            if position is None:  # of an agent that was deleted nothing is kept
                resident.dismiss()

    async def settle(self, resident: Resident, settle: Settle) -> None:
        """An agent says what became of a command."""
        stay = self._stays.get(resident)
        command = stay.commands.get(settle.command_id) if stay is not None else None
        if stay is None or command is None:
            resident.refused(settle, COMMAND_GONE, "")
            return
        try:
            if settle.error is None:
                await command.done(settle.result)
            else:
                await command.failed(*settle.error)
        except Invalid as error:
            path = "$.error.code" if error.path == "code" else f"$.{error.path}"
            resident.refused(settle, INVALID_MESSAGE, f"{path}: {error.reason}")
        else:
            stay.commands.pop(settle.command_id, None)

    async def _bring(self, resident: Resident, stay: _Stay, workspace: str, agent: str) -> None:
        try:
            async with aclosing(self._broker.commands(agent, workspace_id=workspace)) as commands:
                async for command in commands:
                    stay.take(command)
                    resident.order(command)
            resident.dismiss()
        except Exception:
            logger.exception("a bug ended an agent's connection while it was brought its commands")
            resident.fail()
