"""JSON responses that are independent of any framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

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
