"""The settings of client identity, applied to one request.

Two questions are separate. The *name* of the client decides whose limits apply. The *address* of the client
decides whether they apply at all: an address may be blocked or exempt, whatever name its requests have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from stoplog.identity.addresses import DEFAULT_IPV6_PREFIX, Address, Networks, address_id
from stoplog.identity.forwarding import Located, TrustedProxies
from stoplog.identity.header_text import field_id

ADDRESS: Final = "address"
"""The link of a chain that names a client by its address."""

UNKNOWN_ADDRESS: Final = "unknown"
"""Client id of all callers without an address, such as those of a Unix socket."""

_HEADER: Final = re.compile(r"header:([!#$%&'*+.^_`|~0-9A-Za-z-]+)", re.ASCII)

RequestHeaders = Iterable[tuple[bytes, bytes]]
"""Header fields, with names in lower case."""


class Verdict(Enum):
    """What the lists of addresses say of a request."""

    COUNTED = auto()
    """The limits apply."""
    EXEMPT = auto()
    """Allow the request, and charge nothing."""
    BLOCKED = auto()
    """Refuse the request with 403, and charge nothing."""


class Identified(NamedTuple):
    """The client of a request, ``None`` if nothing names one, and what the lists of addresses say."""

    client: str | None
    verdict: Verdict = Verdict.COUNTED


class IdentitySettings(Protocol):
    """The settings that an :class:`Identity` is made of (:class:`stoplog.client.settings.Settings`)."""

    @property
    def trusted_proxies(self) -> str: ...  # noqa: D102
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
        self._exempt = exempt or Networks()
        self._blocked = blocked or Networks()
        self.has_lists: Final = bool(self._exempt) or bool(self._blocked)

    @classmethod
    def of(cls, settings: IdentitySettings) -> Identity:
        """Return the identity that *settings*, which are valid, describe."""
        return cls(
            trusted=TrustedProxies.parse(settings.trusted_proxies),
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
        """Return the client that the chain names, and what the lists say.

        Args:
            peer: Address of the caller, which may be a proxy; ``None`` if it is not known.
            headers: Its header fields.
        """
        client = None
        for link in self.chain.links:
            if link is None:
                client = located_id(self._trusted.locate(peer, headers), peer, self.ipv6_prefix)
            else:
                client = field_id(headers, link)
            if client is not None:
                break
        return Identified(client, self.verdict(peer, headers))

    def verdict(self, peer: str | None, headers: RequestHeaders) -> Verdict:
        """Return what the lists say. The arguments are those of :meth:`identify`."""
        if not self.has_lists:
            return Verdict.COUNTED
        located = self._trusted.locate(peer, headers)
        # A client that sends a second field must neither escape its block nor borrow an exemption.
        addresses = located.claims or ((located.address,) if located.address is not None else ())
        return self.verdict_of(addresses, certain=not located.claims)

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
