"""Every JSON value that the MaxiCore document shows, by the heading it stands under."""

from typing import Any

# The document writes a comment where the fields of the event go.
MESSAGE_FORMAT: dict[str, Any] = {
    "type": "task.progress",
    "timestamp": "2026-03-27T10:30:45Z",
    "agent_id": "agent-123",
    "task_id": "task-456",
    "data": {},
}

TASK_STARTED: dict[str, Any] = {
    "type": "task.started",
    "task_id": "task-456",
    "agent_id": "agent-123",
    "description": "Process data file",
}

TASK_PROGRESS: dict[str, Any] = {
    "type": "task.progress",
    "task_id": "task-456",
    "step": 3,
    "total_steps": 10,
    "current_action": "Reading file: data.csv",
    "output": "Processing 1000 rows...",
}

TASK_COMPLETED: dict[str, Any] = {
    "type": "task.completed",
    "task_id": "task-456",
    "result": {
        "success": True,
        "summary": "Processed 1000 rows in 2.5 seconds",
        "output_files": ["result.json"],
    },
    "credits_used": 42,
}

TASK_FAILED: dict[str, Any] = {
    "type": "task.failed",
    "task_id": "task-456",
    "error": {"code": "FILE_NOT_FOUND", "message": "File /data/input.csv not found"},
    "credits_used": 5,
}

AGENT_ONLINE: dict[str, Any] = {
    "type": "agent.online",
    "agent_id": "agent-123",
    "timestamp": "2026-03-27T10:30:00Z",
}

AGENT_OFFLINE: dict[str, Any] = {
    "type": "agent.offline",
    "agent_id": "agent-123",
    "timestamp": "2026-03-27T10:35:00Z",
    "reason": "Client disconnected",
}

SHIELD_VIOLATION: dict[str, Any] = {
    "type": "shield.violation",
    "agent_id": "agent-123",
    "task_id": "task-456",
    "violation": {
        "rule_type": "command",
        "pattern": "blocked_pattern",
        "attempted_action": "rm -rf /",
        "severity": "critical",
    },
}

# What clients send. The document's token is a variable of its script.
AUTH: dict[str, Any] = {"type": "auth", "token": "Bearer <token>"}

SUBSCRIBE: dict[str, Any] = {
    "type": "subscribe",
    "filters": {
        "agent_id": "agent-123",
        "event_types": ["task.progress", "task.completed", "task.failed"],
        "workspace_id": "ws-456",
    },
}

UNSUBSCRIBE: dict[str, Any] = {"type": "unsubscribe", "filters": {"agent_id": "agent-123"}}

WATCH_TASK: dict[str, Any] = {
    "type": "subscribe",
    "filters": {
        "task_id": "task-456",
        "event_types": ["task.started", "task.progress", "task.completed", "task.failed"],
    },
}

# The server's, of which the document shows only the type, and the client's answer.
PING: dict[str, Any] = {"type": "ping"}
PONG: dict[str, Any] = {"type": "pong"}

EVENTS = {
    example["type"]: example
    for example in (
        TASK_STARTED,
        TASK_PROGRESS,
        TASK_COMPLETED,
        TASK_FAILED,
        AGENT_ONLINE,
        AGENT_OFFLINE,
        SHIELD_VIOLATION,
    )
}
