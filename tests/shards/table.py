"""The tables of the run. Pure."""

from collections.abc import Sequence

from ..roll.figures import quantile
from ..soak.guest import Page
from .run import Part
from .traffic import Traffic


def of(traffic: Sequence[Traffic]) -> str:
    """What came from Redis to each node, beside what its clients want and what there was."""
    rows: list[tuple[str, ...]] = [
        ("node", "its feed received", "events of its interest", "of all events", "for each byte wanted", "of all")
    ]
    for one in traffic:
        amounts = (f"{amount / 1e6:.2f} MB" for amount in (one.received, one.own, one.every))
        rows.append((one.node, *amounts, f"{one.received / one.own:.2f}", f"{100 * one.received / one.every:.0f} %"))
    return _aligned(rows)


def delivery(parts: Sequence[Part]) -> str:
    """What clients were sent, and how long after its publish."""
    rows: list[tuple[str, ...]] = [("", "events", "caught up", "p50 ms", "p99 ms", "most ms")]
    for part in parts:
        rows += [(f"{part.name}: its workspaces", *_cells(part.struck)), (f"{part.name}: others", *_cells(part.spared))]
    return _aligned(rows)


def _cells(page: Page) -> tuple[str, ...]:
    lags = sorted((*page.live, *page.caught_up))
    return (
        f"{len(lags):,}",
        f"{len(page.caught_up):,}",
        *(f"{1000 * quantile(lags, share):,.1f}" for share in (0.5, 0.99, 1.0)),
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join((first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))))
        for first, *cells in rows
    )
