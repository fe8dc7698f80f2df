"""Run a module under a sampling profiler that tells the kernel's time from Python's.

    python -m tests.bench.profiled FILE MODULE ARGUMENT…

SIGUSR1 begins the sampling, SIGUSR2 ends it and writes FILE: `{"samples": [[kernel, count, [function, …]], …]}`, each
stack innermost first, each function as `file:name` with the name of its class.

Two interval timers run: ITIMER_PROF counts all CPU time of the process, ITIMER_VIRTUAL only what it spends outside the
kernel. The kernel charges both by its own tick (usually 4 ms), and that is their interval: a tick that fires both was
Python's (or a C extension's), one that fires SIGPROF alone was the kernel's. A shorter interval would not bring more
samples, only expiries that are made up for at later ticks of the other kind.

Python runs a signal's handler between two bytecodes, that is: after the call into C that was interrupted. While the
event loop is in C (polling, reading, queued writes) there is no bytecode; the handler then runs as the first thing in
whatever function the loop calls next. Such samples are recognised (the function has only just been entered) and go to
the caller.
"""

import dis
import json
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_CLOCK_REALTIME_COARSE = 5  # advances by ticks; Python has no name for it
_TICK_SECONDS = time.clock_getres(_CLOCK_REALTIME_COARSE)
_DEPTH = 30
_ROOT = Path(__file__).resolve().parents[2]
_RESUME = dis.opmap["RESUME"]


class Sampler:
    """Counts stacks between `begin` and `end`. One per process: it owns SIGPROF and SIGVTALRM."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stacks: Counter[tuple[bool, tuple[str, ...]]] = Counter()
        self.was_user = False
        signal.signal(signal.SIGVTALRM, self.on_user_time)
        signal.signal(signal.SIGPROF, self.on_any_time)

    def begin(self, *_: object) -> None:
        self.stacks.clear()
        for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, _TICK_SECONDS, _TICK_SECONDS)

    def end(self, *_: object) -> None:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_VIRTUAL):
            signal.setitimer(timer, 0)
        samples = [[kernel, count, stack] for (kernel, stack), count in self.stacks.items()]
        written = self.file.with_suffix(".part")
        written.write_text(json.dumps({"samples": samples}))
        written.rename(self.file)  # whoever waits for the file finds it whole

    def on_user_time(self, *_: object) -> None:
        # Comes first where both are pending: Python handles signals in the order of their numbers.
        self.was_user = True

    def on_any_time(self, _: int, frame: FrameType | None) -> None:
        kernel, self.was_user = not self.was_user, False
        self.stacks[kernel, stack_of(frame)] += 1


def stack_of(frame: FrameType | None) -> tuple[str, ...]:
    if frame is not None and frame.f_code.co_code[frame.f_lasti] == _RESUME:
        frame = frame.f_back
    names: list[str] = []
    while frame is not None and len(names) < _DEPTH:
        code = frame.f_code
        names.append(f"{_short(code.co_filename)}:{code.co_qualname}")
        frame = frame.f_back
    return tuple(names)


def _short(path: str) -> str:
    """`…/site-packages/uvicorn/server.py` → `uvicorn/server.py`; files of this repository from its root on."""
    for before in ("/site-packages/", f"/python{sys.version_info.major}.{sys.version_info.minor}/"):
        _, found, rest = path.rpartition(before)
        if found:
            return rest
    return path.removeprefix(f"{_ROOT}/")


def main() -> None:
    sampler = Sampler(Path(sys.argv[1]))
    signal.signal(signal.SIGUSR1, sampler.begin)
    signal.signal(signal.SIGUSR2, sampler.end)
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
