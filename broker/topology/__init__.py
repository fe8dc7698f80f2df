"""How the servers behind one URL are arranged, and who of them is to be asked: one Redis, Sentinel, or Cluster."""

from typing import NamedTuple


class Host(NamedTuple):
    """Where a server listens."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"
