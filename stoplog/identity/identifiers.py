"""Ready-made identifiers for :class:`~stoplog.RateLimitMiddleware` and :class:`~stoplog.RateLimit`.

::

    from stoplog.identity import client_address, first_of, header

    identify = first_of(header("X-Api-Key"), client_address("10.0.0.0/8"))
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from typing import Any, Final, Generic, Protocol, TypeVar

from stoplog.errors import InvalidInput
from stoplog.identity.addresses import DEFAULT_IPV6_PREFIX
from stoplog.identity.forwarding import TrustedProxies, forwarding_fields
from stoplog.identity.header_text import field_id
from stoplog.identity.identity import Identity, located_id

R = TypeVar("R")

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


class HasScope(Protocol):
    """A request or WebSocket with an ASGI scope, such as Starlette's ``HTTPConnection``."""

    @property
    def scope(self) -> MutableMapping[str, Any]: ...  # noqa: D102


Identifier = Callable[[Any], str | Awaitable[str | None] | None]
"""Returns the client id of a request; ``None`` if it finds none."""


class _ClientAddress:
    def __init__(self, trusted: TrustedProxies, ipv6_prefix: int) -> None:
        self._trusted, self._ipv6_prefix = trusted, ipv6_prefix
        self.trusts_proxies = bool(trusted)

    def __call__(self, connection: HasScope) -> str:
        peer = peer_of(connection.scope)
        return located_id(self._trusted.locate(peer, connection.scope["headers"]), peer, self._ipv6_prefix)


class _FirstOf:
    def __init__(self, identifiers: tuple[Identifier, ...]) -> None:
        self._identifiers = identifiers
        self.trusts_proxies = any(map(trusts_proxies, identifiers))

    async def __call__(self, connection: Any) -> str | None:
        for identifier in self._identifiers:
            found = identifier(connection)
            if isawaitable(found):
                found = await found
            if found is not None:
                return found
        return None


class Adapted(Generic[R]):
    """An identifier for the requests of another framework.

    Args:
        identify: The identifier.
        convert: Returns the request that it takes.
    """

    def __init__(self, identify: Callable[[Any], str], convert: Callable[[R], Any]) -> None:
        self._identify, self._convert = identify, convert
        self.trusts_proxies = trusts_proxies(identify)

    def __call__(self, request: R) -> str:
        """Return the client id of *request*."""
        return self._identify(self._convert(request))


def trusts_proxies(identify: object) -> bool:
    """Return whether *identify* is a ready-made identifier that believes the header fields of proxies."""
    return getattr(identify, "trusts_proxies", False) is True


def require_same_trust(identify: object, identity: Identity) -> None:
    """Refuse an identifier that trusts proxies if the lists of addresses trust none.

    Then the lists would look at the addresses of the proxies, and all clients be exempt, or blocked.

    Raises:
        InvalidInput: *identify* is such an identifier.
    """
    if identity.has_lists and not identity.trusts_proxies and trusts_proxies(identify):
        raise InvalidInput(
            "identify",
            "trusts proxies, but the lists of addresses do not",
            "set STOPLOG_TRUSTED_PROXIES to the same proxies",
        )


def client_address(
    trusted_proxies: str = "", *, ipv6_prefix: int = DEFAULT_IPV6_PREFIX, field: str = ""
) -> Callable[[HasScope], str]:
    """Return an identifier: the address of the client, or the prefix of an IPv6 address.

    Args:
        trusted_proxies: Networks of the proxies in front of the application (``10.0.0.0/8``), or their
            number. Only their header fields are believed. By default, the caller is the client.
        ipv6_prefix: Bits of an IPv6 address that count, 1 to 128.
        field: The header field that the proxies set: ``X-Forwarded-For``, ``Forwarded`` or ``X-Real-IP``. No
            other one is read then. By default, all three are, and none is believed if they contradict.

    Raises:
        InvalidInput: An argument is invalid.
    """
    try:
        forwarding_fields(field)
    except ValueError as exc:
        raise InvalidInput("field", *_split(exc)) from None
    try:
        trusted = TrustedProxies.parse(trusted_proxies, field)
    except ValueError as exc:
        raise InvalidInput("trusted_proxies", *_split(exc)) from None
    if type(ipv6_prefix) is not int or not 1 <= ipv6_prefix <= 128:
        raise InvalidInput("ipv6_prefix", f"{ipv6_prefix!r} is out of bounds", "use 1 to 128, such as 64")
    return _ClientAddress(trusted, ipv6_prefix)


def header(name: str) -> Callable[[HasScope], str | None]:
    """Return an identifier: the id in the header field *name*; ``None`` if it is missing or empty.

    It raises :class:`~stoplog.identity.header_text.SeveralValues` for a request with several values of the
    field. The middleware and the dependency answer 403 then.

    Raises:
        InvalidInput: *name* is no name of a header field.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidInput("name", f"{name[:60]!r} is no header field", "use a name such as X-Api-Key")
    field = name.lower().encode()
    return lambda connection: field_id(connection.scope["headers"], field)


def first_of(*identifiers: Identifier) -> Callable[[Any], Awaitable[str | None]]:
    """Return an identifier: the first id that one of *identifiers* finds.

    Raises:
        InvalidInput: There is no identifier.
    """
    if not identifiers:
        raise InvalidInput("identifiers", "none of them", "give at least one, such as client_address()")
    return _FirstOf(identifiers)


def peer_of(scope: MutableMapping[str, Any]) -> str | None:
    """Return the address of the caller in an ASGI scope; ``None`` if the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else None


def _split(exc: ValueError) -> tuple[str, str]:
    problem, _, remedy = str(exc).rpartition(": ")
    return problem, remedy
