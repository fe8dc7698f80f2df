"""Slots: which node of a cluster has which keys. Pure."""

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any

from . import Host

SLOTS = 16384

# Commands of which any node knows the answer.
_KEYLESS = frozenset({"PING", "TIME"})


def slot_of(key: str | bytes) -> int:
    """The slot of a key or of a sharded channel: of what stands in its first braces, unless that is nothing."""
    raw = key.encode() if isinstance(key, str) else key
    _, _, rest = raw.partition(b"{")
    tag, brace, _ = rest.partition(b"}")
    return crc_hqx(tag if tag and brace else raw, 0) % SLOTS


def slot_of_command(words: Sequence[Any], keys: Iterable[str | bytes] = ()) -> int | None:
    """The slot of a command's first key; `keys` are those of a command that names none. None: any node will do."""
    for key in keys:
        return slot_of(key)
    match words[0]:
        case name if name in _KEYLESS:
            return None
        case "EVAL" | "EVALSHA":
            return slot_of(words[3])
        case "XREAD" | "XREADGROUP":
            return slot_of(words[next(at for at, word in enumerate(words) if word in ("STREAMS", b"STREAMS")) + 1])
    return slot_of(words[1])


class Slots:
    """The owner of each slot, as far as we know."""

    def __init__(self) -> None:
        self._owners: list[Host | None] = [None] * SLOTS
        self.nodes: frozenset[Host] = frozenset()  # all that there are, replicas too
        self.version = 0  # grows with every change of an owner

    @property
    def masters(self) -> list[Host]:
        return list(dict.fromkeys(owner for owner in self._owners if owner is not None))

    def owner(self, slot: int) -> Host | None:
        return self._owners[slot]

    def move(self, slot: int, owner: Host) -> None:
        """What a redirection said."""
        if self._owners[slot] != owner:
            self._owners[slot] = owner
            self.version += 1

    def load(self, ranges: Iterable[Sequence[Any]], asked: Host) -> None:
        """What the node `asked` answered to CLUSTER SLOTS: first slot, last slot, the master and its replicas."""
        owners: list[Host | None] = [None] * SLOTS
        nodes: set[Host] = set()
        for first, last, *group in ranges:
            # A node that does not know its own name is where we asked.
            hosts = [Host(asked.name if name in (None, b"", b"?") else name.decode(), port) for name, port, *_ in group]
            owners[first : last + 1] = [hosts[0]] * (last + 1 - first)
            nodes.update(hosts)
        self.nodes = frozenset(nodes)
        if owners != self._owners:
            self._owners = owners
            self.version += 1


def redirection(words: str, asked: Host) -> tuple[int, Host]:
    """The slot and the owner that `MOVED 3999 127.0.0.1:6381` or `ASK …` names, as said by the node `asked`."""
    _, slot, owner = words.split(" ")[:3]
    name, _, port = owner.rpartition(":")
    return int(slot), Host(name or asked.name, int(port))
