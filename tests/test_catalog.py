"""The catalog holds what the three protocol documents say, no type more and none less."""

from typing import Any

import msgspec
import pytest

from broker.catalog import CATALOG, DECODERS

MAXICORE = {
    "task.started",
    "task.progress",
    "task.completed",
    "task.failed",
    "agent.online",
    "agent.offline",
    "shield.violation",
}
AGNT5 = {
    "execution_started",
    "execution_completed",
    "execution_failed",
    "execution_cancelled",
    "workflow_start",
    "workflow_end",
    "workflow_error",
    "task_start",
    "task_end",
    "task_error",
    "llm_start",
    "llm_end",
    "llm_error",
    "tool_start",
    "tool_end",
    "tool_error",
}
FREEAGENTICS = {
    "agent_status",
    "agent_created",
    "agent_deleted",
    "agent_updated",
    "inference_started",
    "inference_progress",
    "inference_completed",
    "inference_failed",
    "metrics_update",
    "performance_alert",
    "system_alert",
    "system_status",
    "maintenance_mode",
    "entity_created",
    "entity_updated",
    "entity_deleted",
    "relationship_created",
    "relationship_updated",
    "relationship_deleted",
}

# Each document's examples: the fields as a client reads them, ids included, without what only an envelope has.
EXAMPLES: dict[str, dict[str, Any]] = {
    # seed 000
    "task.started": {"task_id": "task-456", "agent_id": "agent-123", "description": "Process data file"},
    "task.progress": {
        "task_id": "task-456",
        "step": 3,
        "total_steps": 10,
        "current_action": "Reading file: data.csv",
        "output": "Processing 1000 rows...",
    },
    "task.completed": {
        "task_id": "task-456",
        "result": {
            "success": True,
            "summary": "Processed 1000 rows in 2.5 seconds",
            "output_files": ["result.json"],
        },
        "credits_used": 42,
    },
    "task.failed": {
        "task_id": "task-456",
        "error": {"code": "FILE_NOT_FOUND", "message": "File /data/input.csv not found"},
        "credits_used": 5,
    },
    "agent.online": {"agent_id": "agent-123"},
    "agent.offline": {"agent_id": "agent-123", "reason": "Client disconnected"},
    "shield.violation": {
        "agent_id": "agent-123",
        "task_id": "task-456",
        "violation": {
            "rule_type": "command",
            "pattern": "blocked_pattern",
            "attempted_action": "rm -rf /",
            "severity": "critical",
        },
    },
    # seed 002 has one example for all of its types, with empty details
    **{name: {"execution_id": "exec_abc123"} for name in AGNT5},
    # seed 003
    "agent_status": {
        "agent_id": "agent_123",
        "old_status": "pending",
        "new_status": "active",
        "reason": "started_by_user",
        "last_inference": "2024-01-15T10:30:45Z",
        "inference_count": 1543,
    },
    "agent_created": {
        "agent_id": "agent_789",
        "name": "New Research Agent",
        "template": "research_v2",
        "created_by": "user_456",
        "status": "pending",
    },
    "agent_deleted": {
        "agent_id": "agent_456",
        "name": "Old Agent",
        "deleted_by": "user_123",
        "reason": "user_request",
    },
    "inference_started": {
        "inference_id": "inf_789",
        "agent_id": "agent_123",
        "query": "Analyze market trends",
        "estimated_duration": 30,
        "priority": "normal",
    },
    "inference_progress": {
        "inference_id": "inf_789",
        "agent_id": "agent_123",
        "progress": 0.65,
        "stage": "analysis",
        "estimated_remaining": 10,
    },
    "inference_completed": {
        "inference_id": "inf_789",
        "agent_id": "agent_123",
        "status": "completed",
        "processing_time": 30.5,
        "result_summary": {"confidence": 0.89, "key_findings": ["trend_1", "trend_2"]},
    },
    "inference_failed": {
        "inference_id": "inf_789",
        "agent_id": "agent_123",
        "error_code": "TIMEOUT",
        "error_message": "Inference timed out after 300 seconds",
        "processing_time": 300.0,
    },
    "metrics_update": {
        "system": {"cpu_usage": 45.2, "memory_usage": 62.8, "active_agents": 12, "queue_length": 23},
        "agents": {
            "agent_123": {
                "status": "active",
                "inference_rate": 2.5,
                "avg_response_time": 0.234,
                "success_rate": 0.98,
                "current_load": 0.65,
            },
            "agent_456": {
                "status": "idle",
                "inference_rate": 0.0,
                "avg_response_time": 0.0,
                "success_rate": 1.0,
                "current_load": 0.0,
            },
        },
    },
    "performance_alert": {
        "alert_id": "alert_123",
        "severity": "warning",
        "type": "high_memory_usage",
        "message": "Memory usage above 80%",
        "affected_components": ["inference_engine"],
        "current_value": 85.2,
        "threshold": 80.0,
        "recommended_action": "Scale up resources",
    },
    "system_alert": {
        "alert_id": "alert_456",
        "severity": "error",
        "type": "service_unavailable",
        "message": "Database connection lost",
        "affected_components": ["database", "knowledge_graph"],
        "status": "investigating",
        "estimated_resolution": "2024-01-15T10:45:00Z",
    },
    "system_status": {
        "old_status": "healthy",
        "new_status": "degraded",
        "reason": "high_load",
        "components": {"database": "healthy", "redis": "healthy", "inference_engine": "degraded"},
    },
    "entity_created": {
        "entity_id": "entity_789",
        "type": "concept",
        "label": "Quantum Computing",
        "created_by": "user_123",
        "properties": {"category": "technology", "importance": "high"},
    },
    "relationship_created": {
        "relationship_id": "rel_456",
        "source_id": "entity_123",
        "target_id": "entity_789",
        "relationship_type": "related_to",
        "strength": 0.85,
        "created_by": "user_123",
    },
}

