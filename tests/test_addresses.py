"""Whose address a connection has: what trusted proxies have written counts, what a client writes itself does not."""

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.addresses import client_address, holder, networks

CLIENT, OTHER = "203.0.113.7", "198.51.100.9"
BALANCERS = networks(["10.0.0.0/8", "192.0.2.1", "fd00::/8"])


def test_without_trusted_proxies_the_header_changes_nothing() -> None:
    assert client_address(CLIENT, [OTHER], []) == CLIENT
    assert client_address("10.0.0.1", [OTHER], []) == "10.0.0.1"


def test_a_forged_header_from_an_untrusted_peer_changes_nothing() -> None:
    assert client_address(CLIENT, [OTHER], BALANCERS) == CLIENT
    assert client_address(CLIENT, ["10.0.0.1", f"{OTHER}, 10.0.0.2"], BALANCERS) == CLIENT


def test_a_trusted_proxy_tells_who_is_behind_it() -> None:
    assert client_address("10.1.2.3", [CLIENT], BALANCERS) == CLIENT
    assert client_address("192.0.2.1", [CLIENT], BALANCERS) == CLIENT
    assert client_address("fd00::1", [CLIENT], BALANCERS) == CLIENT


def test_a_trusted_proxy_that_tells_nothing_is_the_client() -> None:
    assert client_address("10.1.2.3", [], BALANCERS) == "10.1.2.3"


def test_what_the_client_wrote_itself_stands_further_left_and_changes_nothing() -> None:
    assert client_address("10.0.0.1", [f"{OTHER}, {CLIENT}"], BALANCERS) == CLIENT
    assert client_address("10.0.0.1", [OTHER, CLIENT], BALANCERS) == CLIENT
    assert client_address("10.0.0.1", [f"10.0.0.9, 10.0.0.8, {CLIENT}"], BALANCERS) == CLIENT


def test_proxies_behind_proxies_are_passed_as_far_as_they_are_trusted() -> None:
    assert client_address("10.0.0.1", [f"{OTHER}, {CLIENT}, 10.0.0.3, 192.0.2.1"], BALANCERS) == CLIENT
    assert client_address("10.0.0.1", [f"{OTHER}, {CLIENT}", "fd00::2", "10.0.0.3"], BALANCERS) == CLIENT
    assert client_address("10.0.0.1", [f"{CLIENT}, 192.0.2.2, 10.0.0.3"], BALANCERS) == "192.0.2.2"


def test_where_all_are_trusted_the_first_is_the_client() -> None:
    assert client_address("10.0.0.1", ["10.0.0.3, 10.0.0.2"], BALANCERS) == "10.0.0.3"


@pytest.mark.parametrize(
    "said", ["", " ", "unknown", "_hidden", "203.0.113.256", "203.0.113", "203.0.113.7/8", "a:b:c"]
)
def test_behind_what_is_no_address_nobody_is_known(said: str) -> None:
    """And what stands further left may be the client's own words."""
    assert client_address("10.0.0.1", [f"{OTHER}, {said}"], BALANCERS) == "10.0.0.1"
    assert client_address("10.0.0.1", [f"{OTHER}, {said}, 10.0.0.2"], BALANCERS) == "10.0.0.2"


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("203.0.113.7:4711", CLIENT),
        (" 203.0.113.7\t", CLIENT),
        ("::ffff:203.0.113.7", CLIENT),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:0DB8:0:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_is_one_however_it_is_written(said: str, address: str) -> None:
    assert client_address("10.0.0.1", [said], BALANCERS) == address
    assert client_address(said.strip(), [OTHER], BALANCERS) == address


def test_a_proxy_is_trusted_however_its_address_is_written() -> None:
    """A socket that listens for IPv6 has IPv4 peers in this form."""
    assert client_address("::ffff:10.0.0.1", [f"{CLIENT}, ::ffff:10.0.0.2, 10.0.0.3:80"], BALANCERS) == CLIENT


@pytest.mark.parametrize("peer", ["", "unix:"])
def test_a_peer_without_an_address_is_no_proxy(peer: str) -> None:
    assert client_address(peer, [CLIENT], BALANCERS) == peer


addresses = st.ip_addresses().map(str)
hops = st.lists(addresses | st.text(max_size=20), max_size=4)


@given(addresses, hops)
@settings(deadline=None)
def test_whatever_an_untrusted_peer_says_it_is_itself(peer: str, said: list[str]) -> None:
    believed = client_address(peer, said, networks([OTHER]))
    assert ip_address(believed) in (ip_address(peer), getattr(ip_address(peer), "ipv4_mapped", None)) or peer == OTHER


@given(hops, st.lists(st.sampled_from(["10.0.0.2", "192.0.2.1", "fd00::2"]), max_size=3), st.booleans())
@settings(deadline=None)
def test_whatever_stands_left_of_the_first_untrusted_hop_the_client_is_the_same(
    said: list[str], proxies: list[str], in_one: bool
) -> None:
    written = [*said, CLIENT, *proxies]
    assert client_address("10.0.0.1", [", ".join(written)] if in_one else written, BALANCERS) == CLIENT


@pytest.mark.parametrize("wrong", ["", "balancer", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0-10.0.0.9", "10.0.0.1:80"])
def test_what_is_no_network_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        networks(["10.0.0.0/8", wrong])


def test_one_ipv4_address_is_one_holder() -> None:
    assert holder(CLIENT) == CLIENT
    assert holder(CLIENT) != holder(OTHER)


@given(st.ip_addresses(network="2000::/3"), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_all_ipv6_addresses_of_a_customer_are_one_holder(address: IPv6Address, device: int) -> None:
    network = int(address) >> 64
    assert holder(str(IPv6Address(network << 64 | device))) == holder(str(address))
    assert holder(str(IPv6Address((network ^ 1) << 64 | device))) != holder(str(address))


def test_an_address_in_ipv6_clothes_is_the_holder_that_it_is() -> None:
    assert holder(f"::ffff:{CLIENT}") == CLIENT


def test_who_has_no_address_is_a_holder_too() -> None:
    assert holder("") == ""
