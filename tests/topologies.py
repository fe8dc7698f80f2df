"""A real Sentinel set and a real Cluster on this machine, and what can be done to them.

Both fail over in about two seconds. A test begins with `mend`, as the one before may have killed a server.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from broker.local import LocalRedis, find_redis_server

from .support import free_port

SERVICE = "orders"
DOWN_MS = 1000

# A replica follows at once, and one that was cut off for long may still be promoted.
_QUICK: dict[str, str | int] = {"repl_diskless_sync_delay": 0, "repl_timeout": 10}
_TERMS = {"down-after-milliseconds": DOWN_MS, "failover-timeout": 3000}


def redis_server_7() -> str:
    """A redis-server of version 7 or newer, from PATH. Skips the test when there is none."""
    for directory in os.get_exec_path():
        program = shutil.which("redis-server", path=directory)
        if program is not None:
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
            if int(said.partition("v=")[2].partition(".")[0]) >= 7:
                return program
    pytest.skip("no redis-server of version 7 or newer on PATH")


def ask(port: int, *words: Any, **options: Any) -> Any:
    """One command to the server on this port."""
    with Redis(port=port, socket_timeout=1, protocol=2, retry=Retry(NoBackoff(), 0), **options) as client:
        return client.execute_command(*words)


def wait(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait for `condition`, which may fail meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(RedisError, OSError, IndexError, StopIteration):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Server(LocalRedis):
    """A redis-server that can be killed, halted and asked.

    With `tls`, a directory with `ca.pem`, `server.pem` and `server.key`, it says to others that it listens with TLS.
    """

    def __init__(self, program: str, *, tls: Path | None = None, **options: str | int) -> None:
        if tls is not None:
            files = {"ca_cert": tls / "ca.pem", "cert": tls / "server.pem", "key": tls / "server.key"}
            options |= {f"tls_{name}_file": str(file) for name, file in files.items()}
            options |= {"tls_port": free_port(), "tls_auth_clients": "no", "tls_replication": "yes"}
        super().__init__(program, **options)
        self.public_port = int(options.get("tls_port", self.port))

    def ask(self, *words: Any) -> Any:
        return ask(self.port, *words)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(5)

    @property
    def role(self) -> str:
        with suppress(RedisError, OSError):
            return str(self.ask("ROLE")[0].decode())
        return "away"


class Sentinel(Server):
    """A sentinel of `master`: it keeps a configuration file of its own."""

    def __init__(self, program: str, master: int, tls: Path | None) -> None:
        super().__init__(program, tls=tls)
        self._master = master

    def _command(self, directory: Path, directives: dict[str, str | int]) -> list[str]:
        file = directory / "sentinel.conf"
        if not file.exists():
            ours = {name: value for name, value in directives.items() if name not in ("save", "appendonly")}
            lines = [f"{name.replace('_', '-')} {value}" for name, value in ours.items()]
            lines += [f"sentinel monitor {SERVICE} 127.0.0.1 {self._master} 2"]
            lines += [f"sentinel {option} {SERVICE} {value}" for option, value in _TERMS.items()]
            file.write_text("\n".join(lines) + "\n")
        return [self.program, str(file), "--sentinel"]


class Sentinels:
    """A master, two replicas, three sentinels."""

    def __init__(self, tls: Path | None = None) -> None:
        self._program, self._tls = redis_server_7() if tls else find_redis_server(), tls
        self.servers = [Server(self._program, tls=tls, **_QUICK) for _ in range(3)]
        self.sentinels: list[Sentinel] = []

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{sentinel.public_port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.hosts}/{SERVICE}"

    @property
    def master(self) -> Server:
        """Whom the sentinels name, once it says so itself."""

        def named() -> Server | None:
            _, port = self.sentinels[0].ask("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
            server = next(one for one in self.servers if one.public_port == int(port))
            return server if server.role == "master" else None

        found: Server = wait(named, "a master")
        return found

    def name(self, master: Server) -> None:
        """Let the sentinels believe that this is the master."""
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL REMOVE", SERVICE)
            sentinel.ask("SENTINEL MONITOR", SERVICE, "127.0.0.1", master.public_port, 2)
            for option, value in _TERMS.items():
                sentinel.ask("SENTINEL SET", SERVICE, option, value)

    def mend(self) -> None:
        """Start what was killed, and wait until a failover would find all it needs."""
        if all(server.role == "away" for server in self.servers):
            for server in self.servers:  # nobody is left to take over: who was the master is it again
                server.start()
        master = self.master
        for server in self.servers:
            if server.role == "away":
                server.start()
            if server is not master and (server.role == "master" or server.ask("ROLE")[2] != master.public_port):
                # The sentinels would do that too, but not before 8 s.
                server.ask("REPLICAOF", "127.0.0.1", master.public_port)
        wait(self.is_well, "sentinels that know all")

    def is_well(self) -> bool:
        master = self.master
        replicas = [one for one in self.servers if one is not master]
        if any(one.ask("ROLE")[3] != b"connected" or one.ask("ROLE")[2] != master.public_port for one in replicas):
            return False
        for sentinel in self.sentinels:
            found = sentinel.ask("SENTINEL MASTER", SERVICE)
            if not (found["flags"] == "master" and found["num-slaves"] >= 2 and found["num-other-sentinels"] == 2):
                return False
            if any(one["flags"] != "slave" for one in sentinel.ask("SENTINEL SLAVES", SERVICE)):
                return False
        return True

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _start_all(stack, self.servers)
            master, *replicas = self.servers
            for replica in replicas:
                replica.ask("REPLICAOF", "127.0.0.1", master.public_port)
            wait(lambda: all(replica.ask("ROLE")[3] == b"connected" for replica in replicas), "replicas")
            self.sentinels = [Sentinel(self._program, master.public_port, self._tls) for _ in range(3)]
            _start_all(stack, self.sentinels)
            self.mend()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Cluster:
    """Three masters with a replica each."""

    def __init__(self, tls: Path | None = None) -> None:
        program = redis_server_7()
        self.servers = [
            Server(
                program,
                cluster_enabled="yes",
                cluster_config_file="nodes.conf",
                cluster_node_timeout=DOWN_MS,
                cluster_replica_validity_factor=0,
                cluster_allow_replica_migration="no",
                cluster_port=free_port(),
                tls=tls,
                **(_QUICK | ({"tls_cluster": "yes"} if tls else {})),
            )
            for _ in range(6)
        ]

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{server.public_port}" for server in self.servers)

    @property
    def url(self) -> str:
        return f"redis+cluster://{self.hosts}"

    def id_of(self, server: Server) -> str:
        return str(server.ask("CLUSTER MYID").decode())

    def master_of(self, slot: int) -> Server:
        """The server that says it has the slot."""

        def found() -> Server | None:
            for server in self.servers:
                with suppress(RedisError, OSError):
                    if server.role == "master" and any(first <= slot <= last for first, last in self.slots_of(server)):
                        return server
            return None

        owner: Server = wait(found, "a master of the slot")
        return owner

    def slots_of(self, server: Server) -> list[tuple[int, int]]:
        """The first and the last of each range that it says is its own."""
        own = next(node for node in server.ask("CLUSTER NODES").values() if "myself" in node["flags"])
        return [(int(slots[0]), int(slots[-1])) for slots in own["slots"]]

    def other_than(self, server: Server) -> Server:
        """Another master."""
        return next(one for one in self.servers if one is not server and one.role == "master")

    def begin_move(self, slot: int, target: Server) -> Server:
        """The slot is on its way to `target`: both know it. Answers where it is."""
        source = self.master_of(slot)
        target.ask("CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(target))
        return source

    def move_keys(self, slot: int, source: Server, target: Server) -> None:
        while keys := source.ask("CLUSTER GETKEYSINSLOT", slot, 20):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, source: Server, target: Server) -> None:
        for server in (target, source):
            server.ask("CLUSTER SETSLOT", slot, "NODE", self.id_of(target))

    def move(self, slot: int, target: Server) -> None:
        source = self.begin_move(slot, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, source, target)

    def mend(self) -> None:
        """Start what was killed, and wait until a failover of any master would find all it needs."""
        for server in self.servers:
            if server.role == "away":
                server.start()
        wait(self.is_well, "a cluster that is well")

    def is_well(self) -> bool:
        for server in self.servers:
            info = server.ask("CLUSTER INFO")
            if info["cluster_state"] != "ok" or info["cluster_known_nodes"] != "6":
                return False
            nodes = server.ask("CLUSTER NODES")
            if any("fail" in node["flags"] or not node["connected"] for node in nodes.values()):
                return False
        roles = [server.ask("ROLE") for server in self.servers]
        replicas = [role for role in roles if role[0] != b"master"]
        masters = [role for role in roles if role[0] == b"master"]
        linked = all(role[3] == b"connected" for role in replicas)
        return linked and len(replicas) == 3 and all(len(role[2]) == 1 for role in masters)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _start_all(stack, self.servers)
            first, *others = self.servers
            for epoch, server in enumerate(self.servers, 1):
                server.ask("CLUSTER SET-CONFIG-EPOCH", epoch)
            for server in others:
                first.ask("CLUSTER MEET", "127.0.0.1", server.public_port, server.options["cluster_port"])
            thirds = ((0, 5460), (5461, 10922), (10923, 16383))
            for server, slots in zip(self.servers, thirds, strict=False):
                server.ask("CLUSTER ADDSLOTSRANGE", *slots)
            wait(lambda: all(len(server.ask("CLUSTER NODES")) == 6 for server in self.servers), "nodes that met")
            for master, replica in zip(self.servers[:3], self.servers[3:], strict=True):
                wait(lambda: replica.ask("CLUSTER REPLICATE", self.id_of(master)), "a replica")  # noqa: B023
            self.mend()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _start_all(stack: ExitStack, servers: Sequence[Server]) -> None:
    for server in servers:
        stack.callback(server.close)
        server.start()
