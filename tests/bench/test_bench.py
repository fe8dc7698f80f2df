"""The benchmark's own parts count right: short runs of it, and the reader's judgement by hand."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from gateway.frames import deflated

from . import payload, sections, servers
from .baseline import frame
from .load import Job
from .machine import Cores
from .plan import Bench, Errands, Lengths, Workload
from .reading import Reader, Stream
from .runs import EVENTS, Data, Details, Ledger, Message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark stands on epoll and /proc")

CLIENTS = 20
SHORT = Lengths(warm=0.1, closed_loop=0.3, open_loop=0.3, producer=0.1)


@pytest.mark.parametrize("agents", [1, CLIENTS])
def test_every_client_of_the_baseline_gets_every_event_once(agents: int) -> None:
    with servers.fresh_redis() as redis, servers.baseline(redis, Cores.of_this_machine()) as server:
        job = Job(
            server_pid=server.pid,
            redis_pid=redis.pid,
            port=server.port,
            path=server.paths["maxicore"],
            redis_port=redis.port,
            prefix=servers.PREFIX,
            way=server.broadcast_way if agents == 1 else server.unicast_way,
            clients=CLIENTS,
            agents=agents,
            window=8 if agents == 1 else CLIENTS,
            warm_seconds=0.1,
            seconds=0.5,
        )
        figures = json.loads(servers.run_module(["tests.bench.load", json.dumps(dataclasses.asdict(job))], 30))
    assert figures["published"] > 0
    assert figures["deliveries"] > 0
    assert figures["server_us"] > 0
    assert [figures[name] for name in ("lost", "doubled", "reordered", "closed", "strays")] == [0, 0, 0, 0, 0]


def test_every_freeagentics_client_gets_every_event_once_and_compressed() -> None:
    bench = Bench(Cores.of_this_machine(), SHORT)
    workload = Workload("short", CLIENTS, agents=1, window=8, dialect="freeagentics", is_compressed=True)
    figures = bench.load(workload, "trunkline")
    assert figures["deliveries"] > 0
    assert figures["compressed"] >= figures["published"] > 0
    assert [figures[name] for name in ("lost", "doubled", "reordered", "closed", "strays")] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(("messages", "counted"), [(servers.UNLIMITED, 0), (1_000_000, 1)])
def test_a_message_is_counted_once_where_there_is_a_limit(messages: int, counted: int) -> None:
    bench = Bench(Cores.of_this_machine(), SHORT)
    figures = bench.pings(Workload("short", CLIENTS, agents=1, dialect="freeagentics", messages=messages))
    assert figures["pongs"] > CLIENTS
    assert figures["counted"] == counted * figures["pongs"]
    assert [figures[name] for name in ("lost", "miscounted")] == [0, 0]


@pytest.mark.parametrize("is_keyed", [False, True])
def test_every_run_is_completed_once(is_keyed: bool) -> None:
    bench = Bench(Cores.of_this_machine(), SHORT)
    figures = bench.runs(Errands("short", clients=2, outstanding=5, is_keyed=is_keyed))
    assert figures["runs"] > 10
    assert min(figures[f"{name}_us"] for name in ("node", "worker", "redis")) > 0
    assert 0 < figures["started_p50_ms"] <= figures["completed_p50_ms"]
    assert [figures[name] for name in ("lost", "doubled", "reordered", "failed")] == [0, 0, 0, 0]


def told(ledger: Ledger, execution: str | None, run: str, *kinds: str) -> list[bool]:
    return [ledger.see(Message(kind, Data(execution, Details(run))), 5_000) for kind in kinds]


def test_a_run_is_judged_by_each_of_its_events() -> None:
    ledger = Ledger()
    runs = [ledger.send(1_000) for _ in range(4)]
    assert told(ledger, "exec_1", runs[0], *EVENTS) == [False, False, False, True]
    assert (ledger.completed, ledger.started_ns, ledger.completed_ns) == (1, [4_000], [4_000])
    told(ledger, "exec_1", runs[0], EVENTS[-1])
    told(ledger, "exec_2", runs[1], EVENTS[0], EVENTS[2])
    told(ledger, "exec_3", runs[0], EVENTS[0])  # another execution of the same message
    told(ledger, "exec_4", runs[2], EVENTS[0], "execution_failed")
    told(ledger, None, runs[3], "execution_failed")  # refused
    assert (ledger.completed, ledger.doubled, ledger.reordered, ledger.failed) == (1, 2, 1, 2)


def sent(*sequences: int) -> bytes:
    return b"".join(frame(payload.flat_json("agent-0001", sequence, position=True)) for sequence in sequences)


def read(stream: Stream, data: bytes, *, is_alone: bool = False, pieces: int = 100) -> Reader:
    reader = Reader(stream, lambda _: 0, is_alone=is_alone)
    view = memoryview(data)
    for start in range(0, len(data), pieces):
        reader.take(view[start : start + pieces])
    return reader


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_reader_tells_lost_from_doubled_from_reordered(is_alone: bool) -> None:
    reader = read(Stream(), sent(0, 1, 4, 3, 4), is_alone=is_alone)
    tally = reader.tally()
    assert reader.messages == 5
    assert (tally.lost(6), tally.doubled, tally.reordered) == (2, 1, 1)  # 2 and 5; 4; 3


def test_a_client_whose_bytes_differ_is_judged_by_its_own() -> None:
    first, second, third, fourth = (sent(sequence) for sequence in range(4))
    heartbeat = frame(b'{"type":"ping"}')
    stream = Stream()
    readers = [
        read(stream, first + second + third + fourth),
        read(stream, first, pieces=150),
        read(stream, first + second + heartbeat + third + fourth),
        read(stream, first + third + fourth, pieces=1000),
    ]
    assert [reader.messages for reader in readers] == [4, 1, 4, 3]
    assert [reader.tally().lost(4) for reader in readers] == [0, 3, 0, 1]
    assert [reader.is_alone for reader in readers] == [False, False, True, True]


def test_compressed_events_are_read_too() -> None:
    data = b"".join(
        deflated(payload.flat_json("agent-0001", sequence, position=True)) if sequence % 2 else sent(sequence)
        for sequence in range(4)
    )
    stream = Stream()
    reader = read(stream, data)
    assert stream.compressed == 2
    assert (reader.messages, reader.tally().lost(4)) == (4, 0)


def test_a_sample_belongs_to_the_innermost_function_that_has_a_part() -> None:
    stack = [
        "json/encoder.py:encode",
        "gateway/frames.py:text",
        "gateway/groups.py:frames_of",
        "asyncio/runners.py:run",
    ]
    assert sections.part_of(stack, sections.NODE) == "encode, frame, join"
    assert sections.part_of(["json/encoder.py:encode"], sections.NODE) == sections.OTHER


def test_every_part_names_code_that_is_there() -> None:
    root = Path(__file__).parents[2]
    for part, beginnings in (*sections.NODE, *sections.PRODUCER, *sections.WORKER, *sections.REQUESTS):
        for file, _, function in (beginning.partition(":") for beginning in beginnings):
            if file.startswith(("gateway/", "broker/", "tests/")):
                assert (root / file).exists(), part
                assert not function or f"def {function.rpartition('.')[2]}" in (root / file).read_text(), part
