"""Every key and channel in Redis, in one place: name, type, lifetime, writer.

All names begin with a configurable prefix. What stands in braces decides the Cluster slot, so that a script may touch
its keys together: those of one workspace, those of all connection limits, those of all API keys, the one of a message
window.
"""

from typing import NamedTuple

from .errors import Invalid

# How long a producer's record, and so its protection against doubling, outlives its last call.
PRODUCER_SECONDS = 24 * 3600
# How long positions of a workspace and of an agent are remembered after their last event.
STATE_SECONDS = 7 * 24 * 3600

_MAX_ID_CHARACTERS = 255


class Row(NamedTuple):
    """One kind of key or channel, for the README's table."""

    name: str
    type: str
    lifetime: str
    writer: str
    holds: str


TABLE = (
    Row("log:{workspace}", "stream", "`log_seconds` after the last event", "publish.lua, register.lua, purge.lua",
        "the durable events: field `e` is an event's JSON without `{` and `id`; at most `log_events`"),
    Row("workspace:{workspace}", "hash", "7 days after the last event", "publish.lua, register.lua, purge.lua",
        "`position` of its newest durable event, `purges`: how often its log was purged, "
        "`purged`: up to which position"),
    Row("agent:{workspace}:<agent>", "hash", "until it is deleted; not created: 7 days after the last event",
        "publish.lua, register.lua, pair.lua",
        "`position` of its newest durable event, `last_activity` (ms), `credits_used`, `state` (error, if it said so "
        "last); empty name: no agent. Of one that was created also `created` (ms), `name`, `mode`, `soul` and `shield` "
        "(JSON), `calls` (the last ones that changed it), `pairing` (the hash of its key), `paired` (the call that "
        "used it). Of one that was deleted only `position` and `deleted` (the call that did it), for 7 days"),
    Row("agents:{workspace}", "sorted set", "no end", "register.lua",
        "the agents that were created, in the order of their making, by time (ms)"),
    Row("online:{workspace}", "sorted set", "no end", "register.lua, presence.lua, publish.lua, list.lua",
        "those of them that are present and not in error, in the same order"),
    Row("offline:{workspace}", "sorted set", "no end", "register.lua, presence.lua, publish.lua, list.lua",
        "those that are neither present nor in error, in the same order"),
    Row("errors:{workspace}", "sorted set", "no end", "publish.lua, register.lua",
        "those whose last `agent_status` said `error`, in the same order"),
    Row("deleted:{workspace}", "sorted set", "no end", "register.lua",
        "the agents that were deleted, by time (ms): what comes late of them is not kept, their tokens open nothing"),
    Row("purging:{workspace}:<purge>", "stream", "1 min, or until it takes the log's place", "purge.lua",
        "the log without the events of an agent that was deleted, unfinished"),
    Row("pairing:<hash>", "string", "24 h, or until it is used", "`Agents.create`",
        "whose pairing key has this SHA-256: JSON of workspace and agent"),
    Row("producer:{workspace}:<producer>", "hash", "24 h after its last call", "publish.lua",
        "`number` of its last call and the `answer` to it"),
    Row("events:{workspace}", "channel", "", "publish.lua, register.lua, PUBLISH by anyone",
        "every event of the workspace"),
    Row("events:{workspace}:<agent>", "channel", "", "publish.lua, register.lua, PUBLISH by anyone",
        "the events of one agent; the empty name: those without an agent"),
    Row("events:{probe:<feed>:<number>}", "channel", "", "the feed",
        "what a node publishes to itself: it finds out whether its subscription still brings what is published"),
    Row("connections:{limits}:<holder>", "sorted set", "45 s after the last renewal", "admit.lua, renew.lua",
        "the leases of a user's, an address' or an endpoint's connections, by the time (ms) at which they end"),
    Row("admissions:{limits}:<holder>", "sorted set", "1 min after the last", "admit.lua",
        "the connections that were admitted in the last minute, by time (ms)"),
    Row("messages:{holder}", "string", "the window", "take.lua", "messages in the present window"),
    Row("commands:{workspace}:<agent>", "stream", "1 h after the last command or beat of a listener",
        "command.lua, listen.lua, leave.lua, settle.lua",
        "the commands an agent has not settled yet: field `c` is a command's JSON; one consumer group, `agent`"),
    Row("waiting:{workspace}", "sorted set", "1 h after the last command", "command.lua, settle.lua, waiting.lua",
        "the commands of all agents that are not settled, by deadline (ms)"),
    Row("listening:{workspace}:<agent>", "string", "15 s after the last sign of life", "listen.lua, leave.lua",
        "who listens for the agent's commands"),
    Row("presence:{workspace}", "sorted set", "7 days after the last sign of life", "presence.lua, register.lua",
        "the agents that are present, by the time (ms) at which that ends without another sign of life"),
    Row("farewells:{workspace}", "hash", "7 days after the last sign of life", "presence.lua, register.lua",
        "why an agent has left, until it is back or its `agent.offline` is told"),
    Row("workspaces", "set", "until nobody is present there", "presence.lua's callers",
        "the workspaces in which agents are present"),
    Row("sweeper", "string", "6 s after the last renewal", "lead.lua", "the node that tells which agents have gone"),
    Row("replies:{node}", "stream", "1 min after the last reply", "reply.lua",
        "how commands ended that this node sent: field `r` is a reply's JSON"),
    Row("election:{workspace}", "string", "6 s after the last renewal", "lead.lua",
        "the node that publishes the workspace's `metrics_update`"),
    Row("alerts:{workspace}", "set", "1 h after the last change", "the elected node",
        "the performance alerts raised now"),
    Row("nodes", "hash", "1 min after the last beat", "beat.lua",
        "CPU and memory of each node, and when (ms) it said so"),
    Row("endpoint:<endpoint>", "hash", "no end", "`Credentials.create`",
        "`workspace`, to which it belongs since its first key"),
    Row("key:{keys}:<hash>", "hash", "no end", "mint.lua, check.lua, revoke.lua",
        "an API key, under its SHA-256: `id`, `endpoint`, `workspace`, `created` (ms), `used` (last day, counted from "
        "1970-01-01), `revoked` (ms)"),
    Row("keys:{keys}", "hash", "no end", "mint.lua", "the hash of each API key by its id"),
    Row("revocations:{keys}", "stream", "7 days after the last revocation", "revoke.lua",
        "which API keys were revoked: field `k` is a key's id"),
    Row("runs:{workspace}:<endpoint>", "stream", "2 days after the last run or beat of a worker",
        "submit.lua, release.lua, claim.lua, cancel.lua, expire.lua, beat_runs.lua",
        "the runs that wait for a worker: field `x` is an execution's id; one consumer group, `workers`"),
    Row("run:{workspace}:<execution>", "hash", "2 days, 24 h after its end",
        "submit.lua, claim.lua, release.lua, cancel.lua, expire.lua, publish.lua",
        "a run: `state` (queued, running, completed, failed, cancelled), `endpoint`, `name`, `connection`, `attempt`, "
        "`spared` (attempts that do not count), `attempts` (at most), `since` (the workspace's position before it), "
        "`deadline` (ms), `call` that started it, `digest` of what was asked for, `served` (1: its workflow was, when "
        "it was accepted), `entry` in the queue, `holder`, `cancel`, and until its end `body`: its JSON"),
    Row("end:{workspace}:<execution>", "string", "`log_seconds` after the run's end", "publish.lua",
        "the event that ended a run: its position, a space, and the event as in the log, which may let it go before"),
    Row("queued:{workspace}", "sorted set", "2 days after the last run",
        "submit.lua, claim.lua, release.lua, cancel.lua, expire.lua",
        "the runs of all endpoints that wait, by the time (ms) at which their keys expire"),
    Row("held:{workspace}:<endpoint>", "sorted set", "2 days after the last run or beat of a worker",
        "claim.lua, beat_runs.lua, release.lua, cancel.lua, expire.lua, publish.lua",
        "the runs that somebody holds or that wait for a retry, by the time (ms) when they go back to the queue"),
    Row("served:{workspace}:<endpoint>", "sorted set", "75 s after the last beat of a worker", "beat_runs.lua",
        "the workflows that workers serve, by the time (ms) until which that holds; each for a minute longer"),
    Row("returned:{workspace}:<endpoint>", "string", "5 s", "beat_runs.lua",
        "no worker was heard for a while, and one is again: as long as it is there, no run is taken over"),
    Row("cancels:{workspace}:<endpoint>", "stream", "1 min after the last", "cancel.lua",
        "the running executions that are to stop: field `x` is an execution's id; about 1,000"),
    Row("connection:{workspace}:<endpoint>:<connection>", "sorted set", "2 days after its last run", "submit.lua",
        "the executions that a client's `connection_id` started, in their order; at most 1,000"),
)  # fmt: skip


