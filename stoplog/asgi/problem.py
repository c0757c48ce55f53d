"""Problem details (RFC 9457): the body of every response that reports an error."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

_MAX_TEXT: Final = 600
"""Characters of a detail or a field name: enough for two ids of 256 bytes and an explanation."""


class Kind(NamedTuple):
    """A kind of problem: the status, the name in ``type``, and the constant title."""

    status: int
    name: str
    title: str


RATE_LIMITED: Final = Kind(429, "rate-limited", "Too many requests")
BLOCKED: Final = Kind(403, "blocked", "The client's address is blocked")
NO_CLIENT: Final = Kind(403, "no-client", "The request contains no valid client id")
UNAVAILABLE: Final = Kind(503, "store-unavailable", "The store does not answer")


class Problem(msgspec.Struct, frozen=True):
    """The reason why a request failed (RFC 9457, with the additional members ``field`` and ``remedy``).

    ``detail`` states the cause, ``field`` names the part of the request, and ``remedy`` suggests a solution.
    """

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    remedy: str | None = None


def problem(kind: Kind, detail: str, field: str | None = None, remedy: str | None = None) -> Problem:
    """Return a problem of *kind*. Truncate *detail* and *field*, which can contain text of the request."""
    return Problem(
        f"urn:stoplog:problem:{kind.name}",
        kind.title,
        kind.status,
        _truncated(detail),
        None if field is None else _truncated(field),
        remedy,
    )


def _truncated(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
