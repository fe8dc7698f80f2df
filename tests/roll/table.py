"""The table of a roll: a column for each phase. Pure."""

from collections import Counter
from collections.abc import Sequence

from .client import Journal
from .figures import Figures, Latency


def of(head: str, figures: Sequence[Figures], journal: Journal) -> str:
    programs = list(figures[0].phase.cpu)
    rows = [
        ("", [one.phase.name for one in figures]),
        ("seconds", [f"{_seconds(one):.1f}" for one in figures]),
        ("events delivered", [f"{one.deliveries:,}" for one in figures]),
        ("clients that had to move", [f"{one.moved:,}" for one in figures]),
        ("without a connection, p50 / most (s)", [_absence(one) for one in figures]),
        ("closes by code", [_counts(one.closes) for one in figures]),
        ("  busiest second, times its share", [f"{one.crowding:.2f}" if one.crowding else "" for one in figures]),
        ("handshakes refused, by status", [_counts(one.refused) for one in figures]),
        ("latency, p50 / p99 / max (ms)", [_latency(one.all) for one in figures]),
        ("  of who had not to move", [_latency(one.stayed) for one in figures]),
        *((f"CPU of {name} (% of a core)", [_cpu(one, name) for one in figures]) for name in programs),
    ]
    widths = [max(len(row[1][column]) for row in rows) for column in range(len(figures))]
    first = max(len(name) for name, _ in rows)
    lines = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip()
        for name, cells in rows
    ]
    wrong = ", ".join(f"{kind} {journal.wrong[kind]}" for kind in ("lost", "doubled", "reordered"))
    return "\n".join([head, "", *lines, "", f"events: {wrong}; gaps said: {journal.gaps}"])


def _seconds(one: Figures) -> float:
    return one.phase.ended - one.phase.started


def _absence(one: Figures) -> str:
    return f"{one.absence_p50:.2f} / {one.longest_absence:.2f}" if one.moved else ""


def _counts(counts: Counter[int]) -> str:
    return " ".join(f"{code}: {count:,}" for code, count in sorted(counts.items()))


def _latency(latency: Latency) -> str:
    return " / ".join(f"{1000 * seconds:.1f}" for seconds in latency)


def _cpu(one: Figures, name: str) -> str:
    return f"{100 * one.phase.cpu[name] / _seconds(one):.0f}"
