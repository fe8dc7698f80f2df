"""From samples to sections: which part of the walk the CPU time went to, the kernel's share apart."""

import dataclasses
from collections import Counter
from typing import Any

# Part, and what its functions' names (`file:function`) begin with. A sample belongs to the innermost function that any
# row names; the rows are tried in order.
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("feed: read and parse", ("broker/resp.py",)),
    ("feed: follow positions", ("broker/feed.py", "broker/positions.py")),
    ("decode", ("broker/events.py", "broker/catalog.py")),
    ("hub", ("gateway/hub.py",)),
    ("encode", ("gateway/dialects/",)),
    ("frames", ("gateway/frames.py",)),
    ("wire", ("gateway/wire.py",)),
    ("connection", ("gateway/connection.py",)),
    ("session", ("gateway/session.py", "gateway/messages.py", "broker/filters.py")),
    ("auth", ("gateway/auth.py", "jwt/")),
    ("clock", ("gateway/clock.py",)),
    ("metrics", ("gateway/metrics.py", "prometheus_client/")),
    ("handshake", ("websockets/",)),
    ("redis client", ("redis/",)),
    ("producer", ("broker/producer.py", "broker/broker.py", "broker/keyspace.py")),
    ("the benchmark's own", ("tests/bench/producer.py", "tests/bench/payload.py")),
    ("server", ("uvicorn/", "gateway/")),
    ("event loop", ("asyncio/", "uvloop/")),
)
OTHER = "other"


@dataclasses.dataclass
class Section:
    """Sample counts of one part."""

    python: int = 0
    kernel: int = 0

    @property
    def both(self) -> int:
        return self.python + self.kernel


def part_of(stack: list[str]) -> str:
    for function in stack:
        for part, beginnings in PARTS:
            if function.startswith(beginnings):
                return part
    return OTHER


def sections(samples: list[Any]) -> dict[str, Section]:
    """Sections by part, the largest first."""
    found: dict[str, Section] = {}
    for is_kernel, count, stack in samples:
        section = found.setdefault(part_of(stack), Section())
        if is_kernel:
            section.kernel += count
        else:
            section.python += count
    return dict(sorted(found.items(), key=lambda item: -item[1].both))


def hottest(samples: list[Any], count: int) -> list[tuple[str, int]]:
    """The functions that were innermost most often."""
    functions: Counter[str] = Counter()
    for _, times, stack in samples:
        functions[stack[0] if stack else OTHER] += times
    return functions.most_common(count)
