"""Keys and channels: each name says one thing, and all names of a workspace lie in one slot of a Cluster."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from broker import Invalid
from broker.keyspace import TABLE, Keyspace, check_endpoint, check_id, check_workspace

KEYS = Keyspace("trunkline")

# Every kind of name there is, of a workspace and what is in it.
KINDS: dict[str, Callable[[str, str], str]] = {
    "log:{workspace}": lambda workspace, _: KEYS.log(workspace),
    "workspace:{workspace}": lambda workspace, _: KEYS.workspace(workspace),
    "agent:{workspace}:<agent>": KEYS.agent,
    "agents:{workspace}": lambda workspace, _: KEYS.agents(workspace),
    "online:{workspace}": lambda workspace, _: KEYS.online(workspace),
    "offline:{workspace}": lambda workspace, _: KEYS.offline(workspace),
    "errors:{workspace}": lambda workspace, _: KEYS.errors(workspace),
    "deleted:{workspace}": lambda workspace, _: KEYS.deleted(workspace),
    "purging:{workspace}:<purge>": KEYS.purging,
    "producer:{workspace}:<producer>": KEYS.producer,
    "events:{workspace}": lambda workspace, _: KEYS.channel(workspace),
    "events:{workspace}:<agent>": KEYS.channel,
    "commands:{workspace}:<agent>": KEYS.commands,
    "waiting:{workspace}": lambda workspace, _: KEYS.waiting(workspace),
    "listening:{workspace}:<agent>": KEYS.listening,
    "presence:{workspace}": lambda workspace, _: KEYS.presence(workspace),
    "farewells:{workspace}": lambda workspace, _: KEYS.farewells(workspace),
    "election:{workspace}": lambda workspace, _: KEYS.election(workspace),
    "runs:{workspace}:<endpoint>": KEYS.runs,
    "run:{workspace}:<execution>": KEYS.run,
    "end:{workspace}:<execution>": KEYS.end,
    "queued:{workspace}": lambda workspace, _: KEYS.queued(workspace),
    "held:{workspace}:<endpoint>": KEYS.held,
    "served:{workspace}:<endpoint>": KEYS.served,
    "returned:{workspace}:<endpoint>": KEYS.returned,
    "cancels:{workspace}:<endpoint>": KEYS.cancels,
    "connection:{workspace}:<endpoint>:<connection>": lambda workspace, inner: KEYS.connection(workspace, "a", inner),
    "alerts:{workspace}": lambda workspace, _: KEYS.alerts(workspace),
}

# And those of the whole fleet, by what is in them.
FLEET: dict[str, Callable[[str], str]] = {
    "events:{probe:<feed>:<number>}": lambda feed: KEYS.channel(f"probe:{feed}:{feed}"),
    "connections:{limits}:<holder>": KEYS.connections,
    "admissions:{limits}:<holder>": KEYS.admissions,
    "messages:{holder}": KEYS.messages,
    "replies:{node}": KEYS.replies,
    "nodes": lambda _: KEYS.nodes,
    "workspaces": lambda _: KEYS.workspaces,
    "sweeper": lambda _: KEYS.sweeper,
    "endpoint:<endpoint>": KEYS.endpoint,
    "pairing:<hash>": KEYS.pairing,
    "key:{keys}:<hash>": KEYS.key,
    "keys:{keys}": lambda _: KEYS.api_keys,
    "revocations:{keys}": lambda _: KEYS.revocations,
}

ids = st.text(min_size=1, max_size=255).filter(str.isprintable) | st.text("{}:*-a", min_size=1, max_size=6)
workspaces = ids.filter(lambda name: not set("{}") & set(name))


def test_the_table_lists_every_name_and_the_names_are_what_it_lists() -> None:
    assert {row.name for row in TABLE} == KINDS.keys() | FLEET.keys()
    assert len(TABLE) == len(KINDS) + len(FLEET)
    for pattern, fleet_name in FLEET.items():
        assert fleet_name("x") == "trunkline:" + re.sub(
            "<(holder|endpoint|hash|feed|number)>|(?<={)(holder|node)(?=})", "x", pattern
        )
    for pattern, name in KINDS.items():
        expected = "trunkline:" + re.sub("<[a-z]+>", "a", pattern.replace("workspace}", "ws-1}"))
        assert name("ws-1", "a") == expected
    for row in TABLE:
        assert row.type in ("stream", "hash", "channel", "string", "set", "sorted set")
        assert row.holds
        assert row.writer
        assert row.lifetime or row.type == "channel"


@given(workspaces, workspaces, ids, ids)
@settings(deadline=None)
def test_two_names_are_equal_only_when_all_they_say_is(one: str, other: str, a: str, b: str) -> None:
    named: dict[str, tuple[str, ...]] = {}
    for pattern, name in KINDS.items():
        for workspace in (one, other):
            for inner in (a, b):
                said = (pattern, workspace, inner) if "<" in pattern else (pattern, workspace)
                assert named.setdefault(name(workspace, inner), said) == said


@given(ids)
@settings(deadline=None)
def test_what_one_script_limits_connections_by_lies_in_one_slot(holder: str) -> None:
    assert key_slot(KEYS.connections(holder).encode()) == key_slot(KEYS.admissions("anybody").encode())


def test_what_one_script_changes_of_keys_lies_in_one_slot() -> None:
    names = (KEYS.key("9f86"), KEYS.key("d081"), KEYS.api_keys, KEYS.revocations)
    assert len({key_slot(name.encode()) for name in names}) == 1


@given(workspaces, ids)
@settings(deadline=None)
def test_all_names_of_a_workspace_lie_in_one_slot(workspace: str, inner: str) -> None:
    slots = {key_slot(name(workspace, inner).encode()) for name in KINDS.values()}
    assert slots == {key_slot(workspace.encode())}


def test_a_connection_of_an_endpoint_is_no_other_endpoints() -> None:
    parts = ["a", "a:b", "b:c", "c", "a%3Ab", "a%b"]
    names = {KEYS.connection("ws-1", endpoint, connection) for endpoint in parts for connection in parts}
    assert len(names) == len(parts) ** 2


def test_events_without_an_agent_have_the_empty_name() -> None:
    assert KEYS.agent("ws-1", None) == KEYS.agent("ws-1", "") == "trunkline:agent:{ws-1}:"
    assert KEYS.channel("ws-1", "") == "trunkline:events:{ws-1}:"
    assert KEYS.channel("ws-1") == KEYS.channel("ws-1", None) == "trunkline:events:{ws-1}"


def test_the_head_of_a_channel_is_the_hash_with_its_newest_position() -> None:
    assert KEYS.head("ws-1") == KEYS.workspace("ws-1")
    assert KEYS.head("ws-1", "a") == KEYS.agent("ws-1", "a")
    assert KEYS.head("ws-1", "") == KEYS.agent("ws-1", "")


def test_names_of_different_prefixes_differ() -> None:
    assert Keyspace("a:b").log("ws") == "a:b:log:{ws}"
    assert Keyspace("a").log("ws") != Keyspace("b").log("ws")


@pytest.mark.parametrize("prefix", ["", "{a}", "a}", "a b", " ", "a\n", "a\r", "a\t"])
def test_a_prefix_that_breaks_names_is_refused(prefix: str) -> None:
    with pytest.raises(Invalid) as invalid:
        Keyspace(prefix)
    assert invalid.value.path == "prefix"


GOOD_IDS = ["a", "agent-123", "exec_abc", "*", "a:b", "a b", "Größe", "世界", "🎉", "x" * 255, "{a}", "}"]
BAD_IDS = ["", "x" * 256, "a\n", "\t", "\x00", "\x7f", "\u2028", "\u200b", "\ud800", 5, None, b"a", ["a"], True]


@pytest.mark.parametrize("value", GOOD_IDS)
def test_an_id_is_any_printable_text_of_255_characters_at_most(value: str) -> None:
    assert check_id(value, "$.agent_id") == value
    if not re.search("[{}]", value):
        assert check_workspace(value, "$.workspace_id") == value


@pytest.mark.parametrize("value", BAD_IDS, ids=repr)
def test_anything_else_is_no_id_and_said_with_its_path(value: object) -> None:
    for check in (check_id, check_workspace):
        with pytest.raises(Invalid) as invalid:
            check(value, "$.some.path")
        assert invalid.value.path == "$.some.path"


@pytest.mark.parametrize("value", ["{", "}", "{a}", "a{b", "a}:x"])
def test_a_workspace_has_no_braces_as_a_cluster_reads_them(value: str) -> None:
    with pytest.raises(Invalid):
        check_workspace(value, "$.workspace_id")


@pytest.mark.parametrize("value", ["a", "coffee-shop-e66b8d23", "*", "a:b", "a/b?c=d&e", "x" * 255])
def test_an_endpoint_is_ascii_without_spaces_and_braces(value: str) -> None:
    assert check_endpoint(value, "endpoint") == value


@pytest.mark.parametrize("value", [*BAD_IDS, "a b", " ", "{a}", "a}", "Größe", "世界", "a\u00a0"], ids=repr)
def test_anything_else_is_no_endpoint_and_said_with_its_path(value: object) -> None:
    with pytest.raises(Invalid) as invalid:
        check_endpoint(value, "endpoint")
    assert invalid.value.path == "endpoint"
