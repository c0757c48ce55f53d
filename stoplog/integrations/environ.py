"""Names of clients in a WSGI environment, as at every other interface (:mod:`stoplog.identity`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stoplog.identity import identifiers
from stoplog.identity.addresses import DEFAULT_IPV6_PREFIX

Environ = Mapping[str, Any]
"""The WSGI environment of a request; in Django, its ``META``."""


class EnvironRequest:
    """A request of WSGI in the terms of ASGI, as far as the name of the client needs it.

    Attributes:
        scope: The caller's address and the header fields.
    """

    def __init__(self, environ: Environ) -> None:
        address = environ.get("REMOTE_ADDR")
        self.scope: dict[str, Any] = {
            "client": (address, 0) if address else None,
            # WSGI decodes fields as Latin-1.
            "headers": [
                (name[5:].replace("_", "-").lower().encode("latin-1"), str(value).encode("latin-1"))
                for name, value in environ.items()
                if name.startswith("HTTP_")
            ],
        }


def header(name: str) -> Callable[[Environ], str | None]:
    """Return an identifier: the id in the header field *name*; ``None`` if it is missing or empty.

    Raises:
        InvalidInput: *name* is no name of a header field.

    >>> header("X-Api-Key")({"HTTP_X_API_KEY": "alice"})
    'alice'
    """
    find = identifiers.header(name)
    return lambda environ: find(EnvironRequest(environ))


def client_address(
    trusted_proxies: str = "", *, ipv6_prefix: int = DEFAULT_IPV6_PREFIX, field: str = ""
) -> Callable[[Environ], str]:
    """Return an identifier: the address of the client (:func:`stoplog.identity.client_address`).

    Raises:
        InvalidInput: An argument is invalid.
    """
    find = identifiers.client_address(trusted_proxies, ipv6_prefix=ipv6_prefix, field=field)
    return identifiers.Adapted(find, EnvironRequest)