# Named by seed 003's reference only: they look like the sibling that has an example.
SIBLINGS = {
    "agent_updated": "agent_created",
    "maintenance_mode": "system_status",
    "entity_updated": "entity_created",
    "entity_deleted": "entity_created",
    "relationship_updated": "relationship_created",
    "relationship_deleted": "relationship_created",
}
EXAMPLES |= {name: EXAMPLES[sibling] for name, sibling in SIBLINGS.items()}

# What stays in `data` and an event cannot do without; every other field is optional.
REQUIRED = {
    "task.failed": {"error"},
    "shield.violation": {"violation"},
    "agent_status": {"new_status"},
    "inference_progress": {"progress"},
    "performance_alert": {"alert_id", "severity", "message"},
    "system_alert": {"alert_id", "severity", "message"},
    "system_status": {"new_status"},
    "entity_created": {"entity_id"},
    "relationship_created": {"relationship_id"},
}
REQUIRED_WITHIN = {
    ("task.failed", "error"): {"code", "message"},
    ("shield.violation", "violation"): {"rule_type", "pattern", "attempted_action", "severity"},
}

SUBJECTS = {"maxicore": "task_id", "agnt5": "execution_id"}
NEEDS_SUBJECT = {name for name in CATALOG if name.startswith(("task.", "inference_"))} | AGNT5
NEEDS_AGENT = {
    name for name in CATALOG if name.startswith(("agent.", "agent_", "shield.", "inference_"))
} | AGNT5  # there the endpoint is the agent

STEP = {
    "name": "search-candidates",
    "step_id": "step-2",
    "parent_id": "step-1",
    "attempt": 1,
    "input": {"user_query": "React"},
    "output": ["anything", None],
    "error": {"code": "TIMEOUT", "message": "gave up"},
    "latency_ms": 12.5,
}
LLM = {
    "model": "small-1",
    "vendor": "acme",
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "total_cost": 0.0002,
}


def lifted(name: str) -> dict[str, Any]:
    """What stays in `data` of the document's example."""
    ids = {"workspace_id", "agent_id", CATALOG[name].subject}
    return {key: value for key, value in EXAMPLES[name].items() if key not in ids}


def decode(name: str, data: Any) -> Any:
    return DECODERS[name].decode(msgspec.json.encode(data))


def refusal(name: str, data: Any) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        decode(name, data)
    return str(caught.value)


def fields(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(struct)}


def plain(value: Any) -> Any:
    """A decoded struct as the JSON it came from; fields that were absent are absent."""
    return msgspec.json.decode(msgspec.json.encode(value))


# The table


