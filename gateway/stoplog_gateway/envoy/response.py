"""Write answers as a ``RateLimitResponse``, with protobuf or as JSON.

An unlimited or degraded answer has only a code. The JSON has the same bytes as protobuf's. Protobuf writes it
in Python, which takes several times as long as the rest of a check.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from stoplog.asgi.rate_limit_headers import rate_limit_headers, reset_s
from stoplog.asgi.responses import JSON, Rendered
from stoplog.client.answer import Answer
from stoplog_gateway.envoy.messages import MAX_UINT32, OK, OVER_LIMIT, RateLimitResponse

_FOREVER: Final = float("inf")
_to_json: Final = json.JSONEncoder().encode


def message_of(answers: Sequence[Answer], *, legacy: bool) -> Any:
    """Return the ``RateLimitResponse``; *legacy* adds the ``X-RateLimit-*`` header fields to it."""
    response = RateLimitResponse(overall_code=OK if _all_allowed(answers) else OVER_LIMIT)
    for answer in answers:
        status = response.statuses.add()
        status.code = OK if answer.allowed else OVER_LIMIT
        if answer.limit is not None and answer.remaining is not None:
            status.current_limit.requests_per_unit = min(answer.limit, MAX_UINT32)
            status.limit_remaining = min(answer.remaining, MAX_UINT32)
            status.duration_until_reset.seconds = reset_s(answer)
    for name, value in rate_limit_headers(_tightest(answers), legacy=legacy):
        response.response_headers_to_add.add(key=name.decode(), value=value.decode())
    return response


def render_answers(answers: Sequence[Answer], *, legacy: bool) -> Rendered:
    """Return the HTTP response with :func:`message_of` in proto3 JSON: 200 if all are allowed, or 429."""
    allowed = _all_allowed(answers)
    fields = rate_limit_headers(_tightest(answers), legacy=legacy)
    message: dict[str, Any] = {
        "overallCode": "OK" if allowed else "OVER_LIMIT",
        "statuses": [_status(answer) for answer in answers],
    }
    if fields:
        message["responseHeadersToAdd"] = [
            {"key": name.decode(), "value": value.decode()} for name, value in fields
        ]
    content = _to_json(message).encode()
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(content)), *fields]
    return Rendered(200 if allowed else 429, headers, content)


def _status(answer: Answer) -> dict[str, Any]:
    """Return a ``DescriptorStatus``, in which proto3 leaves out a number that is 0."""
    status: dict[str, Any] = {"code": "OK" if answer.allowed else "OVER_LIMIT"}
    if answer.limit is not None and answer.remaining is not None:
        limit = min(answer.limit, MAX_UINT32)
        status["currentLimit"] = {"requestsPerUnit": limit} if limit else {}
        if answer.remaining:
            status["limitRemaining"] = min(answer.remaining, MAX_UINT32)
        status["durationUntilReset"] = f"{reset_s(answer)}s"
    return status


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
