"""The tables. Everything here is values in, lines out."""

from statistics import median
from typing import Any

from .plan import AGENTS, Errands, Figures, Requests, Workload
from .runs import EVENTS
from .sections import Parts, hottest, sections

Pair = dict[str, Figures]  # one round: server's name → figures

FAULTS = ("lost", "doubled", "reordered")
WRONG = (*FAULTS, "closed", "miscounted", "failed")

_PROCESSES = ("node", "worker", "redis")
_NAME = 38
_COMPARED = _NAME + 44  # with both figures and their ratio


def is_wrong(figures: Figures) -> bool:
    """Something was lost, doubled, reordered or counted wrong, or a connection ended."""
    return any(figures.get(name, 0) for name in WRONG)


def delivery_head() -> list[str]:
    return [
        "Server CPU per delivered message, and its ratio to the baseline, which makes one send() per message",
        "(medians; of the ratio also the least and the most of the rounds). A server that is not fully busy was",
        "limited by its load; the CPU per message is its own all the same.",
        "",
        f"{'':{_NAME}} {'Trunkline':>10} {'baseline':>10}  {'ratio':<20} {'deliveries/s':>21}  {'server busy':>11}  "
        + "/".join(FAULTS),
    ]


def delivery_rows(workload: Workload, rounds: list[Pair]) -> list[str]:
    """A row for the CPU, for an open loop one each for p50 and p99, and one for what compression makes of a frame."""
    if not rounds:
        return [f"{workload.name:{_NAME}} no result"]
    ours, bare = _sides(rounds)
    rates = f"{_middle(ours, 'deliveries_per_second'):,.0f} | {_middle(bare, 'deliveries_per_second'):,.0f}"
    busy = f"{_middle(ours, 'server_busy'):.0%} | {_middle(bare, 'server_busy'):.0%}"
    compared = _compared(workload.name, "server_us", "µs", rounds)
    rows = [f"{compared:<{_COMPARED}} {rates:>21}  {busy:>11}  {_faults(ours)} | {_faults(bare)}"]
    if workload.rate:
        rows += [_compared(f"  latency {name}", f"{name}_ms", "ms", rounds) for name in ("p50", "p99")]
    if workload.is_compressed:
        size, plain = _middle(ours, "frame_bytes"), _middle(bare, "frame_bytes")
        rows.append(f"  frames of {size:.0f} bytes; the baseline's are not compressed and have {plain:.0f}")
    return rows


def absolute_rows(
    measured: dict[Workload, list[Pair]], publishes: list[Figures], pings: dict[Workload, list[Figures]]
) -> list[str]:
    """Connecting and idling from the workload with most clients; publishes and pings from their own runs."""
    rows = []
    largest = max(measured, key=lambda workload: workload.clients, default=None)
    if largest is not None and (rounds := measured[largest]):
        ours, bare = _sides(rounds)
        rows += [
            _row("CPU per connect", ours, "connect_us", "µs"),
            f"  {largest.clients:,} clients: handshake, token, subscribe, ping, pong; "
            f"the baseline's handshake alone: {_middle(bare, 'connect_us'):.0f} µs",
            _row("memory per idle connection", ours, "idle_kb", "KB RSS", digits=1),
        ]
    if publishes:
        rows += [
            _row("durable publishes", publishes, "publishes_per_second", "/s"),
            f"  one publish_many producer, {_middle(publishes, 'publish_us'):.1f} µs of its CPU each and "
            f"{_middle(publishes, 'redis_us'):.1f} µs of Redis'; {'/'.join(FAULTS)} {_faults(publishes)}",
        ]
    for workload, figures in pings.items():
        rows += ping_rows(workload, figures)
    return rows


def ping_rows(workload: Workload, figures: list[Figures]) -> list[str]:
    if not figures:
        return [f"{workload.name:{_NAME}} no result"]
    times = sum(each["counted"] for each in figures) / sum(each["pongs"] for each in figures)
    return [
        _row(workload.name, figures, "pings_per_second", "/s"),
        f"  each answered before the client's next, {_spread([each['ping_us'] for each in figures], 1)} µs of the "
        f"node's CPU each, {_middle(figures, 'server_busy'):.0%} busy; {_middle(figures, 'redis_us'):.1f} µs of Redis' "
        f"counted {times:g} times; lost {sum(each['lost'] for each in figures)}",
    ]


def run_rows(errands: Errands, figures: list[Figures], publishes: list[Figures]) -> list[str]:
    """What a run costs, beside four bare durable publishes; how long a client waits, beside a bare hand-over."""
    if not figures:
        return [f"{errands.name:{_NAME}} no result"]
    if errands.rate:
        return [_row(errands.name, figures, "runs_per_second", "/s"), *_waits(figures), _faults_of(figures)]
    rows = [
        _row(errands.name, figures, "runs_per_second", "/s"),
        f"  {errands.clients} clients, {errands.outstanding} runs of each under way; "
        + ", ".join(f"{name} {_middle(figures, f'{name}_us'):,.0f} µs" for name in _PROCESSES)
        + " of CPU per run",
        "  busy: " + ", ".join(f"{name} {_middle(figures, f'{name}_busy'):.0%}" for name in (*_PROCESSES, "load")),
    ]
    if publishes:
        bare = len(EVENTS) * (_middle(publishes, "publish_us") + _middle(publishes, "redis_us"))
        ratios = [sum(each[f"{name}_us"] for name in _PROCESSES) / bare for each in figures]
        rows.append(
            f"  all three: {_spread(ratios, 1)} times four durable publishes of the one producer with its Redis"
        )
    return [*rows, _faults_of(figures)]