@pytest.mark.parametrize(
    ("dialect", "names"), [("maxicore", MAXICORE), ("agnt5", AGNT5), ("freeagentics", FREEAGENTICS)]
)
def test_a_dialect_has_exactly_the_types_of_its_document(dialect: str, names: set[str]) -> None:
    assert {name for name, row in CATALOG.items() if row.dialect == dialect} == names


def test_the_three_documents_are_the_whole_catalog() -> None:
    assert len(CATALOG) == len(MAXICORE) + len(AGNT5) + len(FREEAGENTICS)
    assert all(row.name == name for name, row in CATALOG.items())
    assert DECODERS.keys() == CATALOG.keys() == EXAMPLES.keys()


@pytest.mark.parametrize(
    "name",
    [
        "connection_established",
        "subscription_confirmed",
        "subscription_error",
        "command_error",
        "connection_error",
        "connection_pool_info",
        "rate_limit_warning",
        "disconnect_warning",
        "ping",
        "pong",
    ],
)
def test_what_a_connection_says_about_itself_is_no_event(name: str) -> None:
    assert name not in CATALOG


def test_the_subject_of_an_event_is_its_task_its_execution_or_its_inference() -> None:
    for name, row in CATALOG.items():
        of_its_own = "inference_id" if name.startswith("inference_") else None
        assert row.subject == SUBJECTS.get(row.dialect, of_its_own), name


def test_the_ids_an_event_must_carry() -> None:
    assert {name for name, row in CATALOG.items() if row.needs_subject} == NEEDS_SUBJECT
    assert {name for name, row in CATALOG.items() if row.needs_agent} == NEEDS_AGENT


def test_the_documents_examples_carry_the_ids_their_types_need() -> None:
    for name, row in CATALOG.items():
        assert not row.needs_subject or row.subject in EXAMPLES[name], name
        assert not row.needs_agent or row.dialect == "agnt5" or "agent_id" in EXAMPLES[name], name


def test_only_metrics_are_ephemeral() -> None:
    assert [name for name, row in CATALOG.items() if not row.durable] == ["metrics_update"]


def test_only_maxicores_flat_events_have_reserved_names() -> None:
    for row in CATALOG.values():
        flat = row.dialect == "maxicore"
        assert row.reserved == ({"type", "timestamp", "event_id", "data"} if flat else frozenset())


@pytest.mark.parametrize("name", CATALOG)
def test_no_typed_field_has_a_reserved_name_or_that_of_a_lifted_id(name: str) -> None:
    row = CATALOG[name]
    assert not fields(row.data).keys() & (row.reserved | {"workspace_id", "agent_id", row.subject})


# What passes


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_documents_example_passes_and_each_of_its_fields_is_typed(name: str) -> None:
    assert plain(decode(name, lifted(name))) == lifted(name)


@pytest.mark.parametrize("name", CATALOG)
def test_the_required_fields_alone_are_enough(name: str) -> None:
    decode(name, {field: value for field, value in lifted(name).items() if field in REQUIRED.get(name, ())})


@pytest.mark.parametrize("name", CATALOG)
def test_fields_that_are_not_listed_pass(name: str) -> None:
    decode(name, lifted(name) | {"extra": {"of": ["any", None, 1.5]}})
    for field, value in lifted(name).items():
        if isinstance(value, dict) and field != "components":  # there a member is a component's state
            more = {"extra": {"status": "new"}} if field == "agents" else {"extra": None}
            decode(name, lifted(name) | {field: value | more})


@pytest.mark.parametrize("name", sorted(AGNT5))
def test_details_of_a_step_are_typed_and_those_of_a_model_call_more_so(name: str) -> None:
    listed = STEP | LLM if name.startswith("llm_") else STEP
    assert plain(decode(name, listed)) == listed
    assert fields(CATALOG[name].data).keys() == listed.keys()


@pytest.mark.parametrize("value", [None, 1, "text", [1], {"a": {"b": None}}])
def test_input_and_output_of_a_step_are_open(value: Any) -> None:
    decode("tool_end", {"input": value, "output": value})


def test_the_error_of_a_step_promises_no_member() -> None:
    decode("task_error", {"error": {}})
    assert refusal("task_error", {"error": {"code": 3}}).endswith("`$.error.code`")


@pytest.mark.parametrize("severity", ["low", "medium", "high", "critical"])
def test_a_violation_has_one_of_four_severities(severity: str) -> None:
    violation = EXAMPLES["shield.violation"]["violation"]
    decode("shield.violation", {"violation": violation | {"severity": severity}})


