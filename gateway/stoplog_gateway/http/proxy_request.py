"""A request of a proxy that is handled without the framework."""

from __future__ import annotations

from typing import NamedTuple

from starlette.types import Scope

from stoplog.asgi.rate_limit_headers import Headers


class ProxyRequest(NamedTuple):
    """A request of a proxy, without its body.

    Attributes:
        method: Its method.
        path: Its path, without percent-encoding.
        query: Its query.
        headers: Its header fields that matter (:func:`~stoplog_gateway.http.known_heads.matters`), or all of
            them, with names in lower case.
        address: IP address of the caller, if it is known.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    address: str | None = None

    @property
    def scope(self) -> Scope:
        """The parts of the request that the functions of the routes need."""
        return {
            "method": self.method,
            "path": self.path,
            "query_string": self.query,
            "headers": self.headers,
        }
