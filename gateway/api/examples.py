"""The bodies that the document (seed 001) shows, for readers of ours. Pure."""

from typing import Any

CREATE: dict[str, Any] = {
    "name": "Data Pipeline Agent",
    "workspace_id": "ws-456",
    "mode": "computer",
    "soul": {
        "name": "DataBot",
        "role": "Data Engineer",
        "capabilities": ["python", "sql", "bash"],
        "memory": {"long_term_enabled": True, "max_history": 5000},
    },
    "shield": {"filesystem": {"allowed_paths": ["/data", "/tmp"], "blocked_paths": ["/root", "/etc"]}},  # noqa: S108
}

UPDATE: dict[str, Any] = {
    "name": "Production Data Pipeline",
    "soul": {"tone": "professional", "verbosity": "brief"},
}

SOUL: dict[str, Any] = {
    "name": "DataBot v2",
    "personality": {"tone": "technical", "proactivity": "medium"},
    "constraints": {"max_concurrent_tasks": 5, "timeout_seconds": 1800},
}

SHIELD: dict[str, Any] = {
    "filesystem": {"allowed_paths": ["/project/**"], "blocked_paths": ["/root", "~/.ssh"]},
    "commands": {"allowed_patterns": ["^python .*", "^git .*"], "blocked_patterns": ["rm -rf"]},
}

PAIR: dict[str, Any] = {"pairing_key": "MC-DATA-789XXXX-YYYYYY"}
