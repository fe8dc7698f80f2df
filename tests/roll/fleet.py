"""The fleet of deploy/ for tests: Redis, two nodes and HAProxy, and nginx before the same nodes."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support import IN_CI, Node, free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

# deploy/ is no package: it belongs to whoever operates the nodes, and is in none of them.
_spec = importlib.util.spec_from_file_location("fleet", DEPLOY / "fleet.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["fleet"] = _module
_spec.loader.exec_module(_module)

Fleet, Member, FleetError = _module.Fleet, _module.Member, _module.FleetError


def needs(program: str, package: str = "") -> str:
    """The program's path; without it the test is skipped, and fails in CI, where everything is installed."""
    try:
        return str(_module.find(program, package))
    except FleetError as error:
        (pytest.fail if IN_CI else pytest.skip)(str(error))


def at(member: Any) -> Node:
    """A member of the fleet as the other tests know a node: an address to connect to and metrics to ask for."""
    return Node("", "", port=member.port)


def connections(fleet: Any) -> dict[str, float]:
    """Open WebSockets by node, as the nodes count them."""
    return {node.name: at(node).metric("trunkline_connections") for node in fleet.nodes}


@contextlib.contextmanager
def nginx_before(directory: Path, *nodes: int) -> Iterator[Any]:
    """nginx from nginx.conf in front of the nodes at these ports; keeps what it writes in `directory`."""
    program, envsubst = needs("nginx", "nginx-light"), needs("envsubst", "gettext-base")
    if os.geteuid() != 0:
        pytest.skip("Debian's nginx keeps its temporary files where only root may write")
    port, log = free_port(), directory / "nginx.log"
    addresses = {f"NODE_{number}": f"127.0.0.1:{node}" for number, node in enumerate(nodes, 1)}
    configuration = _substitute(envsubst, directory, LISTEN=f"127.0.0.1:{port}", **addresses)
    command = [program, "-e", "stderr", "-c", configuration, "-g", f"daemon off; pid {directory}/nginx.pid;"]
    with log.open("ab") as output:
        master = subprocess.Popen(command, stdout=output, stderr=output, process_group=0)
    try:
        member = Member("nginx", port, master, log)
        member.wait_for("/ready")
        yield member
    finally:
        os.killpg(master.pid, signal.SIGKILL)
        master.wait(10)


def _substitute(envsubst: str, directory: Path, **variables: str) -> str:
    """nginx.conf as its first lines say how to make it."""
    path = directory / "nginx.conf"
    names = " ".join(f"${name}" for name in variables)
    text = (DEPLOY / "nginx.conf").read_bytes()
    path.write_bytes(subprocess.run([envsubst, names], input=text, env=variables, stdout=-1, check=True).stdout)
    return str(path)
