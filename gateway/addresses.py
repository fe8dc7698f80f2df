"""Whose address a connection has: the peer's own, unless the peer is a proxy that we trust to tell another's. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

# An IPv6 customer has a network of so many bits, and any number of addresses in it.
_IPV6_BITS = 64


def networks(given: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks. Raises `ValueError`."""
    return tuple(ip_network(name) for name in given)


def client_address(peer: str, forwarded: Iterable[str], trusted: Iterable[Network]) -> str:
    """The address of the client behind `peer`.

    `forwarded` are the values of X-Forwarded-For in the order of the headers. Each proxy adds, on the right, who
    connected to it, so they are read from there: as far as trusted proxies have written them. What a client wrote
    itself stands further left, and changes nothing.
    """
    address = _read(peer)
    if address is None:
        return peer
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    while hops and any(address.version == network.version and address in network for network in trusted):
        said = _read(hops.pop())
        if said is None:
            break  # no address: the last one that we know is the proxy's
        address = said
    return str(address)


def holder(address: str) -> str:
    """What is counted as one address: of IPv6 the customer's network."""
    read = _read(address)
    if isinstance(read, IPv6Address):
        return str(ip_network((read, _IPV6_BITS), strict=False))
    return address if read is None else str(read)


def _read(text: str) -> Address | None:
    """An address, without the port or the brackets that some proxies write; IPv4 inside IPv6 as itself."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
