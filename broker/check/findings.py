"""What is to be said of a Redis: facts in, findings out. Pure.

What is asked for is what deploy/redis.conf says; and behind Sentinel and in a Cluster what lets a failover
cost the least, as README.md has it: `min-replicas-…` and `cluster-require-full-coverage`.
"""

from collections.abc import Iterator, Mapping

from .facts import Facts, Finding, Server, Tried

OLDEST, OLDEST_OF_A_CLUSTER = (6, 2), (7, 0)
SLOW_PING_SECONDS, SLOW_WORST_SECONDS, SLOW_PUBLISH_SECONDS = 0.005, 0.1, 0.02
# Tokens expire and positions grow by clocks.
CLOCK_SECONDS, CLOCK_SECONDS_BETWEEN_SERVERS = 1.0, 1.0
FULL = 0.8
FEW_CLIENTS = 500
MEBIBYTE = 1024 * 1024
# A node that reads late for a moment is cut off past these, and has to catch up from the log.
FEED_BYTES, FEED_BYTES_FOR_LONG = 64 * MEBIBYTE, 16 * MEBIBYTE
PUBSUB_LIMIT = 'client-output-buffer-limit "pubsub 128mb 32mb 60"'
FENCING = "min-replicas-to-write 1, min-replicas-max-lag 1"

_TOPOLOGIES = {"one": "one Redis", "sentinel": "the master behind Sentinel", "cluster": "a Cluster"}


def findings(facts: Facts) -> list[Finding]:
    """A line for each thing that was looked at."""
    return list(_findings(facts))


def _findings(facts: Facts) -> Iterator[Finding]:
    if facts.problem is not None:
        yield Finding("error", "connection", facts.problem, _way_in(facts.problem, facts.user))
        return
    elsewhere = list(_elsewhere(facts))
    yield from elsewhere
    if elsewhere:
        return
    yield from _topology(facts)
    yield _encryption(facts)
    for server in facts.servers:
        many = len(facts.servers) > 1
        for finding in (*_role(server), *_server(facts, server), *_failover(facts, server)):
            yield finding._replace(text=f"{server.name}: {finding.text}") if many else finding
    for replica in facts.replicas:
        yield from _successor(facts, replica)
    for reason in facts.unreachable:
        yield Finding("error", "unreachable", reason, "a way to it, and our user there too: ACLs are not replicated")
    yield from _clocks(facts)
    yield _publish(facts)
    yield _prefix(facts)


def _way_in(problem: str, user: str) -> str:
    """What to change where nothing could be looked at."""
    if "unknown command" in problem:
        return "Redis 6.2 or newer"
    return f"ACL SETUSER {user}, with this right" if "NOPERM" in problem else "TRUNKLINE_REDIS_URL"


def _server(facts: Facts, server: Server) -> Iterator[Finding]:
    yield _version(facts, server)
    yield from _unseen(facts, server)
    if server.tried is not None:
        yield from _permissions(facts, server.tried)
    if server.info is not None:
        yield from _persistence(server)
        yield from _memory(server)
        yield from _clients(server)
    if server.config is not None:
        yield from _output_buffers(server.config)
    yield _latency(server)
    yield _clock(server)


def _successor(facts: Facts, replica: Server) -> Iterator[Finding]:
    """What will be wrong when this replica is the master."""
    found = (*_server(facts, replica), *_fencing(facts, replica), *_coverage(facts, replica))
    wrong = [finding for finding in found if finding.level != "ok"]
    for finding in wrong:
        yield finding._replace(text=f"the replica {replica.name}: {finding.text}")
    if not wrong:
        yield Finding("ok", "replica", f"the replica {replica.name} can take its master's place")


# -- what it is


def _elsewhere(facts: Facts) -> Iterator[Finding]:
    """The URL leads to something else than it says: nothing else is worth a word."""
    for server in facts.servers:
        if server.mode == "cluster" and facts.topology != "cluster":
            text = f"{server.name} is a node of a Cluster"
            yield Finding("error", "topology", text, f"TRUNKLINE_REDIS_URL redis+cluster://{server.name}")
        elif server.mode == "sentinel":
            text = f"{server.name} is a Sentinel, and keeps no events itself"
            yield Finding("error", "topology", text, f"TRUNKLINE_REDIS_URL redis+sentinel://{server.name}/NAME")


