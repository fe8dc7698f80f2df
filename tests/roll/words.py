"""What the crowd's clients say and hear. Pure.

Every event carries in its `data` a `step`, counted from 0 for each workspace and dialect, and `at`, when its producer
published it, on the clock that all processes of a machine share (`time.monotonic`).
"""

import json
from typing import Any, NamedTuple

import msgspec

from broker import Event

PING = '{"type":"ping"}'
GAPS = ("resume.gap", "resume_gap")


class Data(msgspec.Struct):
    step: int = -1
    at: float = 0.0


class Told(msgspec.Struct):
    """What a node says, as far as the crowd looks at it."""

    type: str
    event_id: str | None = None
    data: Data | None = None


hear = msgspec.json.Decoder(Told).decode


class Tongue(NamedTuple):
    """How a dialect's clients get their events: the path to them, and their type."""

    path: str
    kind: str

    def subscribe(self, workspace: str, since: str | None) -> str:
        """Ask for all events of this kind, with those after `since`."""
        behind = {} if since is None else {"since": since}
        if self is MAXICORE:
            filters = {"workspace_id": workspace, "event_types": [self.kind]}
            return json.dumps({"type": "subscribe", "filters": filters} | behind)
        return json.dumps({"type": "subscribe", "data": {"events": [self.kind]} | behind})

    def event(self, workspace: str, step: int, at: float) -> Event:
        facts: dict[str, Any] = {"step": step, "at": at}
        facts |= {"task_id": "task-1"} if self is MAXICORE else {"new_status": "active"}
        return Event(type=self.kind, workspace_id=workspace, agent_id="agent-1", data=facts)


MAXICORE = Tongue("/v2/ws?envelope=nested&token=", "task.progress")
FREEAGENTICS = Tongue("/api/v1/ws?token=", "agent_status")
