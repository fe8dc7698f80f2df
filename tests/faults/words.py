"""The events of a fault run. Each is known again by its key, which stands in the event as its subject's id. Pure."""

from typing import NamedTuple

from broker import Event

WORKSPACES = ("ws-1", "ws-2", "ws-3", "ws-4")
AGENTS = ("agent-0", "agent-1", "agent-2")
FLOOD = "agent-flood"
SURE = "sure"  # how producers are named that wait until every replica has what they publish
END = "end"  # who publishes the last event of each agent, when all faults are over

MAXICORE = ("task.started", "task.progress", "task.completed")
FREEAGENTICS = ("inference_started", "inference_completed")
_KINDS = (*MAXICORE, *FREEAGENTICS)


class Key(NamedTuple):
    """What only one event says of itself: the `number`th that `producer` published."""

    workspace: str
    producer: str
    number: int

    def __str__(self) -> str:
        return f"{self.workspace}/{self.producer}/{self.number}"


def read_key(text: str | None) -> Key | None:
    """The key in a subject's id; None when it is no event of ours."""
    parts = (text or "").split("/")
    return Key(parts[0], parts[1], int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else None


def subject(fields: dict[str, object]) -> str:
    """The subject's id among an event's fields, or nothing."""
    return str(fields.get("task_id") or fields.get("inference_id") or "")


def event(key: Key) -> Event:
    """The event of a key: always the same, so that who publishes it again publishes an equal one."""
    kind, agent = _KINDS[key.number % len(_KINDS)], AGENTS[key.number // 2 % len(AGENTS)]
    own = "task_id" if kind in MAXICORE else "inference_id"
    more = {"step": key.number, "output": "x" * (key.number % 7 * 60)} if kind == "task.progress" else {}
    return Event(type=kind, workspace_id=key.workspace, agent_id=agent, data={own: str(key)} | more)


def flood(kind: str, number: int, size: int) -> Event:
    """One of many for those who do not read: it is live only."""
    own = "task_id" if kind in MAXICORE else "inference_id"
    data = {own: str(number), "output": "x" * size}
    return Event(type=kind, workspace_id=WORKSPACES[0], agent_id=FLOOD, data=data, ephemeral=True)


def last(workspace: str, agent: str, number: int) -> list[Event]:
    """One event of each dialect, behind which nothing comes."""
    keys = [str(Key(workspace, f"{END}-{agent}", number + more)) for more in range(2)]
    return [
        Event(type="task.completed", workspace_id=workspace, agent_id=agent, data={"task_id": keys[0]}),
        Event(type="inference_completed", workspace_id=workspace, agent_id=agent, data={"inference_id": keys[1]}),
    ]