class Keyspace:
    """The names under one prefix. Ids are checked where they enter (`check_id`), not here."""

    __slots__ = ("is_sharded", "prefix")

    def __init__(self, prefix: str, *, is_sharded: bool = False) -> None:
        """`is_sharded`: in a cluster, where the channels lie in the slot of their workspace."""
        if not prefix or any(character in prefix for character in "{} \n\r\t"):
            raise Invalid("prefix", "expected some characters, none of them a brace or a space")
        self.prefix = prefix
        self.is_sharded = is_sharded

    @property
    def publish(self) -> str:
        """The command that publishes on the channels."""
        return "SPUBLISH" if self.is_sharded else "PUBLISH"

    def log(self, workspace: str) -> str:
        return f"{self.prefix}:log:{{{workspace}}}"

    def workspace(self, workspace: str) -> str:
        return f"{self.prefix}:workspace:{{{workspace}}}"

    def agent(self, workspace: str, agent: str | None) -> str:
        return f"{self.prefix}:agent:{{{workspace}}}:{agent or ''}"

    def agents(self, workspace: str) -> str:
        return f"{self.prefix}:agents:{{{workspace}}}"

    def registry(self, workspace: str) -> tuple[str, ...]:
        """What is kept of all agents of the workspace together."""
        kinds = (self.agents, self.online, self.offline, self.errors, self.presence, self.deleted)
        return tuple(name(workspace) for name in kinds)

    def online(self, workspace: str) -> str:
        return f"{self.prefix}:online:{{{workspace}}}"

    def offline(self, workspace: str) -> str:
        return f"{self.prefix}:offline:{{{workspace}}}"

    def errors(self, workspace: str) -> str:
        return f"{self.prefix}:errors:{{{workspace}}}"

    def deleted(self, workspace: str) -> str:
        return f"{self.prefix}:deleted:{{{workspace}}}"

    def purging(self, workspace: str, purge: str) -> str:
        return f"{self.prefix}:purging:{{{workspace}}}:{purge}"

    def pairing(self, hash_: str) -> str:
        """Whose pairing key has this SHA-256, in hexadecimal digits."""
        return f"{self.prefix}:pairing:{hash_}"

    def producer(self, workspace: str, producer: str) -> str:
        return f"{self.prefix}:producer:{{{workspace}}}:{producer}"

    def channel(self, workspace: str, agent: str | None = None) -> str:
        """The channel of a whole workspace, or of one agent of it (`""`: of events without an agent)."""
        whole = f"{self.prefix}:events:{{{workspace}}}"
        return whole if agent is None else f"{whole}:{agent}"

    def connections(self, holder: str) -> str:
        """The leases of a holder: `<dialect>:user:<sub>`, `<dialect>:address:<ip>`, `<dialect>:endpoint:<name>`."""
        return f"{self.prefix}:connections:{{limits}}:{holder}"

    def admissions(self, holder: str) -> str:
        return f"{self.prefix}:admissions:{{limits}}:{holder}"

    def messages(self, holder: str) -> str:
        return f"{self.prefix}:messages:{{{holder}}}"

    def commands(self, workspace: str, agent: str) -> str:
        return f"{self.prefix}:commands:{{{workspace}}}:{agent}"

    def waiting(self, workspace: str) -> str:
        return f"{self.prefix}:waiting:{{{workspace}}}"

    def listening(self, workspace: str, agent: str) -> str:
        return f"{self.prefix}:listening:{{{workspace}}}:{agent}"

    def presence(self, workspace: str) -> str:
        return f"{self.prefix}:presence:{{{workspace}}}"

    def farewells(self, workspace: str) -> str:
        return f"{self.prefix}:farewells:{{{workspace}}}"

    @property
    def workspaces(self) -> str:
        return f"{self.prefix}:workspaces"

    @property
    def sweeper(self) -> str:
        return f"{self.prefix}:sweeper"

    def replies(self, node: str) -> str:
        return f"{self.prefix}:replies:{{{node}}}"

    def election(self, workspace: str) -> str:
        return f"{self.prefix}:election:{{{workspace}}}"

    def alerts(self, workspace: str) -> str:
        return f"{self.prefix}:alerts:{{{workspace}}}"

    @property
    def nodes(self) -> str:
        return f"{self.prefix}:nodes"

    def endpoint(self, endpoint: str) -> str:
        return f"{self.prefix}:endpoint:{endpoint}"

    def key(self, hash_: str) -> str:
        """The record of an API key, by the SHA-256 of the key in hexadecimal digits."""
        return f"{self.prefix}:key:{{keys}}:{hash_}"

    @property
    def api_keys(self) -> str:
        return f"{self.prefix}:keys:{{keys}}"

    @property
    def revocations(self) -> str:
        return f"{self.prefix}:revocations:{{keys}}"

    def runs(self, workspace: str, endpoint: str) -> str:
        return f"{self.prefix}:runs:{{{workspace}}}:{endpoint}"

    def run(self, workspace: str, execution: str) -> str:
        return f"{self.prefix}:run:{{{workspace}}}:{execution}"

    def end(self, workspace: str, execution: str) -> str:
        return f"{self.prefix}:end:{{{workspace}}}:{execution}"

    def queued(self, workspace: str) -> str:
        return f"{self.prefix}:queued:{{{workspace}}}"

    def held(self, workspace: str, endpoint: str) -> str:
        return f"{self.prefix}:held:{{{workspace}}}:{endpoint}"

    def served(self, workspace: str, endpoint: str) -> str:
        return f"{self.prefix}:served:{{{workspace}}}:{endpoint}"

    def returned(self, workspace: str, endpoint: str) -> str:
        return f"{self.prefix}:returned:{{{workspace}}}:{endpoint}"

    def cancels(self, workspace: str, endpoint: str) -> str:
        return f"{self.prefix}:cancels:{{{workspace}}}:{endpoint}"

    def connection(self, workspace: str, endpoint: str, connection: str) -> str:
        """The executions of a client's connection; a colon in the endpoint is quoted, so that it does not end there."""
        quoted = endpoint.replace("%", "%25").replace(":", "%3A")
        return f"{self.prefix}:connection:{{{workspace}}}:{quoted}:{connection}"

    def head(self, workspace: str, agent: str | None = None) -> str:
        """The hash whose `position` is the newest of what the channel of the same arguments carries."""
        return self.workspace(workspace) if agent is None else self.agent(workspace, agent)


def is_id(value: str) -> bool:
    """Whether it may be the id of a workspace, agent or subject: 1 to 255 printable characters."""
    return 1 <= len(value) <= _MAX_ID_CHARACTERS and value.isprintable()


def check_id(value: object, path: str) -> str:
    """An id of a workspace, agent or subject: 1 to 255 printable characters. Raises `Invalid` with `path`."""
    if not isinstance(value, str):
        raise Invalid(path, f"expected str, got {type(value).__name__}")
    if not is_id(value):
        raise Invalid(path, "expected 1 to 255 printable characters")
    return value


def check_workspace(value: object, path: str) -> str:
    """A workspace's id: no braces besides, since Redis Cluster reads them in key names."""
    name = check_id(value, path)
    if "{" in name or "}" in name:
        raise Invalid(path, "expected a workspace id without braces")
    return name


def check_endpoint(value: object, path: str) -> str:
    """An endpoint's name: ASCII without spaces and braces, since it stands in URLs and, alone, in a key name."""
    name = check_id(value, path)
    if not name.isascii() or any(character in name for character in "{} "):
        raise Invalid(path, "expected 1 to 255 ASCII characters without spaces and braces")
    return name
