"""The event catalog: every event type of the three protocol documents, a row each in `CATALOG` at the end.

A row says which dialect knows the type, which ids it must carry and what its `data` looks like. `data` here is what is
left of a producer's object once `workspace_id`, `agent_id` and the row's `subject` are out; an event holds them itself:

    {"type": "task.progress", "agent_id": "agent-123", "task_id": "task-456", "data": {"step": 3, "total_steps": 10}}

No struct repeats them. How the structs are to be read:

- A field without a default is required: the event says nothing without it, or the document's own client fails on it.
- `Text`, `Count`, `Number` … may be absent. Present, they must have that type, and null is not that type.
- `Any` is left open: whatever JSON is there passes, null included. So does every field that is not listed.

`DECODERS[name].decode(raw)` checks `data` as raw JSON, by the table alone; events.py makes decoders of its own from it,
which see ids and reserved names in the same pass. A wrong field is a `msgspec.ValidationError` that says where
("Expected `int`, got `str` - at `$.step`"), no JSON is its parent `DecodeError`; deep nesting is a `RecursionError` and
a bad byte in a listed text a `UnicodeDecodeError`, while bad bytes in what is not listed pass: check UTF-8 before.
Reserved names and ids are the caller's to check too: a struct cannot see them.

To add a type: a struct unless one fits, a row, and its example in `tests/test_catalog.py`.
"""

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import Decoder

Text: TypeAlias = str | UnsetType
Texts: TypeAlias = list[str] | UnsetType
Count: TypeAlias = int | UnsetType
# Summed up in Redis by a script, whose numbers are exact up to here.
Credits: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)] | UnsetType
Number: TypeAlias = int | float | UnsetType
Object: TypeAlias = dict[str, Any] | UnsetType


class EventType(Struct, frozen=True):
    """A row of the catalog."""

    name: str
    dialect: str  # "maxicore", "agnt5" or "freeagentics": the one that delivers it
    data: type[Struct]
    subject: str | None  # the key in `data` that is lifted to be the event's subject id
    needs_subject: bool
    needs_agent: bool
    durable: bool  # False: never in the log, and a newer one may take its place on the way to a client
    reserved: frozenset[str]  # names `data` may not use: its dialect has them where the fields of `data` stand


# --- MaxiCore (seed 000, "Event-Typen") ---


class TaskStarted(Struct):
    description: Text = UNSET


class TaskProgress(Struct):
    step: Count = UNSET
    total_steps: Count = UNSET
    current_action: Text = UNSET
    output: Text = UNSET


class TaskResult(Struct):
    success: bool | UnsetType = UNSET
    summary: Text = UNSET
    output_files: Texts = UNSET


class TaskCompleted(Struct):
    result: TaskResult | UnsetType = UNSET
    credits_used: Credits = UNSET


class TaskError(Struct):
    code: str
    message: str


class TaskFailed(Struct):
    error: TaskError  # the document's client reads `msg.error.message` unasked
    credits_used: Credits = UNSET


class AgentOnline(Struct):
    """Nothing of its own: the example has an id and a timestamp."""


class AgentOffline(Struct):
    reason: Text = UNSET


class Violation(Struct):
    rule_type: str
    pattern: str
    attempted_action: str
    severity: Literal["low", "medium", "high", "critical"]


class ShieldViolation(Struct):
    violation: Violation


# --- AGNT5 (seed 002, "Events"): one shape, which that wire calls `details` ---


class StepError(Struct):  # promises no member, unlike MaxiCore's: `details` is open
    code: Text = UNSET
    message: Text = UNSET


class Details(Struct):
    name: Text = UNSET
    step_id: Text = UNSET
    parent_id: Text = UNSET
    attempt: Count = UNSET
    input: Any = UNSET
    output: Any = UNSET
    error: StepError | UnsetType = UNSET
    latency_ms: Number = UNSET


class LLMDetails(Details):
    model: Text = UNSET
    vendor: Text = UNSET
    prompt_tokens: Count = UNSET
    completion_tokens: Count = UNSET
    total_tokens: Count = UNSET
    total_cost: Number = UNSET


# --- FreeAgentics (seed 003, "Server → Client Messages") ---
# What only its "Event Types Reference" names has no example and takes the fields of a sibling, all of them optional.


class AgentStatus(Struct):
    new_status: str
    old_status: Text = UNSET
    reason: Text = UNSET
    last_inference: Text = UNSET
    inference_count: Count = UNSET


class AgentCreated(Struct):
    name: Text = UNSET
    template: Text = UNSET
    created_by: Text = UNSET
    status: Text = UNSET


class AgentDeleted(Struct):
    name: Text = UNSET
    deleted_by: Text = UNSET
    reason: Text = UNSET


class InferenceStarted(Struct):
    query: Text = UNSET
    estimated_duration: Number = UNSET
    priority: Text = UNSET


class InferenceProgress(Struct):
    progress: int | float
    stage: Text = UNSET
    estimated_remaining: Number = UNSET


class InferenceCompleted(Struct):
    status: Text = UNSET
    processing_time: Number = UNSET
    result_summary: Object = UNSET


class InferenceFailed(Struct):
    error_code: Text = UNSET
    error_message: Text = UNSET
    processing_time: Number = UNSET


class SystemMetrics(Struct):
    cpu_usage: Number = UNSET
    memory_usage: Number = UNSET
    active_agents: Count = UNSET
    queue_length: Count = UNSET


class AgentMetrics(Struct):
    status: Text = UNSET
    inference_rate: Number = UNSET
    avg_response_time: Number = UNSET
    success_rate: Number = UNSET
    current_load: Number = UNSET


