"""Which slot a command goes to, who has it, and whom to believe."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

import broker
from broker import Unavailable
from broker.keyspace import Keyspace
from broker.topology import Host
from broker.topology.peers import Peers
from broker.topology.slots import Slots, redirection, slot_of, slot_of_command

from .on_cluster import RAN
from .topologies import redis_server_7

SCRIPTS = sorted(path.name for path in (Path(broker.__file__).parent / "scripts").glob("*.lua"))

# Quick tests of every script, and of most of what it may have to do.
OF_ALL_SCRIPTS = (
    "test_agents.py::test_a_filter_by_status_pages_through_those_that_match",
    "test_agents.py::test_a_pairing_key_is_used_once",
    "test_agents.py::test_the_repetition_of_its_making_brings_no_deleted_agent_back",
    "test_agents_purge.py::test_a_position_of_a_purged_event_is_a_gap_and_any_other_is_none",
    "test_agents_purge.py::test_an_endpoint_of_another_workspace_that_is_called_alike_stays",
    "test_commands.py::test_a_command_reaches_its_agent_and_its_result_the_sender",
    "test_commands.py::test_a_full_queue_and_a_node_with_too_much_pending_take_no_more",
    "test_commands.py::test_an_agent_that_nobody_ever_heard_of_is_unknown_and_one_that_left_is_offline",
    "test_credentials.py::test_all_that_may_be_told_of_a_key_is_listed",
    "test_credentials.py::test_an_endpoint_belongs_to_the_workspace_of_its_first_key_also_when_that_is_revoked",
    "test_election.py::test_a_resigned_workspace_is_free_at_once_and_only_its_leader_can_resign",
    "test_election.py::test_raised_alerts_are_handed_down",
    "test_election.py::test_the_fleets_load_is_the_mean_of_all_nodes",
    "test_leases.py::test_a_lease_without_room_is_lost_with_all_its_places",
    "test_leases.py::test_leases_that_redis_lost_come_back_where_there_is_room",
    "test_runs.py::test_a_run_is_held_by_one_and_by_the_same_again",
    "test_runs.py::test_a_run_that_is_given_back_while_it_is_cancelled_does_not_wait_for_its_retry",
    "test_runs.py::test_a_run_that_waits_is_cancelled_at_once_without_any_worker",
    "test_runs.py::test_many_who_expire_one_run_end_it_once",
    "test_runs.py::test_many_who_start_a_run_under_one_key_at_once_start_it_once",
    "test_runs.py::test_refused_events_leave_the_others_of_their_call_and_its_numbering_as_they_were",
    "test_runs.py::test_what_is_given_back_waits_again_and_a_spared_attempt_does_not_count",
    "test_windows.py::test_messages_are_counted_until_the_limit_and_refused_ones_take_no_place",
)

HERE, THERE = Host("10.0.0.1", 7000), Host("10.0.0.2", 7001)


@pytest.mark.parametrize(
    "words",
    [
        ("HGET", "{a}", "field"),
        ("EVALSHA", "9f", 2, "{a}x", "{a}y", "{b}"),
        ("EVAL", "return 1", 1, "{a}x", "{b}"),
        ("XREAD", b"COUNT", 10, b"BLOCK", 100, b"STREAMS", "{a}", "0-0"),
        ("XREADGROUP", "GROUP", "agent", "STREAMS2", "STREAMS", b"{a}", ">"),
        ("SPUBLISH", "{a}:1", "message"),
    ],
)
def test_a_command_goes_to_the_slot_of_its_first_key(words: tuple[Any, ...]) -> None:
    assert slot_of_command(words) == key_slot(b"a")


@pytest.mark.parametrize("key", ["", "a", "{a}b", "{}a", "{a", "a}", "a{b}c{d}", "{{a}}", "}{a}", "ü{ö}"])
def test_slots_are_those_of_redis(key: str) -> None:
    assert slot_of(key) == slot_of(key.encode()) == key_slot(key.encode())


def test_some_commands_any_node_can_answer_and_some_are_told_their_key() -> None:
    assert slot_of_command(("TIME",)) is slot_of_command(("PING",)) is None
    assert slot_of_command(("SCAN", 0, "MATCH", "x"), ["{a}"]) == key_slot(b"a")


def test_all_of_a_workspace_is_in_one_slot() -> None:
    keys = Keyspace("any")
    names = [
        keys.log("ws"), keys.workspace("ws"), keys.agent("ws", "a"), keys.agents("ws"), keys.errors("ws"),
        keys.deleted("ws"), keys.purging("ws", "p"), keys.producer("ws", "p"), keys.channel("ws"),
        keys.channel("ws", "a"), keys.commands("ws", "a"), keys.waiting("ws"), keys.listening("ws", "a"),
        keys.presence("ws"), keys.farewells("ws"), keys.election("ws"), keys.alerts("ws"), keys.runs("ws", "e"),
        keys.run("ws", "x"), keys.end("ws", "x"), keys.queued("ws"), keys.held("ws", "e"), keys.served("ws", "e"),
        keys.returned("ws", "e"), keys.cancels("ws", "e"), keys.connection("ws", "e", "c"),
    ]  # fmt: skip
    assert {slot_of(name) for name in names} == {key_slot(b"ws")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_keys_of_a_script_are_in_one_slot(script: str) -> None:
    """As its header shows them; what it makes of them is for Redis to judge, below."""
    text = (Path(broker.__file__).parent / "scripts" / script).read_text()
    example = " ".join(line.removeprefix("--").strip() for line in text.partition("-- Example")[2].splitlines())
    count, *words = example.partition("EVALSHA … ")[2].split(" ")
    names = [name.replace("…:", "trunkline:connections:{limits}:", 1) for name in words[: int(count)]]
    assert all(name.startswith("trunkline:") for name in names)
    assert len({slot_of(name) for name in names}) == 1


def test_no_script_touches_a_key_of_another_slot() -> None:
    """On a cluster that refuses it also where the other slot happens to be at the same node: see on_cluster.py."""
    redis_server_7()
    chosen = [f"tests/{test}" for test in OF_ALL_SCRIPTS]
    plugins = ("-p", "no:cacheprovider", "-p", "anyio.pytest_plugin", "-p", "tests.on_cluster")
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # some take seconds to load
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *chosen],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answered = next(line for line in ran.stdout.splitlines() if line.startswith(RAN))
    assert [f"{name}.lua" for name in answered.removeprefix(RAN).split()] == SCRIPTS


def test_the_owners_are_those_of_the_last_answer_and_of_the_redirections_since() -> None:
    slots = Slots()
    assert (slots.owner(0), slots.masters, slots.version) == (None, [], 0)
    slots.load(
        [[0, 8191, [b"", 7000, b"id", []], [b"10.0.0.9", 7009, b"id"]], [8192, 16383, [b"10.0.0.2", 7001]]], HERE
    )
    assert (slots.owner(8191), slots.owner(8192), slots.masters) == (HERE, THERE, [HERE, THERE])
    assert slots.nodes == {HERE, THERE, Host("10.0.0.9", 7009)}
    slots.move(5, THERE)
    slots.move(5, THERE)
    assert (slots.owner(5), slots.version) == (THERE, 2)


def test_a_redirection_names_the_slot_and_the_owner() -> None:
    assert redirection("MOVED 3999 10.0.0.2:7001", HERE) == (3999, THERE)
    assert redirection("ASK 3999 :7005", HERE) == (3999, Host("10.0.0.1", 7005))
    assert redirection("MOVED 1 ::1:7005", HERE) == (1, Host("::1", 7005))


@pytest.mark.anyio
async def test_the_past_is_not_believed_unless_most_tell_of_it_and_who_is_silent_is_asked_last() -> None:
    a, b, c, d = (Host(name, 1) for name in "abcd")
    epochs: dict[Host, int] = {a: 3, b: 2, c: 3}
    asked: list[Host] = []

    async def question(host: Host) -> tuple[int, Host]:
        asked.append(host)
        if host not in epochs:
            raise Unavailable("nobody is here")
        return epochs[host], host

    async def ask() -> list[Host]:
        asked.clear()
        answer = await peers.ask(question)
        assert answer == asked[-1]
        return list(asked)

    peers = Peers([a, b, c])
    assert [await ask() for _ in range(3)] == [[a], [b, c], [a]]
    del epochs[a], epochs[c]
    with pytest.raises(Unavailable, match=r"nobody|epoch 2, and there was 3"):
        await ask()
    epochs[c] = 3
    assert [await ask() for _ in range(2)] == [[b, c], [b, c]], "the silent one is not asked while others answer"
    # Set up anew: most are behind, and the newest of them is believed.
    epochs |= {a: 1, c: 1}
    assert await peers.ask(question) == b
    assert await peers.ask(question) == b
    # Those that have left are forgotten, those that the URL names are not.
    peers.know([d])
    epochs.clear()
    epochs[d] = 3
    assert set(await ask()) == {a, b, c, d}
    peers.know([])
    with pytest.raises(Unavailable, match="nobody"):
        await ask()
    assert set(asked) == {a, b, c}
    # One of two is not most.
    peers = Peers([a, b])
    epochs |= {a: 3, b: 2}
    assert await ask() == [a]
    del epochs[a]
    with pytest.raises(Unavailable, match=r"nobody|epoch 2, and there was 3"):
        await ask()
