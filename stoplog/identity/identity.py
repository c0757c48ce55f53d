"""The settings of client identity, applied to one request.

Two questions are separate. The *name* of the client decides whose limits apply. The *address* of the client
decides whether they apply at all: an address may be blocked or exempt, whatever name its requests have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from stoplog.identity.addresses import (
    DEFAULT_IPV6_PREFIX,
    UNKNOWN_ADDRESS,
    Address,
    Network,
    Networks,
    address_id,
)
from stoplog.identity.forwarding import Located, TrustedProxies
from stoplog.identity.header_text import SeveralValues, field_id

ADDRESS: Final = "address"
"""The link of a chain that names a client by its address."""

_HEADER: Final = re.compile(r"header:([!#$%&'*+.^_`|~0-9A-Za-z-]+)", re.ASCII)

RequestHeaders = Iterable[tuple[bytes, bytes]]
"""Header fields, with names in lower case."""


class Verdict(Enum):
    """How a request is treated, by the address and the name of its client."""

    COUNTED = auto()
    """The limits apply."""
    EXEMPT = auto()
    """Allow the request, and charge nothing."""
    BLOCKED = auto()
    """Refuse the request with 403, and charge nothing: the address is listed."""
    UNNAMED = auto()
    """Refuse the request with 403: nothing names its client, or a header field names several."""


class Identified(NamedTuple):
    """The client of a request, and how the request is treated. It may lack a client unless it is counted."""

    client: str | None
    verdict: Verdict = Verdict.COUNTED


class IdentitySettings(Protocol):
    """The settings that an :class:`Identity` is made of (:class:`stoplog.client.settings.Settings`)."""

    @property
    def trusted_proxies(self) -> str: ...  # noqa: D102
    @property
    def forwarding_header(self) -> str: ...  # noqa: D102
    @property
    def identify(self) -> str: ...  # noqa: D102
    @property
    def ipv6_prefix(self) -> int: ...  # noqa: D102
    @property
    def exempt_addresses(self) -> str: ...  # noqa: D102
    @property
    def blocked_addresses(self) -> str: ...  # noqa: D102


class Chain:
    """A chain of ways to name a client. The first that finds a name counts.

    Attributes:
        links: The name of a header field in lower case, or ``None`` for the address.
    """

    def __init__(self, links: tuple[bytes | None, ...] = ()) -> None:
        self.links = links

    @classmethod
    def parse(cls, text: str) -> Chain:
        """Return the chain that *text* describes; empty for none.

        Raises:
            ValueError: *text* is no chain. The message contains the remedy.

        >>> Chain.parse("header:X-Api-Key,address").links
        (b'x-api-key', None)
        """
        links: list[bytes | None] = []
        for part in (part.strip() for part in text.split(",") if text.strip()):
            match = _HEADER.fullmatch(part)
            if match is None and part != ADDRESS:
                raise ValueError(f"{part[:60]!r} names no client: write header:X-Api-Key or address")
            links.append(None if match is None else match[1].lower().encode())
        if len(set(links)) < len(links):
            raise ValueError(f"{text.strip()!r} names one way twice: remove one")
        if None in links[:-1]:
            raise ValueError("each request has an address: write address last")
        return cls(tuple(links))

    def __bool__(self) -> bool:
        return bool(self.links)


class Identity:
    """Names the clients of requests, and says which are blocked or exempt.

    Args:
        trusted: Proxies whose header fields are believed.
        chain: Ways to name a client, for interfaces at which nothing else names it.
        ipv6_prefix: Bits of an IPv6 address that name a client.
        exempt: Addresses that are allowed and not charged.
        blocked: Addresses that are refused. They come before *exempt*.

    Attributes:
        chain: As the argument.
        has_lists: Whether any address is exempt or blocked.
        trusts_proxies: Whether any proxy is trusted.
    """

    def __init__(
        self,
        *,
        trusted: TrustedProxies | None = None,
        chain: Chain | None = None,
        ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
        exempt: Networks | None = None,
        blocked: Networks | None = None,
    ) -> None:
        self.chain: Final = chain or Chain()
        self.ipv6_prefix: Final = ipv6_prefix
        self._trusted = trusted or TrustedProxies()
        self.trusts_proxies: Final = bool(self._trusted)
        self._exempt = exempt or Networks()
        self._blocked = blocked or Networks()
        self.has_lists: Final = bool(self._exempt) or bool(self._blocked)

    @classmethod
    def of(cls, settings: IdentitySettings) -> Identity:
        """Return the identity that *settings*, which are valid, describe."""
        return cls(
            trusted=TrustedProxies.parse(settings.trusted_proxies, settings.forwarding_header),
            chain=Chain.parse(settings.identify),
            ipv6_prefix=settings.ipv6_prefix,
            exempt=Networks.parse(settings.exempt_addresses),
            blocked=Networks.parse(settings.blocked_addresses),
        )

    @property
    def needs_peer(self) -> bool:
        """Whether anything but an explicit name counts: a chain, or lists of addresses."""
        return self.has_lists or bool(self.chain)

    def identify(self, peer: str | None, headers: RequestHeaders) -> Identified:
        """Return the client that the chain names, and how the request is treated.

        Args:
            peer: Address of the caller, which may be a proxy; ``None`` if it is not known.
            headers: Its header fields.
        """
        verdict = self.verdict(peer, headers)
        if verdict is not Verdict.COUNTED:
            return Identified(None, verdict)
        try:
            client = self.client(peer, headers)
        except SeveralValues:
            client = None
        return Identified(client, Verdict.UNNAMED if client is None else verdict)

    def client(self, peer: str | None, headers: RequestHeaders) -> str | None:
        """Return the client that the chain names; ``None`` if no link finds one.

        The arguments are those of :meth:`identify`.

        Raises:
            SeveralValues: A header field names several.
        """
        for link in self.chain.links:
            if link is None:
                return located_id(self._trusted.locate(peer, headers), peer, self.ipv6_prefix)
            if (client := field_id(headers, link)) is not None:
                return client
        return None

    def verdict(self, peer: str | None, headers: RequestHeaders, *, peer_is_client: bool = True) -> Verdict:
        """Return what the lists say.

        Args:
            peer: As for :meth:`identify`.
            headers: As for :meth:`identify`.
            peer_is_client: Whether a caller that is no trusted proxy is the client. Otherwise, it is a proxy
                with unknown clients, which are not exempt, whatever the address of the proxy is.
        """
        if not self.has_lists:
            return Verdict.COUNTED
        located = self._trusted.locate(peer, headers)
        # A client that sends a second field must neither escape its block nor borrow an exemption.
        addresses = located.claims or ((located.address,) if located.address is not None else ())
        certain = located.certain and (peer_is_client or not located.is_caller)
        return self.verdict_of(addresses, certain=certain)

    def verdict_of_networks(self, networks: Iterable[Network]) -> Verdict:
        """Return what the lists say of a client with an address in one of *networks*, which is not known."""
        blocked = any(self._blocked.overlaps(network) for network in networks)
        return Verdict.BLOCKED if blocked else Verdict.COUNTED

    def verdict_of(self, addresses: Iterable[Address], *, certain: bool = True) -> Verdict:
        """Return what the lists say of *addresses*.

        Args:
            addresses: Addresses of which one is the client's.
            certain: Whether it is known which one.
        """
        if not self.has_lists:
            return Verdict.COUNTED
        if any(address in self._blocked for address in addresses):
            return Verdict.BLOCKED
        if certain and any(address in self._exempt for address in addresses):
            return Verdict.EXEMPT
        return Verdict.COUNTED


def located_id(located: Located, peer: str | None, ipv6_prefix: int) -> str:
    """Return the client id for the place that a request comes from."""
    if located.address is not None:
        return address_id(located.address, ipv6_prefix)
    return peer or UNKNOWN_ADDRESS
