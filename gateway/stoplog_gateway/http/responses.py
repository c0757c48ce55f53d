"""Responses that are independent of the web framework; the routes and the fast path send them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from stoplog.asgi.rate_limit_headers import Headers

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"

_encode: Final = msgspec.json.Encoder().encode


class Rendered(NamedTuple):
    """Status, header fields (including ``content-length``) and body."""

    status: int
    headers: Headers
    body: bytes


def render(
    value: Any, status: int = 200, extra: Iterable[tuple[bytes, bytes]] = (), *, media: bytes = JSON
) -> Rendered:
    """Return a response with *value* as JSON and with the *extra* header fields."""
    body = _encode(value)
    headers = [(b"content-type", media), (b"content-length", b"%d" % len(body)), *extra]
    return Rendered(status, headers, body)


class RenderedResponse(Response):
    """A Starlette response with the content of a :class:`Rendered`."""

    def __init__(self, rendered: Rendered) -> None:
        self.status_code, self.raw_headers, self.body = rendered
        self.background = None


def respond(value: Any, status: int = 200, extra: Iterable[tuple[bytes, bytes]] = ()) -> RenderedResponse:
    """Return a route's JSON response."""
    return RenderedResponse(render(value, status, extra))
