"""IP addresses as clients: one form for each address, sets of networks, and the id of an address.

An IPv4 address is a client. An IPv6 subscriber has a whole network, so its addresses are counted together, by
their prefix.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

DEFAULT_IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that name the client: providers give each subscriber a /64 or more."""

UNKNOWN_ADDRESS: Final = "unknown"
"""Client id of all callers without an address, such as those of a Unix socket."""

_MAX_TEXT: Final = 128
"""Characters of the longest text that is read as an address, with brackets, zone and port."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""IPv4-mapped addresses: a socket for both versions shows the callers of IPv4 so."""

_IPV4: Final = re.compile(r"([0-9.]{7,15})(?::[0-9]{1,5})?", re.ASCII)
_IPV6: Final = re.compile(r"(\[)?([0-9A-Fa-f:.]{2,45})(?:%[^\]\s]{1,64})?(?(1)\](?::[0-9]{1,5})?)", re.ASCII)


def parse_address(text: str) -> Address | None:
    """Return the address that *text* spells, or ``None`` if it is none.

    A port, brackets and a zone are left out. An IPv4-mapped address is its IPv4 address.

    >>> parse_address("[::ffff:192.0.2.1]:443"), parse_address("192.0.2.1:80")
    (IPv4Address('192.0.2.1'), IPv4Address('192.0.2.1'))
    >>> parse_address("2001:DB8:0:0::1%eth0"), parse_address("unknown")
    (IPv6Address('2001:db8::1'), None)
    """
    return _parse(text.strip(" \t")) if len(text) <= _MAX_TEXT else None


@lru_cache(4_096)
def _parse(text: str) -> Address | None:
    try:
        if (match := _IPV4.fullmatch(text)) is not None:
            return IPv4Address(match[1])
        if (match := _IPV6.fullmatch(text)) is not None:
            address = IPv6Address(match[2])
            return address.ipv4_mapped or address
    except ValueError:
        pass
    return None


def address_id(address: Address, ipv6_prefix: int = DEFAULT_IPV6_PREFIX) -> str:
    """Return the client id of *address*: itself for IPv4, and its prefix for IPv6.

    Args:
        address: The address.
        ipv6_prefix: Bits of an IPv6 address that count, 1 to 128. With 128, the id is the address.

    >>> address_id(IPv4Address("192.0.2.1")), address_id(IPv6Address("2001:db8:1:2:3::4"))
    ('192.0.2.1', '2001:db8:1:2::/64')
    """
    if isinstance(address, IPv4Address) or ipv6_prefix == address.max_prefixlen:
        return str(address)
    hidden = address.max_prefixlen - ipv6_prefix
    return f"{IPv6Address(int(address) >> hidden << hidden)}/{ipv6_prefix}"


def network_id(text: str, ipv6_prefix: int = DEFAULT_IPV6_PREFIX) -> str | None:
    """Return the client id of *text*, an address or a network in CIDR notation; ``None`` if it is neither.

    A network that is wider than a client keeps its size.

    >>> network_id("2001:db8:1:2:3::/80"), network_id("2001:DB8::/32"), network_id("192.0.2.0/24")
    ('2001:db8:1:2::/64', '2001:db8::/32', '192.0.2.0/24')
    """
    return _network_id(text, ipv6_prefix) if len(text) <= _MAX_TEXT else None


@lru_cache(4_096)
def _network_id(text: str, ipv6_prefix: int) -> str | None:
    if (address := parse_address(text)) is not None:
        return address_id(address, ipv6_prefix)
    try:
        network = parse_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None
    if network is None:
        return None
    if network.prefixlen == network.max_prefixlen or (
        isinstance(network, IPv6Network) and network.prefixlen > ipv6_prefix
    ):
        return address_id(network.network_address, ipv6_prefix)
    return str(network)


def parse_network(text: str, *, strict: bool = True) -> Network:
    """Return the network that *text* describes in CIDR notation; an address alone is one.

    Args:
        text: Such as ``10.0.0.0/8``, ``192.0.2.1`` or ``2001:db8::/32``.
        strict: Refuse bits after the prefix.

    Raises:
        ValueError: *text* is no network. The message contains the remedy.
    """
    part = text.strip()
    if "/" not in part and (address := parse_address(part)) is not None:
        part = str(address)
    try:
        network = ip_network(part, strict)
    except ValueError:
        try:
            wider = ip_network(part, strict=False)
        except ValueError:
            raise ValueError(
                f"{text.strip()[:60]!r} is no address or network: write it as 10.0.0.0/8 or 2001:db8::/32"
            ) from None
        raise ValueError(f"{part!r} has bits after its prefix: write {wider}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None
        return IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network


class Networks:
    """A set of networks. A look-up takes as long with thousands of them as with one.

    >>> networks = Networks.parse("10.0.0.0/8, 2001:db8::/32")
    >>> IPv4Address("10.1.2.3") in networks, IPv6Address("2001:db9::") in networks
    (True, False)
    """

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._by_shift: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            prefixes = self._by_shift[network.version].setdefault(shift, set())
            prefixes.add(int(network.network_address) >> shift)
        self._sorted = {
            version: [(shift, sorted(prefixes)) for shift, prefixes in by_shift.items()]
            for version, by_shift in self._by_shift.items()
        }

    @classmethod
    def parse(cls, text: str) -> Networks:
        """Return the networks in *text*, separated by commas or spaces.

        Raises:
            ValueError: One of them is invalid. The message contains the remedy.
        """
        return cls(parse_network(part) for part in re.split(r"[,\s]+", text.strip()) if part)

    def __bool__(self) -> bool:
        return any(self._by_shift.values())

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(number >> shift in prefixes for shift, prefixes in self._by_shift[address.version].items())

    def overlaps(self, network: Network) -> bool:
        """Return whether any address of *network* is in the set.

        >>> Networks.parse("192.0.2.64/26").overlaps(IPv4Network("192.0.2.0/24"))
        True
        """
        first, last = int(network.network_address), int(network.broadcast_address)
        for shift, prefixes in self._sorted[network.version]:
            at = bisect_left(prefixes, first >> shift)
            if at < len(prefixes) and prefixes[at] <= last >> shift:
                return True
        return False