def _topology(facts: Facts) -> Iterator[Finding]:
    names = ", ".join(server.name for server in facts.servers)
    yield Finding("ok", "topology", f"{_TOPOLOGIES[facts.topology]}: {names}")
    if facts.slots_without_owner:
        text = f"{facts.slots_without_owner} slots of the Cluster have no master: their workspaces cannot be used"
        yield Finding("error", "slots", text, "a master for each slot: see redis-cli --cluster check")
    for name, problem in facts.sentinels.items():
        if problem is None:
            yield Finding("ok", "sentinel", f"the sentinel {name} sees enough others to agree on a failover")
        elif "NOPERM" in problem:
            text = (
                f"the sentinel {name} may not tell our user there whether it sees enough others to agree on a failover"
            )
            yield Finding("warning", "sentinel", text, "for this check: ACL SETUSER … +sentinel|ckquorum there")
        else:
            text = f"the sentinel {name}: {problem}"
            yield Finding("error", "sentinel", text, "three sentinels, each on its machine")


def _encryption(facts: Facts) -> Finding:
    if facts.is_encrypted:
        return Finding("ok", "tls", "connections are encrypted")
    if facts.is_local:
        return Finding("ok", "tls", "connections are not encrypted, and stay on this machine")
    text = "connections are not encrypted: who can listen on the network reads events and the password"
    return Finding("warning", "tls", text, "TRUNKLINE_REDIS_URL rediss://, and tls-port in redis.conf")


def _version(facts: Facts, server: Server) -> Finding:
    oldest = OLDEST_OF_A_CLUSTER if facts.topology == "cluster" else OLDEST
    if tuple(int(part) for part in server.version.split(".")[:2] if part.isdecimal()) >= oldest:
        return Finding("ok", "version", f"Redis {server.version}")
    wanted = ".".join(map(str, oldest))
    return Finding("error", "version", f"Redis {server.version} is too old", f"Redis {wanted} or newer")


def _role(server: Server) -> Iterator[Finding]:
    if not server.is_master:
        text = "this is a replica: it takes no events, and is behind its master"
        yield Finding("error", "role", text, "TRUNKLINE_REDIS_URL of its master, or redis+sentinel://")


def _unseen(facts: Facts, server: Server) -> Iterator[Finding]:
    rules = [rule for rule, why in server.unseen.items() if why.startswith("NOPERM")]
    if rules:
        text = "not everything could be looked at, as our user may not: compare with deploy/redis.conf by hand"
        yield Finding("warning", "unseen", text, f"for this check: ACL SETUSER {facts.user} {' '.join(rules)}")
    if others := server.unseen.keys() - set(rules):
        names = ", ".join(sorted(others)).replace("+", "").upper()
        text = f"not everything could be looked at, as this server lets nobody ({names})"
        yield Finding("warning", "unseen", text, "what deploy/redis.conf says, with the means of who runs it")


def _permissions(facts: Facts, tried: Tried) -> Iterator[Finding]:
    missing, disabled = tried
    if missing:
        names = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        change = f"ACL SETUSER {facts.user} {' '.join(missing)}"
        yield Finding("error", "permissions", f"the user {facts.user} lacks {names}", change)
    if disabled:
        text = f"the server does not know {', '.join(disabled)}"
        yield Finding("error", "commands", text, "no rename-command in redis.conf for these")
    if not (missing or disabled):
        yield Finding("ok", "permissions", f"the user {facts.user} may do all that is needed")


# -- what it keeps


