"""The README says what the code says: its tables are made from the tables in the code.

After a change: `python -m tests.test_docs` writes them anew.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker import keyspace
from gateway.metrics import PREFIX, Counter, Gauge, Histogram, Metrics
from gateway.settings import fields

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def keys() -> list[str]:
    return [f"| `{row.name}` | {row.type} | {row.lifetime} | {row.holds} |" for row in keyspace.TABLE]


def settings() -> list[str]:
    rows = []
    for field in fields():
        default = " ".join(field.default) if isinstance(field.default, tuple) else f"{field.default}"
        rows.append(f"| `{field.variable}` | {f'`{default}`' if default else ''} | {field.description} |")
    return rows


def metrics() -> list[str]:
    rows = []
    for metric in vars(Metrics()).values():
        kind = {Gauge: "gauge", Histogram: "histogram"}.get(type(metric), "counter")
        labels = ", ".join(getattr(metric, "labels", ()))
        labels = f"{{{labels}}}" if labels else ""
        total = "_total" if isinstance(metric, Counter) else ""
        rows.append(f"| `{PREFIX}{metric.name}{total}{labels}` | {kind} | {metric.help} |")
    return rows


TABLES = {"keys": keys, "settings": settings, "metrics": metrics}


def written(readme: str, name: str) -> list[str]:
    """The rows of a table as the README has them."""
    match = re.search(rf"<!-- {name}: .*? -->\n(.*?)<!-- end -->", readme, re.DOTALL)
    assert match is not None
    return match[1].strip().splitlines()[2:]


@pytest.mark.parametrize("name", TABLES)
def test_the_readmes_table_is_the_codes(name: str) -> None:
    assert written(README.read_text(), name) == TABLES[name]()


def test_every_target_that_make_lists_exists_and_the_readme_names_real_ones() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"make (\w+)", listed))
    assert {"run", "test", "check", "bench", "fleet"} <= targets
    assert set(re.findall(r"`?make (\w+)`?", README.read_text())) <= targets


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_in_the_readme_is_one() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in set(re.findall(r"^trunkline (\w+)", README.read_text(), re.MULTILINE)):
        assert f"    {command} " in help_text


def write() -> None:
    readme = README.read_text()
    for name, rows in TABLES.items():
        readme = re.sub(
            rf"(<!-- {name}: .*? -->\n[^\n]*\n[^\n]*\n).*?(<!-- end -->)",
            lambda match, rows=rows: match[1] + "\n".join(rows()) + "\n" + match[2],
            readme,
            flags=re.DOTALL,
        )
    README.write_text(readme)


if __name__ == "__main__":
    write()
