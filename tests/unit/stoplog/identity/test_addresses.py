"""One form for each address, for arbitrary addresses in arbitrary spellings."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.identity.addresses import (
    Address,
    Networks,
    address_id,
    network_id,
    parse_address,
    parse_network,
)

ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.ip_addresses(v=6).map(IPv6Address).filter(lambda address: address.ipv4_mapped is None)
ports = st.sampled_from(["", ":0", ":80", ":65535"])
spaces = st.sampled_from(["", " ", "\t "])


@st.composite
def spellings(draw: st.DrawFn) -> tuple[Address, str]:
    """Return an address and one of its spellings."""
    four = draw(ipv4)
    if draw(st.booleans()):
        address: Address = four
        mapped = IPv6Address(f"::ffff:{four}")
        text = draw(st.sampled_from([str(four), f"::FFFF:{four}", str(mapped), mapped.exploded]))
    else:
        address = draw(ipv6)
        text = draw(st.sampled_from([str(address), address.exploded, str(address).upper()]))
    if ":" not in text:
        return address, draw(spaces) + text + draw(ports)
    if draw(st.booleans()):
        text += draw(st.sampled_from(["%eth0", "%25en1", "%1"]))
    if draw(st.booleans()):
        text = f"[{text}]{draw(ports)}"
    return address, text + draw(spaces)


@given(spellings())
def test_each_spelling_of_an_address_is_the_same_client(spelling: tuple[Address, str]) -> None:
    address, text = spelling
    assert parse_address(text) == address
    assert network_id(text) == address_id(address)


@given(st.text(max_size=200) | st.text("0123456789abcdefF:.%[]/ ", max_size=60))
def test_any_text_is_an_address_or_none(text: str) -> None:
    address = parse_address(text)
    if address is not None:
        assert parse_address(str(address)) == address
        assert parse_address(address_id(address, 128)) == address
    network_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "unknown", "_hidden", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:123456", "192.0.2", "192.0.2.01"),
        *(
            "192.0.2.1%eth0",
            "[192.0.2.1]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]80",
            "[]:80",
            "::1::",
        ),
        *("192.0.2.1, 192.0.2.2", "2001:db8::1%", "\uff1192.0.2.1", "192.0.2.1\n", "192.0.2.1/32", "a" * 200),
    ],
)
def test_text_that_is_no_address_has_none(text: str) -> None:
    assert parse_address(text) is None


@given(ipv6, st.integers(1, 128), st.integers(0))
def test_addresses_of_one_prefix_are_one_client_and_others_are_not(
    address: IPv6Address, prefix: int, noise: int
) -> None:
    hidden = 128 - prefix
    neighbour = IPv6Address(int(address) >> hidden << hidden | noise % (1 << hidden))
    other = IPv6Address(int(address) ^ (1 << hidden))
    client = address_id(address, prefix)
    assert address_id(neighbour, prefix) == client
    assert address_id(other, prefix) != client
    assert network_id(client, prefix) == client
    assert client.endswith(f"/{prefix}") == (prefix < 128)


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7/32", "192.0.2.7"),
        ("::ffff:192.0.2.7/128", "192.0.2.7"),
        ("2001:DB8:1:2::/64", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::/80", "2001:db8:1:2::/64"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("alice", None),
        ("a/b", None),
    ],
)
def test_network_is_the_client_of_its_size(text: str, client: str | None) -> None:
    assert network_id(text) == client


@given(
    st.lists(st.tuples(st.ip_addresses(), st.integers(0, 32)), max_size=6),
    st.ip_addresses(),
)
def test_networks_contain_what_one_of_them_contains(
    parts: list[tuple[Address, int]], address: Address
) -> None:
    networks = [parse_network(f"{start}/{prefix}", strict=False) for start, prefix in parts]
    addresses = [address, *(network.network_address for network in networks)]
    for one in addresses:
        assert (one in Networks(networks)) == any(one in network for network in networks)


@given(
    st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), max_size=5),
    st.ip_addresses(v=4),
    st.integers(0, 32),
    st.booleans(),
)
def test_networks_overlap_what_one_of_them_overlaps(
    parts: list[tuple[Any, int]], start: Any, prefix: int, near: bool
) -> None:
    networks = [parse_network(f"{one}/{bits}", strict=False) for one, bits in parts]
    if networks and near:
        start = networks[0].network_address
    network = parse_network(f"{start}/{prefix}", strict=False)
    assert Networks(networks).overlaps(network) == any(one.overlaps(network) for one in networks)


def test_networks_are_read_from_text_in_any_spelling() -> None:
    networks = Networks.parse(" 10.0.0.0/8,192.0.2.1  2001:DB8::/32,, ::ffff:198.51.100.0/120 ")
    inside = ["10.9.9.9", "192.0.2.1", "2001:db8:9::", "198.51.100.9"]
    outside = ["11.0.0.0", "192.0.2.2", "2001:db9::", "198.51.101.1", "::a09:909"]
    assert [parse(one) in networks for one in inside + outside] == [True] * 4 + [False] * 5
    assert networks
    assert not Networks.parse("")


def parse(text: str) -> Address:
    address = parse_address(text)
    assert address is not None
    return address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' has bits after its prefix: write 10.0.0.0/8"),
        ("10.0.0.0/33", "'10.0.0.0/33' is no address or network: write it as 10.0.0.0/8 or 2001:db8::/32"),
        ("proxy", "'proxy' is no address or network: write it as 10.0.0.0/8 or 2001:db8::/32"),
    ],
)
def test_invalid_network_is_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Networks.parse(f"192.0.2.1,{text}")
