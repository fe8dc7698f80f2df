"""What a client may hear when it cannot have its way: one table, which every dialect puts into its own words."""

from typing import NamedTuple

from . import frames


class Reason(NamedTuple):
    """`code` names it in errors and metrics, `text` is for people; without a `close_code` the connection stays.

    `retry_after` is in how many seconds it is worth to come back, where that does not depend on anything.
    """

    code: str
    text: str
    close_code: int | None = None
    retry_after: int | None = None


INVALID_TOKEN = Reason("INVALID_TOKEN", "Token expired or invalid", frames.POLICY_VIOLATION, 30)
INVALID_MESSAGE = Reason("INVALID_MESSAGE", "The message cannot be understood")
FORBIDDEN = Reason("FORBIDDEN", "$.filters.workspace_id: the token does not name this workspace")
UNKNOWN_EVENT_TYPE = Reason("UNKNOWN_EVENT_TYPE", "The event type is not supported")
TOO_MANY_EVENT_TYPES = Reason("TOO_MANY_EVENT_TYPES", "Too many event types")
TOO_MANY_SUBSCRIPTIONS = Reason("TOO_MANY_SUBSCRIPTIONS", "Too many concurrent subscriptions", frames.POLICY_VIOLATION)
TOO_MANY_CONNECTIONS = Reason("TOO_MANY_CONNECTIONS", "Too many connections", frames.TRY_AGAIN_LATER)
TOO_MANY_MESSAGES = Reason("TOO_MANY_MESSAGES", "Too many messages")
FLOOD = Reason("FLOOD", "twice as many messages as allowed", frames.POLICY_VIOLATION)

# What can become of a command.
UNKNOWN_COMMAND = Reason("UNKNOWN_COMMAND", "There is no such command")
AGENT_UNKNOWN = Reason("AGENT_UNKNOWN", "Agent not found")
AGENT_OFFLINE = Reason("AGENT_OFFLINE", "The agent is not connected")
COMMAND_FAILED = Reason("COMMAND_FAILED", "The agent could not do it")
COMMAND_GONE = Reason("COMMAND_NOT_FOUND", "$.command_id: no command of this connection waits under this id")
COMMAND_TIMEOUT = Reason("COMMAND_TIMEOUT", "The agent did not answer in time")
TOO_MANY_COMMANDS = Reason("TOO_MANY_COMMANDS", "Too many commands wait for this agent")
UNAVAILABLE = Reason("UNAVAILABLE", "The service is not available at the moment, try again")

# What a client hears that may not come in.
ENDPOINT_MISSING = Reason("ENDPOINT_MISSING", "x-wf-endpoint: required in the query")
ENDPOINT_UNKNOWN = Reason("ENDPOINT_NOT_FOUND", "x-wf-endpoint: there is no such endpoint")
KEY_REFUSED = Reason("INVALID_API_KEY", "The API key is unknown or revoked")
KEY_ELSEWHERE = Reason("FORBIDDEN", "The API key is for another endpoint")

# What can become of a run before it is one.
RUN_UNKNOWN = Reason("RUN_UNKNOWN", "$.execution_id: no execution of this connection")
WORKFLOW_UNKNOWN = Reason("UNKNOWN_WORKFLOW", "$.name: no worker of this endpoint has such a workflow")
TOO_MANY_RUNS = Reason("TOO_MANY_RUNS", "Too many executions of this endpoint wait for a worker, try again later")

# Farewells: nothing is said but the close frame, unless a dialect has words for it.
TOO_MANY_ERRORS = Reason("TOO_MANY_ERRORS", "too many invalid messages in a row", frames.POLICY_VIOLATION)
PONG_TIMEOUT = Reason("PONG_TIMEOUT", "PONG_TIMEOUT", frames.POLICY_VIOLATION)
KEY_REVOKED = Reason("KEY_REVOKED", "the API key was revoked", frames.POLICY_VIOLATION)
IDLE = Reason("IDLE", "idle", frames.NORMAL_CLOSURE)
GOODBYE = Reason("GOODBYE", "goodbye", frames.NORMAL_CLOSURE)
NOT_TEXT = Reason("NOT_TEXT", "text messages only", frames.UNSUPPORTED_DATA)
SLOW_CONSUMER = Reason("SLOW_CONSUMER", "slow consumer: resume from the last event_id", frames.TRY_AGAIN_LATER, 1)
EVENTS_LOST = Reason("EVENTS_LOST", "events were lost: connect again", frames.TRY_AGAIN_LATER)
GOING_AWAY = Reason("GOING_AWAY", "the server is going away: connect again", frames.SERVICE_RESTART, 1)
BUG = Reason("BUG", "", frames.INTERNAL_ERROR)
