"""Write answers as a ``RateLimitResponse``, for gRPC and as JSON.

An unlimited or degraded answer has only a code. Protobuf is not used: to build a message takes twice as long
as to write its bytes, and protobuf writes JSON in Python. The JSON has the same bytes as protobuf's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stoplog.asgi.rate_limit_headers import rate_limit_headers, reset_s
from stoplog.asgi.responses import JSON, Rendered
from stoplog.client.answer import Answer
from stoplog.client.listed import BLOCKED, NO_CLIENT
from stoplog_gateway.envoy.messages import MAX_UINT32

_FOREVER: Final = float("inf")


def encode_answers(answers: Sequence[Answer], *, legacy: bool) -> bytes:
    """Return the encoded ``RateLimitResponse``; *legacy* adds the ``X-RateLimit-*`` header fields to it.

    The length of each part is below 128, so it takes one byte.
    """
    parts = [b"\x08\1" if _all_allowed(answers) else b"\x08\2"]
    for answer in answers:
        status = b"\x08\1" if answer.allowed else b"\x08\2"
        if answer.limit is not None and answer.remaining is not None:
            limit, reset = _number(min(answer.limit, MAX_UINT32)), _number(reset_s(answer))
            status += b"\x12%c%b" % (len(limit), limit)
            if answer.remaining:
                status += b"\x18" + _varint(min(answer.remaining, MAX_UINT32))
            status += b"\x22%c%b" % (len(reset), reset)
        parts.append(b"\x12%c%b" % (len(status), status))
    for name, value in rate_limit_headers(_tightest(answers), legacy=legacy):
        size = len(name) + len(value) + 4
        parts.append(b"\x1a%c\x0a%c%b\x12%c%b" % (size, len(name), name, len(value), value))
    return b"".join(parts)


def _number(value: int) -> bytes:
    """Return a message whose first field is *value*."""
    return b"\x08" + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    if value < 0x80:
        return b"%c" % value
    if value < 0x4000:
        return b"%c%c" % (value & 0x7F | 0x80, value >> 7)
    return b"%c%b" % (value & 0x7F | 0x80, _varint(value >> 7))


def render_answers(answers: Sequence[Answer], *, legacy: bool) -> Rendered:
    """Return the HTTP response with the message in proto3 JSON.

    Its status is 200 if all are allowed, 403 if the client is blocked or has no one name, and otherwise 429.
    """
    allowed = _all_allowed(answers)
    fields = rate_limit_headers(_tightest(answers), legacy=legacy)
    statuses = b", ".join([_status(answer) for answer in answers])
    added = b", ".join(
        [b'{"key": "%b", "value": "%b"}' % (name, value.replace(b'"', b'\\"')) for name, value in fields]
    )
    content = b'{"overallCode": "%b", "statuses": [%b]%b}' % (
        b"OK" if allowed else b"OVER_LIMIT",
        statuses,
        b', "responseHeadersToAdd": [%b]' % added if fields else b"",
    )
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(content)), *fields]
    refused = any(answer.reason in (BLOCKED, NO_CLIENT) for answer in answers)
    return Rendered(200 if allowed else 403 if refused else 429, headers, content)


def _status(answer: Answer) -> bytes:
    """Return a ``DescriptorStatus`` in JSON, in which proto3 leaves out a number that is 0."""
    code = b"OK" if answer.allowed else b"OVER_LIMIT"
    if answer.limit is None or answer.remaining is None:
        return b'{"code": "%b"}' % code
    limit, remaining = min(answer.limit, MAX_UINT32), min(answer.remaining, MAX_UINT32)
    return b'{"code": "%b", "currentLimit": {%b}%b, "durationUntilReset": "%ds"}' % (
        code,
        b'"requestsPerUnit": %d' % limit if limit else b"",
        b', "limitRemaining": %d' % remaining if remaining else b"",
        reset_s(answer),
    )


def _all_allowed(answers: Sequence[Answer]) -> bool:
    return all(answer.allowed for answer in answers)


def _tightest(answers: Sequence[Answer]) -> Answer:
    """Return the answer for the response's header fields.

    A denial precedes an allowed answer. Among denials, the longest wait wins; among allowed answers, the
    smallest remaining count.
    """
    if len(answers) == 1:
        return answers[0]

    def tightness(answer: Answer) -> tuple[bool, float]:
        if not answer.allowed:
            return True, _FOREVER if answer.retry_after_ms is None else answer.retry_after_ms
        return False, -_FOREVER if answer.remaining is None else -answer.remaining

    return max(answers, key=tightness)
