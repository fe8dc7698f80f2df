"""The machine: which core does what, and the kernel's counters of a process."""

import dataclasses
import os
import platform
import resource
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Cores:
    """Where the server runs, and where its load. The same set twice: there is one core only, nothing is pinned."""

    server: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> "Cores":
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            return cls(frozenset(available), frozenset(available))
        return cls(frozenset(available[:1]), frozenset(available[1:2]))

    @property
    def are_apart(self) -> bool:
        return self.server != self.load


def describe(cores: Cores) -> str:
    """One line: processor, cores, kernel, Python, and how the work is placed."""
    place = f"server on core {min(cores.server)}, Redis and load on core {min(cores.load)}"
    if not cores.are_apart:
        place = "one core only: nothing is pinned, and the load steals from the server"
    return (
        f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}; {place}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def raise_open_files() -> int:
    """As many open files as this process may have; answers how many that is. Children inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cpu_ns(pid: int) -> int:
    """CPU time of a process so far, user and system, all its threads (ended ones too), in nanoseconds.

    This is the process's own CPU clock, whose id the kernel derives from the pid (clock_getcpuclockid(3)). It counts
    what /proc/PID/schedstat counts, but that file is about one thread alone.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def busy_seconds() -> float:
    """What all cores have worked since boot, whoever asked for it."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS_PER_SECOND


def own_seconds() -> float:
    """CPU time of this process and of its children that have ended, and theirs."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def system_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """The kernel's share of what was used between two `ticks`. Coarse: the kernel splits by sampling at its tick."""
    user, system = after[0] - before[0], after[1] - before[1]
    return system / (user + system) if user + system else 0.0


def ticks(pid: int) -> tuple[int, int]:
    """User and system time of a process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def resident_kb(pid: int) -> int:
    """Resident memory of a process in KB, counted page by page (VmRSS lags behind by up to 64 pages and thread)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise ValueError(f"no Rss line for process {pid}")