def _persistence(server: Server) -> Iterator[Finding]:
    assert server.info is not None
    saves, fsync = (server.config or {}).get("save"), (server.config or {}).get("appendfsync")
    if server.number("aof_enabled"):
        if server.info.get("aof_last_write_status", "ok") != "ok":
            yield Finding("error", "persistence", "the last write to the append-only file failed: writes are refused",
                          "room and permissions for dir in redis.conf")  # fmt: skip
        elif fsync == "no":
            text = "the append-only file is synced when the system likes: a crash of the machine can cost half a minute"
            yield Finding("warning", "persistence", text, "appendfsync everysec")
        else:
            loses = {"always": ", nothing is lost by a crash"}.get(fsync or "", ", a crash can cost the last second")
            yield Finding("ok", "persistence", f"append-only file{loses}")
    elif saves == "":
        text = "nothing is written to disk: a restart forgets agents, keys, runs and the log"
        yield Finding("warning", "persistence", text, "appendonly yes")
    else:
        text = "at most snapshots are written: a restart forgets what came since the last one"
        yield Finding("warning", "persistence", text, "appendonly yes")
    if server.info.get("rdb_last_bgsave_status", "ok") != "ok":
        text = "the last snapshot could not be written: Redis refuses writes, unless it is told otherwise"
        yield Finding("error", "snapshot", text, "room and permissions for dir in redis.conf, and memory to fork")


def _memory(server: Server) -> Iterator[Finding]:
    assert server.info is not None
    policy = server.info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        text = f"keys are evicted when memory is full ({policy}): events, leases and keys go without a word"
        yield Finding("warning", "eviction", text, "maxmemory-policy noeviction")
    else:
        yield Finding("ok", "eviction", "nothing is evicted when memory is full")
    used, most = server.number("used_memory"), server.number("maxmemory")
    if most and used > FULL * most:
        text = f"{used / most:.0%} of the memory is used: when it is full, publishing fails"
        yield Finding(
            "warning", "memory", text, f"maxmemory {2 * most // MEBIBYTE}mb, or a smaller TRUNKLINE_LOG_EVENTS"
        )
    else:
        of = f" of {most // MEBIBYTE} MiB" if most else ", without a limit"
        yield Finding("ok", "memory", f"{used // MEBIBYTE} MiB used{of}")


def _failover(facts: Facts, server: Server) -> Iterator[Finding]:
    """Whether another one can take its place, and what is lost then."""
    if server.info is not None:
        yield from _replicas(facts, server)
    yield from _coverage(facts, server)


def _coverage(facts: Facts, server: Server) -> Iterator[Finding]:
    if facts.topology == "cluster" and server.config is not None:
        if server.config.get("cluster-require-full-coverage") == "yes":
            text = "while a master is dead and has no successor, this one refuses everything too"
            yield Finding("warning", "coverage", text, "cluster-require-full-coverage no")
        else:
            yield Finding("ok", "coverage", "it serves its workspaces while another master is dead")


def _fencing(facts: Facts, replica: Server) -> Iterator[Finding]:
    """Whether it will stop, once it is a master and has been replaced; of a master `_replicas` says it."""
    if facts.topology == "sentinel" and replica.config is not None:
        wanted, lag = _wanted(replica)
        if not (wanted and lag == 1):
            seconds = f" for up to {lag} s" if wanted else ""
            text = f"as a master that was replaced it would go on taking writes{seconds}: they are lost"
            yield Finding("warning", "fencing", text, FENCING)


def _wanted(server: Server) -> tuple[int, int]:
    """How many replicas it must have to take writes, and how many seconds they may be silent."""
    config = server.config or {}
    return int(config.get("min-replicas-to-write", 1)), int(config.get("min-replicas-max-lag", 1))


def _replicas(facts: Facts, server: Server) -> Iterator[Finding]:
    config, replicas = server.config or {}, server.number("connected_slaves")
    wanted, lag = _wanted(server)
    if wanted > replicas and "min-replicas-to-write" in config:
        text = f"{replicas} replicas are connected and {wanted} are needed: writes are refused"
        yield Finding("error", "replicas", text, f"min-replicas-to-write {replicas}, or more replicas")
    elif not replicas and facts.topology != "one":
        yield Finding("warning", "replicas", "no replica is connected: when this master dies, nobody takes its place",
                      "replicaof, on another server")  # fmt: skip
    elif replicas and not (wanted and lag == 1) and facts.topology != "cluster":  # there it stops by itself
        seconds = f" for up to {lag} s" if wanted and lag else ""
        text = f"{replicas} replicas, and a master that was replaced goes on taking writes{seconds}: they are lost"
        yield Finding("warning", "replicas", text, FENCING)
    else:
        yield Finding("ok", "replicas", f"{replicas} replicas connected" if replicas else "no replica")