@pytest.mark.parametrize(("name", "field"), [("inference_progress", "progress"), ("relationship_created", "strength")])
def test_a_fraction_may_be_a_whole_number(name: str, field: str) -> None:
    decode(name, lifted(name) | {field: 1})


# What is refused


@pytest.mark.parametrize("name", CATALOG)
def test_required_is_what_the_event_means_nothing_without(name: str) -> None:
    required = {field for field, info in fields(CATALOG[name].data).items() if info.required}
    assert required == REQUIRED.get(name, set())
    for field in required:
        without = {key: value for key, value in lifted(name).items() if key != field}
        assert refusal(name, without) == f"Object missing required field `{field}`"


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in REQUIRED for field in sorted(REQUIRED[name])])
@pytest.mark.parametrize("wrong", [True, [], None])
def test_a_wrong_type_in_a_required_field_is_refused_with_its_path(name: str, field: str, wrong: Any) -> None:
    assert refusal(name, lifted(name) | {field: wrong}).endswith(f"at `$.{field}`")


@pytest.mark.parametrize(
    ("name", "field", "member"),
    [(name, field, member) for (name, field), members in REQUIRED_WITHIN.items() for member in sorted(members)],
)
def test_a_wrong_or_missing_member_is_refused_with_its_path(name: str, field: str, member: str) -> None:
    whole = EXAMPLES[name][field]
    assert refusal(name, {field: whole | {member: 7}}).endswith(f"at `$.{field}.{member}`")
    without = {key: value for key, value in whole.items() if key != member}
    assert refusal(name, {field: without}) == f"Object missing required field `{member}` - at `$.{field}`"


@pytest.mark.parametrize("name", CATALOG)
def test_an_optional_field_is_absent_or_of_its_type_but_not_null(name: str) -> None:
    for field, info in fields(CATALOG[name].data).items():
        if info.type is not Any:
            assert refusal(name, lifted(name) | {field: None}).endswith(f"at `$.{field}`")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("task.progress", {"step": "3"}, "Expected `int`, got `str` - at `$.step`"),
        ("task.progress", {"total_steps": 2.5}, "Expected `int`, got `float` - at `$.total_steps`"),
        ("task.progress", {"output": 1}, "Expected `str`, got `int` - at `$.output`"),
        ("task.completed", {"result": "done"}, "Expected `object`, got `str` - at `$.result`"),
        ("task.completed", {"result": {"success": 1}}, "Expected `bool`, got `int` - at `$.result.success`"),
        (
            "metrics_update",
            {"system": {"cpu_usage": "45"}},
            "Expected `int | float`, got `str` - at `$.system.cpu_usage`",
        ),
        ("metrics_update", {"agents": {"agent_123": 1}}, "Expected `object`, got `int` - at `$.agents[...]`"),
        ("entity_updated", {"entity_id": 789}, "Expected `str`, got `int` - at `$.entity_id`"),
        ("llm_end", {"total_tokens": 1.5}, "Expected `int`, got `float` - at `$.total_tokens`"),
    ],
)
def test_a_refusal_says_what_was_expected_and_where(name: str, data: dict[str, Any], message: str) -> None:
    assert refusal(name, data) == message


def test_a_severity_nobody_knows_is_refused() -> None:
    violation = EXAMPLES["shield.violation"]["violation"]
    message = refusal("shield.violation", {"violation": violation | {"severity": "warning"}})
    assert message == "Invalid enum value 'warning' - at `$.violation.severity`"


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"text"', b"1"])
def test_data_is_an_object(raw: bytes) -> None:
    for decoder in DECODERS.values():
        with pytest.raises(msgspec.ValidationError):
            decoder.decode(raw)


@pytest.mark.parametrize("raw", [b"", b"{", b"{}}"])
def test_what_is_no_json_is_a_decode_error(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        DECODERS["agent.online"].decode(raw)


def test_what_the_contract_leaves_to_the_caller() -> None:
    with pytest.raises(RecursionError):
        DECODERS["agent.online"].decode(b'{"x":' + b"[" * 100_000)
    with pytest.raises(UnicodeDecodeError):
        DECODERS["task.started"].decode(b'{"description":"\xff"}')
    DECODERS["task.started"].decode(b'{"extra":"\xff"}')
