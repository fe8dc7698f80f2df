"""Which slot a command goes to, and who has it."""

from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

import broker
from broker.keyspace import Keyspace
from broker.topology import Host
from broker.topology.slots import Slots, redirection, slot_of, slot_of_command

SCRIPTS = sorted(path.name for path in (Path(broker.__file__).parent / "scripts").glob("*.lua"))

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
    """As its header shows them. Run on a cluster with tests/on_cluster.py, Redis itself refuses any other."""
    text = (Path(broker.__file__).parent / "scripts" / script).read_text()
    example = " ".join(line.removeprefix("--").strip() for line in text.partition("-- Example")[2].splitlines())
    count, *words = example.partition("EVALSHA … ")[2].split(" ")
    names = [name.replace("…:", "trunkline:connections:{limits}:", 1) for name in words[: int(count)]]
    assert all(name.startswith("trunkline:") for name in names)
    assert len({slot_of(name) for name in names}) == 1


def test_the_owners_are_those_of_the_last_answer_and_of_the_redirections_since() -> None:
    slots = Slots()
    assert (slots.owner(0), slots.masters, slots.version) == (None, [], 0)
    slots.load(
        [[0, 8191, [b"", 7000, b"id", []], [b"10.0.0.9", 7009, b"id"]], [8192, 16383, [b"10.0.0.2", 7001]]], HERE
    )
    assert (slots.owner(8191), slots.owner(8192), slots.masters) == (HERE, THERE, [HERE, THERE])
    slots.move(5, THERE)
    slots.move(5, THERE)
    assert (slots.owner(5), slots.version) == (THERE, 2)


def test_a_redirection_names_the_slot_and_the_owner() -> None:
    assert redirection("MOVED 3999 10.0.0.2:7001", HERE) == (3999, THERE)
    assert redirection("ASK 3999 :7005", HERE) == (3999, Host("10.0.0.1", 7005))
    assert redirection("MOVED 1 ::1:7005", HERE) == (1, Host("::1", 7005))
