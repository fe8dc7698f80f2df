"""`python -m tests.bench [--quick] [--rounds N] [--only WORD] [--no-profile]`: see the package's docstring."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from . import report, sections
from .machine import Cores, busy_seconds, describe, own_seconds, raise_open_files
from .plan import DEFAULT, ERRANDS, PINGS, QUICK, REQUESTS, SERVERS, WORKLOADS, Bench, Figures, Requests, Workload
from .servers import BenchError, DidNotStartError

T = TypeVar("T")


class Run:
    """One invocation: runs, prints as results come, and remembers what went wrong."""

    def __init__(self, bench: Bench, rounds: int, only: str) -> None:
        self.bench = bench
        self.rounds = rounds
        self.workloads = [workload for workload in WORKLOADS if only in workload.name]
        self.pings = [workload for workload in PINGS if only in workload.name]
        self.errands = [errands for errands in ERRANDS if only in errands.name]
        self.asked = [requests for requests in REQUESTS if only in requests.name]
        self.problems: list[str] = []

    def attempt(self, what: str, run: Callable[[], T]) -> T | None:
        """A failed run is told and remembered; the others go on. Without a server there are no others."""
        say(what)
        try:
            return run()
        except DidNotStartError:
            raise
        except BenchError as error:
            self.problems.append(f"{what}: {error}")
            return None

    def checked(self, what: str, run: Callable[[], Figures]) -> Figures | None:
        figures = self.attempt(what, run)
        if figures is not None:
            self.judge(what, figures)
        return figures

    def judge(self, what: str, figures: Figures) -> None:
        if report.is_wrong(figures):
            counts = (f"{figures[name]} {name}" for name in report.WRONG if name in figures)
            self.problems.append(f"{what}: {', '.join(counts)} {figures.get('first_failure', '')}".rstrip())

    def deliveries(self) -> dict[Workload, list[report.Pair]]:
        """Rounds of all workloads, the two servers in turn."""
        measured: dict[Workload, list[report.Pair]] = {workload: [] for workload in self.workloads}
        for number in range(1, self.rounds + 1):
            for workload in self.workloads:
                pair: report.Pair = {}
                for server in SERVERS:
                    what = f"round {number}: {workload.name}, {server}"
                    figures = self.checked(what, partial(self.bench.load, workload, server))
                    if figures is not None:
                        pair[server] = figures
                if len(pair) == len(SERVERS):
                    measured[workload].append(pair)
        say("")
        return measured

    def requests(self) -> dict[Requests, list[report.Pair]]:
        """Rounds of all requests, the two servers in turn, with one registry."""
        measured: dict[Requests, list[report.Pair]] = {requests: [] for requests in self.asked}
        with self.bench.registry() as redis:
            for number in range(1, self.rounds + 1):
                for requests in self.asked:
                    what = f"round {number}: {requests.name}"
                    pair = self.attempt(what, partial(self.bench.requests, requests, redis))
                    for server, figures in (pair or {}).items():
                        self.judge(f"{what}, {server}", figures)
                    if pair:
                        measured[requests].append(pair)
        say("")
        return measured

    def repeated(self, what: str, run: Callable[[], Figures]) -> list[Figures]:
        attempts = (self.checked(f"round {number}: {what}", run) for number in range(1, self.rounds + 1))
        return [figures for figures in attempts if figures is not None]


def say(what: str) -> None:
    """What is being done, on one line that the next one replaces; only where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def show(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)


def measure(run: Run) -> None:
    measured = run.deliveries()
    if measured:
        show(report.delivery_head())
    for workload, rounds in measured.items():
        show(report.delivery_rows(workload, rounds))
    publishes = run.repeated("publishes", run.bench.publishes)
    pings = {each: run.repeated(each.name, partial(run.bench.pings, each)) for each in run.pings}
    runs = {each: run.repeated(each.name, partial(run.bench.runs, each)) for each in run.errands}
    say("")
    show(["", "Trunkline alone", *report.absolute_rows(measured, publishes, pings)])
    if runs:
        show(["", "From a client's message through a worker that does nothing, and back"])
    for errands, figures in runs.items():
        show(report.run_rows(errands, figures, publishes))
    if run.asked:
        asked = run.requests()
        show(report.request_head())
        for requests, rounds in asked.items():
            show(report.request_rows(requests, rounds))


def profile(run: Run) -> None:
    """Runs of their own: the sampler must not touch what is measured."""
    show(["", "Where the CPU time goes (one sample per tick of the kernel, in runs of their own)"])
    bench = run.bench
    jobs: list[tuple[str, sections.Parts, Callable[[], list[Any]]]] = [
        *((each.name, sections.NODE, partial(bench.profile, each, "run")) for each in run.workloads),
        *(
            ("connect, subscribe, first ping", sections.NODE, partial(bench.profile, each, "connect"))
            for each in run.workloads[-1:]
        ),
        *((each.name, sections.NODE, partial(bench.profile, each, "run")) for each in run.pings),
        ("publishes (the producer's CPU)", sections.PRODUCER, bench.profile_publishes),
    ]
    for name, table, job in jobs:
        samples = run.attempt(f"profile: {name}", job)
        say("")
        show(["", *report.profile_lines(name, samples or [], table)])
    for errands in run.errands:
        node, worker = run.attempt(f"profile: {errands.name}", partial(bench.profile_runs, errands)) or ([], [])
        say("")
        show(["", *report.profile_lines(f"{errands.name}, the node", node, sections.NODE)])
        show(["", *report.profile_lines(f"{errands.name}, the worker", worker, sections.WORKER)])
    if run.asked:
        profile_requests(run)


def profile_requests(run: Run) -> None:
    with run.bench.registry() as redis:
        for requests in run.asked:
            samples = run.attempt(f"profile: {requests.name}", partial(run.bench.profile_requests, requests, redis))
            say("")
            show(["", *report.profile_lines(requests.name, samples or [], sections.REQUESTS)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="rounds of every workload (3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="one short round: about a minute, and rough")
    parser.add_argument("--only", default="", metavar="WORD", help="what has it in its name, and the publishes")
    parser.add_argument("--no-profile", action="store_true", help="leave out the profile by section")
    options = parser.parse_args()
    names = [each.name for each in (*WORKLOADS, *PINGS, *ERRANDS, *REQUESTS)]
    if not any(options.only in name for name in names):
        parser.error(f"no name contains {options.only!r}: {', '.join(names)}")

    if sys.platform != "linux":
        parser.error("it stands on epoll, CPU affinity and /proc: it runs on Linux only")
    cores = Cores.of_this_machine()
    raise_open_files()
    if cores.are_apart:
        os.sched_setaffinity(0, cores.load)  # Redis and the load inherit it
    start, foreign = time.monotonic(), busy_seconds() - own_seconds()
    run = Run(
        Bench(cores, QUICK if options.quick else DEFAULT), options.rounds or (1 if options.quick else 3), options.only
    )
    print(describe(cores))
    print(f"{run.rounds} round(s), server CPU from each process's CPU clock (nanoseconds, all threads)\n", flush=True)
    try:
        measure(run)
        if not options.no_profile:
            profile(run)
    except DidNotStartError as error:
        run.problems.append(str(error))
    took, foreign = time.monotonic() - start, busy_seconds() - own_seconds() - foreign
    print(f"\n{took:.0f} s; other work on this machine meanwhile: {max(0.0, foreign / took):.0%} of a core")
    for problem in run.problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())
