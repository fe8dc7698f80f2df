"""Hosts: how an entry of a policy covers one, and every way in which one may be spelled.

    example.com          this name alone
    *.example.com        every name below it, at any depth, not itself
    10.0.0.0/8, ::1      addresses
    *                    every host
    example.com:443, 10.0.0.0/8:22, [::1]:80, *:25     the same, for one port

Names are ASCII; one with other letters is written as DNS has it (`xn--…`), since two standards disagree on how to write
`straße.de`. A host that is asked for is read in every way that some resolver has: `127.1`, `0x7f000001`, `2130706433`
and `::ffff:127.0.0.1` are 127.0.0.1, and so is 0.0.0.0 to who connects; `localhost` is a loopback address, and each of
these is `localhost` to who blocks it; `Example.COM.` is `example.com`. It is blocked when one reading is. It is allowed
when all its names are, or its address as the standard writes it, or the `address` that was connected to. Where the
action has no port, an entry for one port blocks and does not allow.

Names are not looked up: what a name leads to is judged only if the caller says the `address`.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import product
from typing import NamedTuple

from .finding import UNREADABLE, Finding
from .folding import fold, plain

Address = IPv4Address | IPv6Address

_MAX_CHARACTERS = 253
_MAX_PORT = 65535
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENTRY = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_DOTS = str.maketrans("。．｡", "...")  # as IDNA has it
# Their last 32 bits are an IPv4 address: mapped, compatible, and translated (RFC 2765, 6052 and 8215).
_CARRIERS = [
    IPv6Network(text) for text in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
]
_ISATAP = (0x00005EFE, 0x02005EFE)
_LOOPBACK: tuple[Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
# As the hosts files of most systems name them.
_LOOPBACK_NAMES = {"localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"}


class Readings(NamedTuple):
    """What a host may be. `exact` is its address if it is written as the standard has it, and then `names` is empty."""

    names: frozenset[str]
    addresses: frozenset[Address]
    exact: Address | None = None


class Entry:
    """One entry of a policy. `text` is the entry as its author wrote it."""

    __slots__ = ("_name", "_network", "_port", "text")

    def __init__(self, text: str) -> None:
        """Raises `ValueError`, with what was expected."""
        self.text = text
        host, self._port = _parted(text.lower())
        self._network = _network(host)
        self._name = None if self._network else _checked_name(host)

    def blocks(self, host: Readings, port: int | None) -> bool:
        """True when some reading is covered."""
        if self._port is not None and port not in (None, self._port):
            return False
        if self._name == "*" or (self._name == "localhost" and any(one.is_loopback for one in host.addresses)):
            return True
        return any(map(self._is_name, host.names)) or any(map(self._has, host.addresses))

    def allows(self, host: Address | str, port: int | None) -> bool:
        """True when this address or name is covered."""
        if self._port not in (None, port):
            return False
        return self._is_name(host) if isinstance(host, str) else self._name == "*" or self._has(host)

    def _is_name(self, name: str) -> bool:
        if self._name is None or self._name == "*":
            return self._name is not None
        return name.endswith(self._name[1:]) if self._name.startswith("*.") else name == self._name

    def _has(self, address: Address) -> bool:
        return self._network is not None and address in self._network


class Hosts:
    """The section `network` of a policy."""

    def __init__(self, section: dict[str, list[str]]) -> None:
        self._allowed = [Entry(text) for text in section.get("allowed_hosts", ())]
        self._blocked = [Entry(text) for text in section.get("blocked_hosts", ())]

    def judge(self, host: str, port: int | None, address: str | None) -> Finding | None:
        if not self._allowed and not self._blocked:
            return None
        found = [one and readings(one) for one in (host, *([] if address is None else [address]))]
        known = [one for one in found if one]
        texts = [str(one).encode() for each in known for one in (*each.names, *each.addresses)]
        if blocked := next((entry for entry in self._blocked if any(entry.blocks(one, port) for one in known)), None):
            return Finding("blocked", blocked.text, texts)
        if len(known) < len(found) or (port is not None and not 0 <= port <= _MAX_PORT):
            return Finding("unreadable", UNREADABLE, texts)
        if self._allowed and not any(self._allows(one, port) for one in known):
            return Finding("allowed", "allowed_hosts", texts)
        return None

    def _allows(self, host: Readings, port: int | None) -> bool:
        every = host.names if host.exact is None else [host.exact]
        return all(any(entry.allows(one, port) for entry in self._allowed) for one in every)


def readings(host: str) -> Readings | None:
    """None: nobody can tell what host that is."""
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    if len(host) > _MAX_CHARACTERS:
        return None
    if exact := _address(host.partition("%")[0]):
        return Readings(frozenset(), frozenset(_carried(exact)), exact)
    names = frozenset(_names(host.removesuffix(".")))
    if not names:
        return None
    addresses = {address for name in names for address in _numbers(name)}
    if any(name in _LOOPBACK_NAMES or name.endswith(".localhost") for name in names):
        addresses.update(_LOOPBACK)
    return Readings(names, frozenset(carried for one in addresses for carried in _carried(one)))


def _names(host: str) -> Iterator[str]:
    """The names that resolvers make of it; with letters that are not ASCII, by both standards of IDNA."""
    host = plain(host.translate(_DOTS)).lower()
    folded = fold(host)
    spellings = {_punycode(host), _punycode(folded)}
    with contextlib.suppress(UnicodeError):
        spellings.add(folded.encode("idna").decode())
    yield from (name for name in spellings if _NAME.fullmatch(name))


def _punycode(host: str) -> str:
    """As IDNA 2008 has it: `straße.de` is `xn--strae-oqa.de`, and to the older one `strasse.de`."""
    labels = host.split(".")
    return ".".join(one if one.isascii() else "xn--" + one.encode("punycode").decode() for one in labels)


def _numbers(name: str) -> Iterator[Address]:
    """IPv4 as C's `inet_aton` reads it: `127.1`, `0x7f.1`, `2130706433`; a number that begins with 0 in both bases."""
    parts = name.split(".")
    if len(parts) > 4 or not all(map(_NUMBER.fullmatch, parts)):
        return
    for *bytes_, last in product(*map(_values, parts)):
        if last < 256 ** (4 - len(bytes_)) and all(one < 256 for one in bytes_):
            yield IPv4Address(sum(one << (24 - 8 * index) for index, one in enumerate(bytes_)) + last)


