"""The header fields that tell a caller how it stands: ``RateLimit-Policy``, ``RateLimit``, ``Retry-After``.

Syntax of draft-ietf-httpapi-ratelimit-headers-11 (structured fields, RFC 9651). The draft's optional
window is left out: an answer knows the limit nearest to being used up, not how long its window is.

The older ``X-RateLimit-*`` are no standard; of what is in use, ours are plain integers, and the reset is in
seconds from now, as ``RateLimit`` has it.
"""

from __future__ import annotations

from typing import Final

from stoplog.client.answer import Answer

Headers = list[tuple[bytes, bytes]]
"""As ASGI wants them: names in lower case."""

MAX_INTEGER: Final = 999_999_999_999_999
"""The largest integer a structured field can hold; a limit may be larger, and is then shown as this."""


def rate_limit_headers(answer: Answer, *, legacy: bool = False) -> Headers:
    """The fields of one answer; none where nothing is counted or nothing is known (unlimited, degraded).

    ``t`` is when the limit is whole again, except on a denial that waiting can help: the draft wants it
    to say the same as ``Retry-After`` there. Seconds are rounded up, so that who waits them has waited
    long enough.

    Args:
        answer: The store's, or a degraded one.
        legacy: With ``X-RateLimit-Limit``, ``-Remaining`` and ``-Reset`` too.

    >>> for name, value in rate_limit_headers(Answer(False, 100, 0, 60_000, 2_001, 7)):
    ...     print(name.decode(), value.decode())
    ratelimit-policy "default";q=100
    ratelimit "default";r=0;t=3
    retry-after 3
    """
    if answer.limit is None or answer.remaining is None:
        return []
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


def reset_s(answer: Answer) -> int:
    """Whole seconds until waiting has helped: until the same check passes, else until the limit is whole.

    >>> reset_s(Answer(False, 100, 0, 60_000, 2_001, 7)), reset_s(Answer(True, 100, 99, 60_000, 0, 7))
    (3, 60)
    """
    denied_ms = None if answer.allowed else answer.retry_after_ms
    return -(-(answer.reset_after_ms if denied_ms is None else denied_ms) // 1_000)
