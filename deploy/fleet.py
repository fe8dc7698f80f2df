"""A fleet on this machine, from the files beside this one: Redis, two nodes, HAProxy, and Prometheus where installed.

`make fleet` shows it to a person, tests/test_fleet.py tries it and tests/roll deploys to it, all as `Fleet`. Everything
listens on 127.0.0.1, keeps what it writes in one temporary directory, and ends with this process, however that ends.
"""

# ruff: noqa: S603, T201 (it starts programs, from arguments of our own, and prints what they are for)

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from broker.errors import Unavailable
from broker.local import LocalRedis, end_with_parent, find_redis_server

DEPLOY = Path(__file__).resolve().parent
TRUNKLINE = Path(sys.executable).with_name("trunkline")
PORTS = {"haproxy": 8080, "node-1": 8081, "node-2": 8082, "prometheus": 9090}
"""Where a person finds the parts, unless something else is there already."""


class FleetError(Exception):
    """Why there is no fleet, in words for whoever started it."""


@dataclass
class Member:
    """One program of the fleet."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        """All it printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, path: str, seconds: float = 20.0) -> None:
        """Until `path` answers 200. Raises `FleetError` with the program's last words."""
        deadline = time.monotonic() + seconds
        while not _answers(self.url + path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = self.output().strip().splitlines()[-5:] or ["it said nothing"]
                raise FleetError("\n  ".join([f"{self.name} did not get ready:", *words]))
            time.sleep(0.02)


class Fleet:
    """A context manager: inside it the fleet runs and is ready.

    `ports` says by name where a part should listen; without, or where that is taken, it is any free port. `settings`
    are the nodes', as in `Fleet(jwt_secret="…", drain_seconds=5)`. Raises `FleetError` when a part is missing or does
    not start.
    """

    def __init__(self, ports: Mapping[str, int] | None = None, **settings: Any) -> None:
        self.ports = ports or {}
        self.settings = {"jwt_secret": secrets.token_urlsafe(32)} | settings
        self._lives = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as lives:
            haproxy = find("haproxy")
            prometheus = shutil.which("prometheus")
            self.redis = lives.enter_context(LocalRedis(find_redis_server()))
            self.directory = Path(lives.enter_context(tempfile.TemporaryDirectory(prefix="trunkline-fleet-")))
            self._lives = lives
            self.nodes = [self._start_node(name, self._port(name)) for name in ("node-1", "node-2")]
            for node in self.nodes:
                node.wait_for("/ready")
            self.balancer = self._start_haproxy(haproxy)
            self.prometheus = self._start_prometheus(prometheus) if prometheus else None
            # All is well: what was opened stays open until `__exit__`.
            self._lives = lives.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lives.close()

    @property
    def members(self) -> list[Member]:
        return [*self.nodes, self.balancer, *([self.prometheus] if self.prometheus else [])]

    @property
    def environment(self) -> dict[str, str]:
        """What a node, or any `trunkline` command that should meet this fleet, finds in its environment."""
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        settings = {"redis_url": self.redis.url, "trusted_proxies": "127.0.0.1"} | self.settings
        return foreign | {f"TRUNKLINE_{name.upper()}": str(value) for name, value in settings.items()}

    def stop(self, node: Member, seconds: float = 60.0) -> None:
        """Tell it to leave, and wait until it has. Raises `FleetError` when it does not go in peace."""
        node.process.send_signal(signal.SIGTERM)
        status: int | str
        try:
            status = node.process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"nothing for {seconds:g} s"
        if status != 0:
            raise FleetError(f"{node.name} was told to leave, and ended with {status}")

    def start_again(self, node: Member) -> None:
        """Where it was, after its end. It is ready then, and the balancer has it back."""
        node.process = self._start_node(node.name, node.port).process
        node.wait_for("/ready")
        deadline = time.monotonic() + 10
        while not self._is_balanced(node):
            if time.monotonic() > deadline:
                raise FleetError(f"haproxy does not take {node.name} back")
            time.sleep(0.02)

    def _is_balanced(self, node: Member) -> bool:
        """What HAProxy last said of it; it says nothing of who is there from the start."""
        said = [line for line in self.balancer.output().splitlines() if f"Server nodes/{node.name} is " in line]
        return not said or f"Server nodes/{node.name} is UP" in said[-1]

    def _start_node(self, name: str, port: int) -> Member:
        return self._start(name, port, [TRUNKLINE, "serve", "--host", "127.0.0.1", "--port", port], self.environment)

    def _start_haproxy(self, program: str) -> Member:
        port = self._port("haproxy")
        addresses = {f"NODE_{number}": f"127.0.0.1:{node.port}" for number, node in enumerate(self.nodes, 1)}
        environment = os.environ | addresses | {"LISTEN": f"127.0.0.1:{port}"}
        member = self._start("haproxy", port, [program, "-db", "-f", DEPLOY / "haproxy.cfg"], environment)
        member.wait_for("/ready")
        return member

    def _start_prometheus(self, program: str) -> Member:
        directory = self.directory / "prometheus"
        (directory / "targets").mkdir(parents=True)
        for name in ("prometheus.yml", "alerts.yml"):
            shutil.copy(DEPLOY / name, directory)
        targets = [{"targets": [f"127.0.0.1:{node.port}" for node in self.nodes]}]
        (directory / "targets" / "nodes.json").write_text(json.dumps(targets))
        port = self._port("prometheus")
        member = self._start(
            "prometheus",
            port,
            [
                program,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            os.environ,
        )
        member.wait_for("/-/ready")
        return member

    def _start(self, name: str, port: int, command: list[Any], environment: Mapping[str, str]) -> Member:
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=end_with_parent,  # noqa: PLW1509 (it takes no lock)
            )
        self._lives.callback(_kill, process)
        return Member(name, port, process, log)

    def _port(self, name: str) -> int:
        for wanted in (self.ports.get(name, 0), 0):
            with contextlib.suppress(OSError), socket.socket() as probe:
                # As servers do: what a server before left in TIME_WAIT is no obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", wanted))
                return int(probe.getsockname()[1])
        raise FleetError("this machine has no free port")


def find(program: str, package: str = "") -> str:
    """The path of a program. Raises `FleetError` with the Debian package to install, if it is named otherwise."""
    # Debian keeps it in a directory that is on root's PATH alone.
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise FleetError(f"no {program} found: install it (Debian: apt-get install {package or program})")
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """At once: nobody else needs this fleet, and nothing of it is kept."""
    process.kill()
    process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 (our own)
        return answer.status == 200
    return False


def describe(fleet: Fleet) -> str:
    """What runs where, and what to try."""
    words = ["token", "--sub", "user-1", "--workspace", "ws-456"]
    answer = subprocess.run([TRUNKLINE, *words], env=fleet.environment, check=True, capture_output=True, text=True)
    token = answer.stdout.strip().splitlines()[-1]
    programs = os.path.relpath(TRUNKLINE.parent)
    trunkline = f"TRUNKLINE_REDIS_URL={fleet.redis.url} {programs}/trunkline"
    address = f"ws://127.0.0.1:{fleet.balancer.port}/v2/ws"
    prometheus = fleet.prometheus.url if fleet.prometheus else "not installed (Debian: apt-get install prometheus)"
    return f"""
  clients     {address}  (HAProxy)
  node-1      {fleet.nodes[0].url}  (process {fleet.nodes[0].process.pid})
  node-2      {fleet.nodes[1].url}  (process {fleet.nodes[1].process.pid})
  Redis       {fleet.redis.url}
  Prometheus  {prometheus}
  logs        {fleet.directory}/*.log

a token for workspace ws-456, for an hour
  {token}
watch
  {trunkline} tail --workspace ws-456
publish
  {trunkline} publish --workspace ws-456 --agent agent-123 task.progress '{{"task_id":"task-456","step":3}}'
be a client: connect, then type {{"type":"subscribe"}}
  {programs}/websockets '{address}?token={token}'
deploy: stop a node, its clients are sent away and find the other
  kill {fleet.nodes[0].process.pid}

Ctrl-C ends it all."""


def watch(fleet: Fleet) -> None:
    """Say which member has ended, until none is left."""
    alive = fleet.members
    while alive:
        for member in [member for member in alive if member.process.poll() is not None]:
            alive.remove(member)
            print(f"{member.name} has ended with status {member.process.returncode}", flush=True)
        time.sleep(0.2)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Fleet(PORTS, drain_wait_seconds=3, drain_seconds=5) as fleet:
            print(describe(fleet), flush=True)
            watch(fleet)
    except KeyboardInterrupt:
        return 0
    except (FleetError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
