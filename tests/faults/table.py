"""The table of a fault run: a row for each seed, and the totals."""

from collections import Counter
from collections.abc import Sequence

from .verdict import Outcome

_COLUMNS = (
    "seed", "topology", "events", "deliveries", "runs", "reconnects", "healed", "said", "redis lost", "lost", "doubled",
    "reordered", "other", "seconds",
)  # fmt: skip
_LOST = ("lost", "silent")


def of(outcomes: Sequence[Outcome]) -> str:
    """All of it as text; faults by kind stand below."""
    rows = [_row(outcome) for outcome in outcomes]
    numbers = [sum(int(row[column]) for row in rows) for column in range(2, len(_COLUMNS))]
    cells = [list(_COLUMNS), *rows, ["all", f"{len(rows)} runs", *map(str, numbers)]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    done = sum((outcome.faults for outcome in outcomes), Counter[str]())
    undone = sum((outcome.undone for outcome in outcomes), Counter[str]())
    lines += ["", f"{done.total()} faults: {_told(done)}", f"{undone.total()} not done: {_told(undone) or '-'}"]
    lines.append(f"{sum(outcome.sure for outcome in outcomes)} events told when every replica had them")
    weighed, lives = sum(outcome.weighed for outcome in outcomes), sum(outcome.lives for outcome in outcomes)
    return "\n".join([*lines, f"memory judged of {weighed} lives of nodes, of {lives}"])


def _told(faults: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))


def row_of(outcome: Outcome) -> str:
    """One row by itself, with the names of its columns."""
    return "  " + ", ".join(f"{cell} {name}" for name, cell in list(zip(_COLUMNS, _row(outcome), strict=True))[2:])


def _row(outcome: Outcome) -> list[str]:
    plan = outcome.plan
    name = plan.topology if plan.topology != "single" else f"{outcome.redis} {plan.persistence}"
    kinds = Counter(violation.partition(":")[0] for violation in outcome.violations)
    found = [sum(kinds[kind] for kind in _LOST), kinds["doubled"], kinds["reordered"]]
    numbers = [
        outcome.events, outcome.deliveries, outcome.runs, outcome.reconnects, outcome.healed, outcome.said,
        outcome.redis_lost, *found, kinds.total() - sum(found), round(outcome.seconds),
    ]  # fmt: skip
    return [str(plan.seed), name, *map(str, numbers)]
