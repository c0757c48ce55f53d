"""Header fields that show a caller its limit: ``RateLimit-Policy``, ``RateLimit`` and ``Retry-After``.

Their syntax is that of draft-ietf-httpapi-ratelimit-headers-11 (structured fields, RFC 9651). The draft's
optional window is left out: an answer contains the limit nearest to being used up, not that limit's window.

The older ``X-RateLimit-*`` fields are not standardized, and implementations differ. Here all of them are
plain integers. The reset is in seconds from now, as in ``RateLimit``.
"""

from __future__ import annotations

from typing import Final

from stoplog.client.answer import Answer

Headers = list[tuple[bytes, bytes]]
"""Header fields as ASGI requires them: names in lower case."""

MAX_INTEGER: Final = 999_999_999_999_999
"""The largest integer of a structured field. A larger limit is shown as this."""

EXPOSE: Final = b"access-control-expose-headers"

_EXPOSED: Final = b"RateLimit, RateLimit-Policy, Retry-After"


def rate_limit_headers(answer: Answer, *, legacy: bool = False) -> Headers:
    """Return the header fields of one answer; none if it is unlimited or failed open.

    An answer that failed closed has ``Retry-After`` alone, because its limit is not known.

    ``t`` is the number of seconds until the limit is whole again. On a denial that waiting can help, it
    equals ``Retry-After``, as the draft requires. Seconds are rounded up, so waiting them is always enough.

    Args:
        answer: The store's answer, or a degraded one.
        legacy: Add ``X-RateLimit-Limit``, ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``.

    >>> for name, value in rate_limit_headers(Answer(False, 100, 0, 60_000, 2_001, 7)):
    ...     print(name.decode(), value.decode())
    ratelimit-policy "default";q=100
    ratelimit "default";r=0;t=3
    retry-after 3
    """
    if answer.limit is None or answer.remaining is None:
        waits = not answer.allowed and answer.retry_after_ms is not None
        return [(b"retry-after", b"%d" % reset_s(answer))] if waits else []
    reset = reset_s(answer)
    quota, left = min(answer.limit, MAX_INTEGER), min(answer.remaining, MAX_INTEGER)
    headers = [
        (b"ratelimit-policy", b'"default";q=%d' % quota),
        (b"ratelimit", b'"default";r=%d;t=%d' % (left, reset)),
    ]
    if not answer.allowed and answer.retry_after_ms is not None:
        headers.append((b"retry-after", b"%d" % reset))
    if legacy:
        headers += (
            (b"x-ratelimit-limit", b"%d" % quota),
            (b"x-ratelimit-remaining", b"%d" % left),
            (b"x-ratelimit-reset", b"%d" % reset),
        )
    return headers


def exposed_fields(headers: Headers) -> Headers:
    """Return *headers*, with a field that lets scripts of another origin read them (CORS)."""
    return [*headers, (EXPOSE, _EXPOSED)] if headers else headers


def reset_s(answer: Answer) -> int:
    """Return the whole seconds until the same check can pass, or, if allowed, until the limit is whole again.

    >>> reset_s(Answer(False, 100, 0, 60_000, 2_001, 7)), reset_s(Answer(True, 100, 99, 60_000, 0, 7))
    (3, 60)
    """
    denied_ms = None if answer.allowed else answer.retry_after_ms
    return -(-(answer.reset_after_ms if denied_ms is None else denied_ms) // 1_000)
