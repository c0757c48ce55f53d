"""Ready-made identifiers for :class:`~stoplog.RateLimitMiddleware` and :class:`~stoplog.RateLimit`.

::

    from stoplog.identity import client_address, first_of, header

    identify = first_of(header("X-Api-Key"), client_address("10.0.0.0/8"))
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from typing import Any, Final, Protocol

from stoplog.errors import InvalidInput
from stoplog.identity.addresses import DEFAULT_IPV6_PREFIX
from stoplog.identity.forwarding import TrustedProxies
from stoplog.identity.header_text import field_id
from stoplog.identity.identity import located_id

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


class HasScope(Protocol):
    """A request or WebSocket with an ASGI scope, such as Starlette's ``HTTPConnection``."""

    @property
    def scope(self) -> MutableMapping[str, Any]: ...  # noqa: D102


Identifier = Callable[[Any], str | Awaitable[str | None] | None]
"""Returns the client id of a request; ``None`` if it finds none."""


def client_address(
    trusted_proxies: str = "", *, ipv6_prefix: int = DEFAULT_IPV6_PREFIX
) -> Callable[[HasScope], str]:
    """Return an identifier: the address of the client, or the prefix of an IPv6 address.

    Args:
        trusted_proxies: Networks of the proxies in front of the application (``10.0.0.0/8``), or their
            number. Only their header fields are believed. By default, the caller is the client.
        ipv6_prefix: Bits of an IPv6 address that count, 1 to 128.

    Raises:
        InvalidInput: An argument is invalid.
    """
    try:
        trusted = TrustedProxies.parse(trusted_proxies)
    except ValueError as exc:
        raise InvalidInput("trusted_proxies", *_split(exc)) from None
    if type(ipv6_prefix) is not int or not 1 <= ipv6_prefix <= 128:
        raise InvalidInput("ipv6_prefix", f"{ipv6_prefix!r} is out of bounds", "use 1 to 128, such as 64")

    def identify(connection: HasScope) -> str:
        peer = peer_of(connection.scope)
        return located_id(trusted.locate(peer, connection.scope["headers"]), peer, ipv6_prefix)

    return identify


def header(name: str) -> Callable[[HasScope], str | None]:
    """Return an identifier: the id in the header field *name*; ``None`` if it is missing or empty.

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

    async def identify(connection: Any) -> str | None:
        for identifier in identifiers:
            found = identifier(connection)
            if isawaitable(found):
                found = await found
            if found is not None:
                return found
        return None

    return identify


def peer_of(scope: MutableMapping[str, Any]) -> str | None:
    """Return the address of the caller in an ASGI scope; ``None`` if the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else None


def _split(exc: ValueError) -> tuple[str, str]:
    problem, _, remedy = str(exc).rpartition(": ")
    return problem, remedy
