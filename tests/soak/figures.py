"""What a stretch of the run was, in numbers. Pure."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ..roll.figures import quantile

# What a lag may grow by, beside twice what it was. The p99 is one of some pause of the machine as soon as it has other
# work: it shows what grows without end, and no more.
SLACK_SECONDS = {"p50": 0.005, "p99": 0.1}

_SHARES = {"p50": 0.5, "p99": 0.99, "most": 1.0}


class Stretch(NamedTuple):
    """A part of the run, from `started` to `ended` in seconds of it; `guests`, memory and load are those at its end.

    `events` came to the node; `live` has the lags of those that guests were sent as they came, in seconds, `caught_up`
    counts those that they had missed.
    """

    started: float
    ended: float
    events: int
    live: "array[float]"
    caught_up: int
    visits: int
    guests: int
    node_kb: int
    redis_kb: int
    node_cpu_seconds: float
    load: float


_COLUMNS = (
    "until minute",
    "events",
    "events/s",
    "live",
    "caught up",
    "visits",
    "guests",
    "p50 ms",
    "p99 ms",
    "most ms",
    "node MB",
    "Redis MB",
    "node CPU %",
    "load",
)
_WIDTHS = [max(9, len(name)) for name in _COLUMNS]


def join(stretches: Sequence[Stretch]) -> Stretch:
    """Stretches that followed each other as one; with the highest load of all."""
    return stretches[-1]._replace(
        started=stretches[0].started,
        events=sum(one.events for one in stretches),
        live=array("d", (lag for one in stretches for lag in one.live)),
        caught_up=sum(one.caught_up for one in stretches),
        visits=sum(one.visits for one in stretches),
        node_cpu_seconds=sum(one.node_cpu_seconds for one in stretches),
        load=max(one.load for one in stretches),
    )


def quarters(stretches: Sequence[Stretch]) -> list[Stretch]:
    size = len(stretches) // 4
    return [join(stretches[first : first + size]) for first in range(0, 4 * size, size)]


def growth(stretches: Sequence[Stretch]) -> float:
    """How much larger the node is at the end than a quarter into the run, as a share of that."""
    return stretches[-1].node_kb / quarters(stretches)[0].node_kb - 1


def lags(stretch: Stretch) -> dict[str, float]:
    """Seconds from publish to guest."""
    live = sorted(stretch.live)
    return {name: quantile(live, share) for name, share in _SHARES.items()}


def drifts(stretches: Sequence[Stretch]) -> list[str]:
    """What is later in the last quarter of the run than in the first by more than a busy machine explains."""
    first, *_, last = map(lags, quarters(stretches))
    return [
        f"{name} {1000 * last[name]:.1f} ms in the last quarter, {1000 * first[name]:.1f} ms in the first"
        for name, slack in SLACK_SECONDS.items()
        if last[name] > 2 * first[name] + slack
    ]


HEAD = "  ".join(name.rjust(width) for name, width in zip(_COLUMNS, _WIDTHS, strict=True))


def row(one: Stretch) -> str:
    seconds = one.ended - one.started
    late = lags(one)
    cells = (
        f"{one.ended / 60:.1f}",
        f"{one.events:,}",
        f"{one.events / seconds:,.0f}",
        f"{len(one.live):,}",
        f"{one.caught_up:,}",
        f"{one.visits:,}",
        f"{one.guests:,}",
        *(f"{1000 * seconds:.1f}" for seconds in late.values()),
        f"{one.node_kb / 1024:.1f}",
        f"{one.redis_kb / 1024:.1f}",
        f"{100 * one.node_cpu_seconds / seconds:.0f}",
        f"{one.load:.1f}",
    )
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
