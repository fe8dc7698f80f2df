"""Schemathesis asks a real node whatever its OpenAPI document allows, and what it does not allow."""

import json
import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .rest import SCOPE
from .support import Node, token

# A made-up workspace is seldom one of ours: a token that names every short one lets requests reach the registry.
WORKSPACES = ("ws-456", *(character for character in string.printable[:94] if character not in "{}"))

# What JSON Schema cannot say, RE2 patterns and absolute paths, makes it believe that good data is refused.
EXCLUDED = "positive_data_acceptance"

CASES_PER_OPERATION = 200


def test_it_finds_nothing_in_2000_cases(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node(max_requests_per_minute=-1, log_level="warning", fast=True)
    said = run(node, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == report["errors"] == [], said
    assert report["exit_code"] == 0, said
    assert report["test_cases"]["generated"] >= 2000
    assert {name: phase["status"] for name, phase in report["phases"].items()} == dict.fromkeys(
        ("examples", "coverage", "fuzzing", "stateful"), "success"
    )
    assert "a bug ended" not in node.output()


def run(node: Node, folder: Path) -> str:
    """Run it against `node`; answers what it said."""
    command: list[Any] = [Path(sys.executable).with_name("schemathesis"), "run", node.http("/openapi.json")]
    command += ["--header", f"Authorization: Bearer {token(*WORKSPACES, scope=SCOPE)}"]
    command += ["--checks", "all", "--exclude-checks", EXCLUDED, "--continue-on-failure"]
    command += ["--max-examples", CASES_PER_OPERATION, "--seed", 1, "--no-color"]
    command += ["--report", "json", "--report-json-path", folder / "report.json"]
    # No settings of the machine's, and no proxy of its.
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    return done.stdout + done.stderr
