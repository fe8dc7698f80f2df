"""The tables. Everything here is values in, lines out."""

from statistics import median
from typing import Any

from .plan import Figures, Workload
from .sections import hottest, sections

Pair = dict[str, Figures]  # one round: server's name → figures

_WIDTH = 36


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and from where to where the rounds went."""
    text = f"{median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def delivery_head() -> list[str]:
    return [
        "Server CPU per delivered message: Trunkline, the baseline (one send() per message), ratio of the two",
        "(median of the rounds' ratios, least..most)",
        "",
        f"{'':{_WIDTH}} {'Trunkline':>10} {'baseline':>10}  {'ratio':<20} {'deliveries/s':>21}  {'server busy':>11}  "
        "lost/doubled/reordered",
    ]


def delivery_rows(workload: Workload, rounds: list[Pair]) -> list[str]:
    """A row for the CPU, and for an open loop one each for p50 and p99."""
    ours = [pair["trunkline"] for pair in rounds]
    bare = [pair["baseline"] for pair in rounds]
    rates = f"{_middle(ours, 'deliveries_per_second'):,.0f} | {_middle(bare, 'deliveries_per_second'):,.0f}"
    busy = f"{_middle(ours, 'server_busy'):.0%} | {_middle(bare, 'server_busy'):.0%}"
    rows = [
        f"{_compared(workload.name, 'server_us', 'µs', ours, bare)} {rates:>21}  {busy:>11}  {_faults(ours)} | {_faults(bare)}"
    ]
    if workload.rate:
        rows += [
            _compared("  latency p50", "p50_ms", "ms", ours, bare),
            _compared("  latency p99", "p99_ms", "ms", ours, bare),
        ]
    return rows


def _compared(name: str, figure: str, unit: str, ours: list[Figures], bare: list[Figures]) -> str:
    ratios = [one[figure] / other[figure] for one, other in zip(ours, bare, strict=True)]
    return f"{name:{_WIDTH}} {_middle(ours, figure):>7.2f} {unit} {_middle(bare, figure):>7.2f} {unit}  {spread(ratios):<20}"


def _middle(figures: list[Figures], name: str) -> float:
    return median(each[name] for each in figures)


def _faults(figures: list[Figures]) -> str:
    counts = [sum(each[name] for each in figures) for name in ("lost", "doubled", "reordered")]
    return "/".join(map(str, counts)) + ("  << WRONG" if any(counts) else "")


def is_wrong(figures: Figures) -> bool:
    """Something was lost, doubled, reordered or closed that should not have been."""
    return any(figures.get(name, 0) for name in ("lost", "doubled", "reordered", "closed"))


def row(name: str, values: list[float], unit: str, note: str = "", digits: int = 0) -> str:
    return f"{name:{_WIDTH}} {spread(values, digits)} {unit}{f'  ({note})' if note else ''}"


def profile_lines(name: str, samples: list[Any]) -> list[str]:
    """A workload's sections, largest first, and its hottest functions."""
    parts = sections(samples)
    total = sum(section.both for section in parts.values())
    if not total:
        return [f"{name}: no samples"]
    kernel = sum(section.kernel for section in parts.values())
    lines = [f"{name}: {total} samples, {kernel / total:.0%} of them in the kernel"]
    for part, section in parts.items():
        if section.both / total >= 0.01:
            shares = f"{section.both / total:>5.0%}   Python {section.python / total:>4.0%}  kernel {section.kernel / total:>4.0%}"
            lines.append(f"  {part:26} {shares}")
    functions = (f"{function} {count / total:.0%}" for function, count in hottest(samples, 6))
    lines.append(f"  hottest: {', '.join(functions)}")
    return lines


def absolute_rows(measured: dict[Workload, list[Pair]], publishes: list[Figures], pings: list[Figures]) -> list[str]:
    """Connecting and idling from the workload with most clients; publishes and pings from their own runs."""
    rows = []
    largest = max(measured, key=lambda workload: workload.clients)
    if rounds := measured[largest]:
        ours = [pair["trunkline"] for pair in rounds]
        bare = _middle([pair["baseline"] for pair in rounds], "connect_us")
        note = f"{largest.clients:,} clients: handshake, token, subscribe, ping, pong; the baseline's bare accept: {bare:.0f} µs"
        rows.append(row("CPU per connect", [each["connect_us"] for each in ours], "µs", note))
        rows.append(row("memory per idle connection", [each["idle_kb"] for each in ours], "KB RSS", digits=1))
    if publishes:
        rates = [each["publishes_per_second"] for each in publishes]
        used = f"{_middle(publishes, 'publish_us'):.1f} µs of the producer's CPU each, which is {_middle(publishes, 'producer_busy'):.0%} busy"
        rows.append(row("durable publishes", rates, "/s", f"one publish_many producer; {used}; {_faults(publishes)}"))
    if pings:
        rates = [each["pings_per_second"] for each in pings]
        used = f"{_middle(pings, 'ping_us'):.1f} µs of the node's CPU each, which is {_middle(pings, 'server_busy'):.0%} busy"
        rows.append(row("inbound pings", rates, "/s", f"each answered before the next; {used}"))
    return rows
