"""Every JSON value that the FreeAgentics document shows, by the heading it stands under."""

from typing import Any

from ..test_catalog import EXAMPLES


def _event(name: str, moment: str) -> dict[str, Any]:
    """An event's example: what stands in `data` is the catalog's own."""
    return {"type": name, "timestamp": f"2024-01-15T{moment}Z", "data": EXAMPLES[name]}


# -- what clients send

# "Subscribe to Events" of the connection's flow, and of the messages.
SUBSCRIBE_FIRST: dict[str, Any] = {
    "type": "subscribe",
    "data": {
        "events": ["agent_status", "metrics", "system_alerts"],
        "agents": ["agent_123", "agent_456"],
    },
}

SUBSCRIBE: dict[str, Any] = {
    "type": "subscribe",
    "data": {
        "events": ["agent_status", "metrics", "inference_completed", "system_alerts"],
        "agents": ["agent_123", "agent_456"],
        "filters": {"severity": ["warning", "error"], "components": ["inference_engine"]},
    },
}

# "Real-time Dashboard" and "Agent Monitor"; the monitor's agent is a variable of its script.
SUBSCRIBE_DASHBOARD: dict[str, Any] = {
    "type": "subscribe",
    "data": {"events": ["agent_status", "metrics_update", "inference_completed"], "agents": []},
}

SUBSCRIBE_MONITOR: dict[str, Any] = {
    "type": "subscribe",
    "data": {"events": ["inference_started", "inference_progress", "inference_completed"], "agents": ["<agent>"]},
}

UNSUBSCRIBE: dict[str, Any] = {"type": "unsubscribe", "data": {"events": ["metrics"], "agents": ["agent_123"]}}

COMMAND: dict[str, Any] = {
    "type": "command",
    "data": {"agent_id": "agent_123", "command": "stop", "parameters": {"graceful": True}},
}

PING: dict[str, Any] = {"type": "ping"}

CONFIGURE: dict[str, Any] = {
    "type": "configure",
    "data": {"metrics_interval": 5000, "buffer_size": 100, "compression": True},
}

DISCONNECT: dict[str, Any] = {"type": "disconnect", "data": {"reason": "user_initiated"}}

# -- what clients are sent: about their connection

# "Message Format". The document writes a comment where the data of the message goes.
MESSAGE_FORMAT: dict[str, Any] = {"type": "message_type", "timestamp": "2024-01-15T10:30:00Z", "data": {}}

# "Connection Acknowledgment", and "Connection Established" which has the version too.
CONNECTION_ACKNOWLEDGED: dict[str, Any] = {
    "type": "connection_established",
    "timestamp": "2024-01-15T10:30:00Z",
    "data": {"client_id": "client_789", "pooled": True, "session_id": "session_123"},
}

CONNECTION_ESTABLISHED: dict[str, Any] = {
    "type": "connection_established",
    "timestamp": "2024-01-15T10:30:00Z",
    "data": {"client_id": "client_789", "pooled": True, "session_id": "session_123", "server_version": "0.1.0"},
}

SUBSCRIPTION_CONFIRMED: dict[str, Any] = {
    "type": "subscription_confirmed",
    "timestamp": "2024-01-15T10:30:15Z",
    "data": {"events": ["agent_status", "metrics"], "agents": ["agent_123", "agent_456"], "status": "active"},
}

COMMAND_ERROR: dict[str, Any] = {
    "type": "command_error",
    "timestamp": "2024-01-15T10:41:00Z",
    "data": {
        "command": "start",
        "agent_id": "agent_123",
        "error_code": "AGENT_NOT_FOUND",
        "error_message": "Agent with ID 'agent_123' not found",
        "request_id": "req_789",
    },
}

SUBSCRIPTION_ERROR: dict[str, Any] = {
    "type": "subscription_error",
    "timestamp": "2024-01-15T10:42:00Z",
    "data": {
        "error_code": "INVALID_EVENT_TYPE",
        "error_message": "Event type 'invalid_event' is not supported",
        "supported_events": ["agent_status", "metrics", "inference_completed"],
    },
}

PONG: dict[str, Any] = {
    "type": "pong",
    "timestamp": "2024-01-15T10:43:00Z",
    "data": {"server_time": "2024-01-15T10:43:00Z", "connection_duration": 780},
}

RATE_LIMIT_WARNING: dict[str, Any] = {
    "type": "rate_limit_warning",
    "timestamp": "2024-01-15T10:44:00Z",
    "data": {
        "limit_type": "messages_per_minute",
        "current_usage": 95,
        "limit": 100,
        "reset_time": "2024-01-15T10:45:00Z",
        "recommended_action": "Reduce message frequency",
    },
}

CONNECTION_ERROR: dict[str, Any] = {
    "type": "connection_error",
    "timestamp": "2024-01-15T10:45:00Z",
    "data": {
        "error_code": "AUTHENTICATION_FAILED",
        "error_message": "Invalid or expired token",
        "close_code": 1008,
        "retry_after": 30,
    },
}

CONNECTION_POOL_INFO: dict[str, Any] = {
    "type": "connection_pool_info",
    "timestamp": "2024-01-15T10:46:00Z",
    "data": {"pool_id": "pool_123", "active_connections": 3, "max_connections": 5, "pool_utilization": 0.6},
}

# -- what clients are sent: events

EVENTS = {
    example["type"]: example
    for example in (
        _event("agent_status", "10:31:00"),
        _event("agent_created", "10:32:00"),
        _event("agent_deleted", "10:33:00"),
        _event("inference_started", "10:34:00"),
        _event("inference_progress", "10:34:15"),
        _event("inference_completed", "10:34:30"),
        _event("inference_failed", "10:34:30"),
        _event("metrics_update", "10:35:00"),
        _event("performance_alert", "10:36:00"),
        _event("system_alert", "10:37:00"),
        _event("system_status", "10:38:00"),
        _event("entity_created", "10:39:00"),
        _event("relationship_created", "10:40:00"),
    )
}

# What the document shows as JSON, in its order.
DOCUMENT = (
    CONNECTION_ACKNOWLEDGED,
    MESSAGE_FORMAT,
    SUBSCRIBE,
    UNSUBSCRIBE,
    COMMAND,
    PING,
    CONFIGURE,
    CONNECTION_ESTABLISHED,
    SUBSCRIPTION_CONFIRMED,
    *EVENTS.values(),
    COMMAND_ERROR,
    SUBSCRIPTION_ERROR,
    PONG,
    RATE_LIMIT_WARNING,
    CONNECTION_ERROR,
    CONNECTION_POOL_INFO,
)

# What its scripts send, in its order.
SCRIPTS = (SUBSCRIBE_FIRST, PING, DISCONNECT, SUBSCRIBE_DASHBOARD, SUBSCRIBE_MONITOR, PING)