class MetricsUpdate(Struct):
    system: SystemMetrics | UnsetType = UNSET
    agents: dict[str, AgentMetrics] | UnsetType = UNSET


class Alert(Struct):
    alert_id: str
    severity: str
    message: str
    type: Text = UNSET  # the kind of alert, e.g. "high_memory_usage"; the event's own type is not in `data`
    affected_components: Texts = UNSET


class PerformanceAlert(Alert):
    current_value: Number = UNSET
    threshold: Number = UNSET
    recommended_action: Text = UNSET


class SystemAlert(Alert):
    status: Text = UNSET
    estimated_resolution: Text = UNSET


class SystemChange(Struct):
    old_status: Text = UNSET
    reason: Text = UNSET
    components: dict[str, str] | UnsetType = UNSET


class SystemStatus(SystemChange, kw_only=True):
    new_status: str


class MaintenanceMode(SystemChange):
    new_status: Text = UNSET


class Entity(Struct):
    type: Text = UNSET
    label: Text = UNSET
    created_by: Text = UNSET
    properties: Object = UNSET


class EntityCreated(Entity, kw_only=True):
    entity_id: str


class EntityChanged(Entity):
    entity_id: Text = UNSET


class Relationship(Struct):
    source_id: Text = UNSET
    target_id: Text = UNSET
    relationship_type: Text = UNSET
    strength: Number = UNSET
    created_by: Text = UNSET


class RelationshipCreated(Relationship, kw_only=True):
    relationship_id: str


class RelationshipChanged(Relationship):
    relationship_id: Text = UNSET


# --- The table ---


def _maxicore(name: str, data: type[Struct], *, needs_task: bool = False, needs_agent: bool = False) -> EventType:
    """MaxiCore events stand flat on their envelope, so `data` must keep clear of its names."""
    envelope = frozenset({"type", "timestamp", "event_id", "data"})
    return EventType(name, "maxicore", data, "task_id", needs_task, needs_agent, durable=True, reserved=envelope)


def _agnt5(name: str, data: type[Struct]) -> EventType:
    """Each tells of one execution; the endpoint that runs it stands as the agent."""
    return EventType(name, "agnt5", data, "execution_id", True, True, durable=True, reserved=frozenset())


def _freeagentics(
    name: str, data: type[Struct], *, subject: str | None = None, needs_agent: bool = False, durable: bool = True
) -> EventType:
    return EventType(name, "freeagentics", data, subject, subject is not None, needs_agent, durable, frozenset())


_ROWS = (
    # task.progress, .completed and .failed are shown without an agent_id, so no task's event needs one.
    _maxicore("task.started", TaskStarted, needs_task=True),
    _maxicore("task.progress", TaskProgress, needs_task=True),
    _maxicore("task.completed", TaskCompleted, needs_task=True),
    _maxicore("task.failed", TaskFailed, needs_task=True),
    _maxicore("agent.online", AgentOnline, needs_agent=True),
    _maxicore("agent.offline", AgentOffline, needs_agent=True),
    _maxicore("shield.violation", ShieldViolation, needs_agent=True),
    _agnt5("execution_started", Details),
    _agnt5("execution_completed", Details),
    _agnt5("execution_failed", Details),
    _agnt5("execution_cancelled", Details),
    _agnt5("workflow_start", Details),
    _agnt5("workflow_end", Details),
    _agnt5("workflow_error", Details),
    _agnt5("task_start", Details),
    _agnt5("task_end", Details),
    _agnt5("task_error", Details),
    _agnt5("llm_start", LLMDetails),
    _agnt5("llm_end", LLMDetails),
    _agnt5("llm_error", LLMDetails),
    _agnt5("tool_start", Details),
    _agnt5("tool_end", Details),
    _agnt5("tool_error", Details),
    _freeagentics("agent_status", AgentStatus, needs_agent=True),
    _freeagentics("agent_created", AgentCreated, needs_agent=True),
    _freeagentics("agent_updated", AgentCreated, needs_agent=True),
    _freeagentics("agent_deleted", AgentDeleted, needs_agent=True),
    _freeagentics("inference_started", InferenceStarted, subject="inference_id", needs_agent=True),
    _freeagentics("inference_progress", InferenceProgress, subject="inference_id", needs_agent=True),
    _freeagentics("inference_completed", InferenceCompleted, subject="inference_id", needs_agent=True),
    _freeagentics("inference_failed", InferenceFailed, subject="inference_id", needs_agent=True),
    _freeagentics("metrics_update", MetricsUpdate, durable=False),
    _freeagentics("performance_alert", PerformanceAlert),
    _freeagentics("system_alert", SystemAlert),
    _freeagentics("system_status", SystemStatus),
    _freeagentics("maintenance_mode", MaintenanceMode),
    _freeagentics("entity_created", EntityCreated),
    _freeagentics("entity_updated", EntityChanged),
    _freeagentics("entity_deleted", EntityChanged),
    _freeagentics("relationship_created", RelationshipCreated),
    _freeagentics("relationship_updated", RelationshipChanged),
    _freeagentics("relationship_deleted", RelationshipChanged),
)

CATALOG: dict[str, EventType] = {row.name: row for row in _ROWS}
# After one of these nothing more comes of an execution.
RUN_ENDS = frozenset({"execution_completed", "execution_failed", "execution_cancelled"})
DECODERS: dict[str, Decoder[Struct]] = {row.name: Decoder(row.data) for row in _ROWS}
