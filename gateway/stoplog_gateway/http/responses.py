"""A response before any framework: what the routes and the hot path both send."""

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
    """Status, header fields (``content-length`` included) and body."""

    status: int
    headers: Headers
    body: bytes


def render(
    value: Any, status: int = 200, extra: Iterable[tuple[bytes, bytes]] = (), *, media: bytes = JSON
) -> Rendered:
    """Encode *value* as JSON, with the *extra* header fields."""
    body = _encode(value)
    headers = [(b"content-type", media), (b"content-length", b"%d" % len(body)), *extra]
    return Rendered(status, headers, body)


class RenderedResponse(Response):
    """Sends a :class:`Rendered` from a route."""

    def __init__(self, rendered: Rendered) -> None:
        self.status_code, self.raw_headers, self.body = rendered
        self.background = None


def respond(value: Any, status: int = 200, extra: Iterable[tuple[bytes, bytes]] = ()) -> RenderedResponse:
    """A route's JSON response."""
    return RenderedResponse(render(value, status, extra))