# -- what it carries


def _clients(server: Server) -> Iterator[Finding]:
    limit = server.number("maxclients")
    if limit and limit - server.number("connected_clients") < FEW_CLIENTS:
        text = f"{server.number('connected_clients')} of {limit} connections are taken: a node uses up to 150"
        yield Finding("warning", "clients", text, "maxclients 10000")
    elif limit:
        yield Finding("ok", "clients", f"{server.number('connected_clients')} of {limit} connections are taken")


def _output_buffers(config: Mapping[str, str]) -> Iterator[Finding]:
    words = config.get("client-output-buffer-limit", "").split()
    if "pubsub" not in words:
        return
    hard, soft = (int(word) for word in words[words.index("pubsub") + 1 :][:2])
    if 0 < hard < FEED_BYTES or 0 < soft < FEED_BYTES_FOR_LONG:
        text = (
            f"a node that reads late is cut off at {_size(hard)} at once or {_size(soft)} for long, "
            "and has to catch up from the log"
        )
        yield Finding("warning", "output-buffer", text, PUBSUB_LIMIT)
    else:
        yield Finding("ok", "output-buffer", f"a node may be behind by {_size(hard)}, by {_size(soft)} for long")


def _size(size: int) -> str:
    return f"{size / MEBIBYTE:g} MiB" if size else "any amount"


def _latency(server: Server) -> Finding:
    middle, worst = server.pings
    text = f"a round trip takes {middle * 1000:.2f} ms, {worst * 1000:.1f} ms at worst"
    if middle > SLOW_PING_SECONDS:
        return Finding("warning", "latency", text, "nodes and producers near Redis, on one network")
    if worst > SLOW_WORST_SECONDS:
        return Finding("warning", "latency", text, "see SLOWLOG GET and LATENCY DOCTOR: no slow commands, no swap")
    return Finding("ok", "latency", text)


def _clock(server: Server) -> Finding:
    ahead, doubt = server.clock
    if abs(ahead) - doubt <= CLOCK_SECONDS:
        return Finding("ok", "clock", f"its clock and ours agree to {(abs(ahead) + doubt) * 1000:.1f} ms")
    than = "ahead of" if ahead > 0 else "behind"
    text = f"its clock is {abs(ahead):.1f} s {than} ours: tokens and the delivery lag are judged wrongly"
    return Finding("warning", "clock", text, "NTP (chrony, systemd-timesyncd) on both machines")


def _clocks(facts: Facts) -> Iterator[Finding]:
    clocks = [server.clock for server in (*facts.servers, *facts.replicas)]
    if len(clocks) < 2:
        return
    apart = max(clock.ahead for clock in clocks) - min(clock.ahead for clock in clocks)
    if apart - max(clock.doubt for clock in clocks) > CLOCK_SECONDS_BETWEEN_SERVERS:
        text = f"the clocks of the servers are {apart:.1f} s apart: after a failover positions could go back"
        yield Finding("warning", "clocks", text, "NTP (chrony, systemd-timesyncd) on all their machines")
    else:
        yield Finding("ok", "clocks", "the clocks of the servers agree")


def _publish(facts: Facts) -> Finding:
    if facts.publish is None:
        return Finding("error", "publish", f"an event cannot be published: {facts.publish_problem}", None)
    middle, worst = facts.publish
    text = f"publishing an event takes {middle * 1000:.2f} ms, {worst * 1000:.1f} ms at worst"
    if middle > SLOW_PUBLISH_SECONDS:
        return Finding("warning", "publish", text, "appendfsync everysec, and a faster disk or network")
    return Finding("ok", "publish", text)


def _prefix(facts: Facts) -> Finding:
    if facts.strangers:
        names = ", ".join(facts.strangers[:3])
        text = f"somebody else keeps keys under the prefix {facts.prefix}, as {names}"
        return Finding("warning", "prefix", text, "TRUNKLINE_PREFIX, a word that nobody else uses")
    return Finding("ok", "prefix", f"all keys under the prefix {facts.prefix} are ours")
