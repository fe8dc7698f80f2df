"""What travels: events of progress whose 256-byte output starts with its sequence number and its time of publish.

    seq=000000042;ts=1767225600000000000;cd613e30d8f16adf…

The rest is always the same, and compresses to about half, as text does. The number counts per agent from 0, so whoever
watches an agent can tell what it lost, got twice or out of order. All numbers have a fixed width: every event of a run
has one length, and about one length when it is compressed.
"""

import random
import time
from typing import Any

WORKSPACE = "ws-456"
OUTPUT_BYTES = 256
TIMESTAMP = "2026-01-01T00:00:00.000Z"
SEQUENCE = b"seq="  # nine digits, then ;ts= and nineteen
_PADDING = random.Random(0).randbytes(OUTPUT_BYTES).hex()[: OUTPUT_BYTES - len("seq=000000000;ts=1767225600000000000;")]


def agent(index: int) -> str:
    return f"agent-{index:04d}"


def output(sequence: int) -> str:
    """`data.output` of an event that is published now."""
    return f"seq={sequence:09d};ts={time.time_ns():019d};{_PADDING}"


def event(dialect: str, sequence: int) -> tuple[str, dict[str, Any]]:
    """Type and `data` of an event of `dialect` that is published now."""
    if dialect == "freeagentics":
        return "inference_progress", {"inference_id": "inf_1", "progress": sequence, "stage": output(sequence)}
    return "task.progress", {"task_id": "task-1", "step": sequence, "output": output(sequence)}


def read(message: bytes | bytearray, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
    """Sequence number and time of publish (ns) of the message between `start` and `end`; None when it has none."""
    found = message.find(SEQUENCE, start, end)
    if found < 0:
        return None
    return int(message[found + 4 : found + 13]), int(message[found + 17 : found + 36])


def event_json(agent_id: str, sequence: int) -> bytes:
    """The canonical event, as any Redis client may publish it on an agent's channel."""
    return (
        f'{{"type":"task.progress","workspace_id":"{WORKSPACE}","agent_id":"{agent_id}","task_id":"task-1",'
        f'"timestamp":"{TIMESTAMP}","data":{{"task_id":"task-1","step":{sequence},"output":"{output(sequence)}"}}}}'
    ).encode()


def flat_json(agent_id: str, sequence: int, *, position: bool) -> bytes:
    """The same event as a MaxiCore client with `envelope=flat` is sent it; `position`: it came through the log."""
    event_id = '"event_id":"1767225600000-0",' if position else ""
    return (
        f'{{"type":"task.progress",{event_id}"timestamp":"{TIMESTAMP}","agent_id":"{agent_id}","task_id":"task-1",'
        f'"workspace_id":"{WORKSPACE}","step":{sequence},"output":"{output(sequence)}"}}'
    ).encode()