def _waits(figures: list[Figures]) -> list[str]:
    """Latencies, and their ratio to a hand-over that Redis alone makes in the same run."""
    rows = [
        f"  message to {kind}: "
        + ", ".join(
            f"{name} {_spread([each[f'{kind}_{name}_ms'] for each in figures], 2)} ms" for name in ("p50", "p99")
        )
        for kind in ("started", "completed")
    ]
    ratios = [each["started_p50_ms"] / each["hand_over_ms"] for each in figures]
    bare = f"{_middle(figures, 'hand_over_ms'):.2f} ms"
    return [*rows, f"  Redis alone, from message to started: {bare}; ours at p50 is {_spread(ratios, 1)} times that"]


def request_head() -> list[str]:
    return [
        "",
        f"The Agents API with {AGENTS:,} agents, half of them online, beside a bare route of the same framework and",
        "server that answers the same bytes from memory. A server that is not fully busy waited for Redis, or for a",
        "core that others used; the CPU per request is its own all the same.",
        "",
        f"{'':{_NAME}} {'Trunkline':>10} {'bare route':>10}  ratio",
    ]


def request_rows(requests: Requests, rounds: list[Pair]) -> list[str]:
    """Requests per second at most and the CPU of each; how long one waits at the steady rate."""
    if not rounds:
        return [f"{requests.name:{_NAME}} no result"]
    ours, bare = _sides(rounds)
    most = [f"{_middle(side, 'requests_per_second'):>8,.0f}/s" for side in (ours, bare)]
    share = [one["requests_per_second"] / other["requests_per_second"] for one, other in zip(ours, bare, strict=True)]
    busy = ", ".join(f"{name} {_middle(ours, f'{name}_busy'):.0%}" for name in ("server", "redis", "load"))
    return [
        f"{requests.name:{_NAME}} {' '.join(most)}  {_spread(share, 2)}",
        _compared("  CPU of the server per request", "server_us", "µs", rounds),
        f"  CPU of Redis {_middle(ours, 'redis_us'):,.0f} µs; busy: {busy}; the bare route's load "
        f"{_middle(bare, 'load_busy'):.0%}",
        *(_compared(f"  {name} at {requests.rate:,} a second", f"{name}_ms", "ms", rounds) for name in ("p50", "p99")),
        f"  lost/failed {_wrong_answers(ours)} | {_wrong_answers(bare)} of "
        f"{sum(each['asked'] for each in ours):,} | {sum(each['asked'] for each in bare):,} requests",
    ]


def profile_lines(name: str, samples: list[Any], table: Parts) -> list[str]:
    """A workload's sections, largest first, and its hottest functions."""
    parts = sections(samples, table)
    total = sum(section.both for section in parts.values())
    if not total:
        return [f"{name}: no samples"]
    kernel = sum(section.kernel for section in parts.values())
    lines = [f"{name}: {total} samples, {kernel / total:.0%} in the kernel"]
    for part, section in parts.items():
        shares = [f"{share / total:>4.0%}" for share in (section.both, section.python, section.kernel)]
        if section.both >= 0.01 * total:
            lines.append(f"  {part:26} {shares[0]}   Python {shares[1]}  kernel {shares[2]}")
    functions = (f"{function} {count / total:.0%}" for function, count in hottest(samples, 6))
    return [*lines, f"  hottest: {', '.join(functions)}"]


def _compared(name: str, figure: str, unit: str, rounds: list[Pair]) -> str:
    ours, bare = _sides(rounds)
    ratios = [one[figure] / other[figure] for one, other in zip(ours, bare, strict=True)]
    absolute = f"{_middle(ours, figure):>7.2f} {unit} {_middle(bare, figure):>7.2f} {unit}"
    return f"{name:{_NAME}} {absolute}  {_spread(ratios, 2)}"


def _row(name: str, figures: list[Figures], figure: str, unit: str, digits: int = 0) -> str:
    return f"{name:{_NAME}} {_spread([each[figure] for each in figures], digits)} {unit}"


def _spread(values: list[float], digits: int) -> str:
    """Median, and from where to where the rounds went."""
    text = f"{median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def _sides(rounds: list[Pair]) -> tuple[list[Figures], list[Figures]]:
    return [pair["trunkline"] for pair in rounds], [pair["baseline"] for pair in rounds]


def _faults_of(figures: list[Figures]) -> str:
    return f"  {'/'.join(FAULTS)} {_faults(figures)} of {sum(each['runs'] for each in figures):,} runs"


def _wrong_answers(figures: list[Figures]) -> str:
    return "/".join(str(sum(each[name] for each in figures)) for name in ("lost", "failed"))


def _middle(figures: list[Figures], name: str) -> float:
    return float(median(each[name] for each in figures))


def _faults(figures: list[Figures]) -> str:
    counts = [sum(each[name] for each in figures) for name in FAULTS]
    return "/".join(map(str, counts)) + (" WRONG" if any(counts) else "")
