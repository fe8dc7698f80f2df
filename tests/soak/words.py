"""What guests ask for and hear, and the events that they are to hear. Pure.

Every event carries in its `data` a `step`, counted from 0 over its kind in its workspace, a `turn`, counted over its
kind of its agent, and `at`, when its producer published it, on the clock that all processes of a machine share
(`time.monotonic`). So whoever watches a workspace, or one agent of it, knows what comes next.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from broker import Event

from ..roll.words import FREEAGENTICS, MAXICORE, Tongue

AGENTS = tuple(f"agent-{number}" for number in range(7))
FREE_SHARE = 10  # every tenth event of a workspace is for FreeAgentics' clients

_MESSAGE = "Reading the quarterly report, and comparing its figures with those of the year before it"


class Data(msgspec.Struct):
    step: int = -1
    turn: int = -1
    at: float = 0.0


class Told(msgspec.Struct):
    """What a node says, as far as guests look at it."""

    type: str
    event_id: str | None = None
    data: Data | None = None


hear = msgspec.json.Decoder(Told).decode


class Interest(NamedTuple):
    """Events of one kind in a workspace; of all agents, or of one."""

    tongue: Tongue
    workspace: str
    agent: str | None = None

    def subscribe(self, since: str | None) -> str:
        """Ask for them, with those after `since`."""
        behind = {} if since is None else {"since": since}
        if self.tongue is MAXICORE:
            filters: dict[str, Any] = {"workspace_id": self.workspace, "event_types": [self.tongue.kind]}
            filters |= {"agent_id": self.agent} if self.agent else {}
            return json.dumps({"type": "subscribe", "filters": filters} | behind)
        agents = {"agents": [self.agent]} if self.agent else {}
        return json.dumps({"type": "subscribe", "data": {"events": [self.tongue.kind]} | agents | behind})

    def number(self, data: Data) -> int:
        """Which of them it is."""
        return data.turn if self.agent else data.step


# How many events of each interest there are, by its kind, workspace and agent.
Published = Counter[tuple[str, str, str | None]]


def key(interest: Interest) -> tuple[str, str, str | None]:
    return interest.tongue.kind, interest.workspace, interest.agent


class Score:
    """The events to be published, one after the other, over the workspaces in turn; `published` counts them."""

    def __init__(self, workspaces: Sequence[str]) -> None:
        self.published = Published()
        self._workspaces = workspaces
        self._number = 0

    def next(self, at: float) -> Event:
        round_, seat = divmod(self._number, len(self._workspaces))
        self._number += 1
        workspace, agent = self._workspaces[seat], AGENTS[round_ % len(AGENTS)]
        tongue = FREEAGENTICS if round_ % FREE_SHARE == FREE_SHARE - 1 else MAXICORE
        whole, own = (tongue.kind, workspace, None), (tongue.kind, workspace, agent)
        facts: dict[str, Any] = {"step": self.published[whole], "turn": self.published[own], "at": at}
        facts |= {"task_id": "task-1", "message": _MESSAGE} if tongue is MAXICORE else {"new_status": "active"}
        self.published.update((whole, own))
        return Event(type=tongue.kind, workspace_id=workspace, agent_id=agent, data=facts)


def pack(published: Published) -> str:
    """One line."""
    return json.dumps([[*name, number] for name, number in published.items()])


def unpack(line: str | bytes) -> Published:
    return Published({(kind, workspace, agent): number for kind, workspace, agent, number in json.loads(line)})
