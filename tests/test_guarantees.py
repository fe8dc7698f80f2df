"""The page of guarantees names its tests and instruments, and they exist: no guarantee without one that shows it."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from gateway.settings import fields

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGE = (ROOT / "deploy" / "GUARANTEES.md").read_text()

# The parts by their names, but for the introduction.
PARTS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


@cache
def those_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_names_tests_that_exist(part: str) -> None:
    named = NAMED.findall(PARTS[part])
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in those_in(file)] == []


def test_nothing_that_looks_like_a_test_is_named_in_another_way() -> None:
    assert len(re.findall(r"\btest_\w+\.py::", PAGE)) == len(NAMED.findall(PAGE))


def test_each_instrument_is_a_target_of_make() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"`make (\w+)", PAGE))
    assert {"faults", "roll", "soak", "shards"} <= named
    assert named <= set(re.findall(r"make (\w+)", listed))


def test_each_setting_is_one() -> None:
    named = set(re.findall(r"TRUNKLINE_\w+", PAGE))
    assert named
    assert named <= {field.variable for field in fields()}


def test_each_file_that_it_links_to_exists() -> None:
    assert all((ROOT / "deploy" / link).exists() for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE))