def _values(number: str) -> set[int]:
    """What a number of at most 253 characters may be."""
    if number.startswith("0x"):
        return {int(number[2:] or "0", 16)}
    octal = {int(number, 8)} if number.startswith("0") and not set(number) & set("89") else set()
    return {int(number)} | octal


def _carried(address: Address) -> Iterable[Address]:
    """An address, the IPv4 addresses that it stands for, and the loopback where it is nobody's (`0.0.0.0`, `::`)."""
    yield address
    if address.is_unspecified:
        yield from _LOOPBACK
    if isinstance(address, IPv4Address):
        yield IPv6Address(f"::ffff:{address}")
    elif any(address in network for network in _CARRIERS) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    if isinstance(address, IPv6Address):
        yield from filter(None, (address.sixtofour, *(address.teredo or ())))


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def _parted(text: str) -> tuple[str, int | None]:
    """Host and port of an entry."""
    if _network(text):
        return text, None
    entry = _ENTRY.fullmatch(text)
    if entry is None:
        raise ValueError("expected a host: a name, *.name, an address, a network or *, with or without :port")
    port = None if entry[3] is None else int(entry[3])
    if port is not None and not 1 <= port <= _MAX_PORT:
        raise ValueError("expected a port from 1 to 65535")
    return entry[1] or entry[2], port


def _checked_name(host: str) -> str:
    bare = host.removeprefix("*.").removesuffix(".")
    is_name = len(bare) <= _MAX_CHARACTERS and _NAME.fullmatch(bare) and not _NUMBER.fullmatch(bare.split(".")[-1])
    if not is_name and host != "*":
        raise ValueError("expected a host: an ASCII name, *.name, an address, a network without host bits, or *")
    return host.removesuffix(".")
