"""One question of Envoy's answered: descriptors to checks, and answers to statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stoplog.asgi.rate_limit_headers import rate_limit_headers, reset_s
from stoplog.client.answer import Answer
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput
from stoplog.policy import MAX_COST
from stoplog.wire.checks import Check
from stoplog_gateway.envoy.mapping import Mapping
from stoplog_gateway.envoy.messages import MAX_UINT32, OK, OVER_LIMIT, RateLimitResponse

MAX_DESCRIPTORS: Final = 100
MAX_ENTRIES: Final = 100
"""Of one descriptor. Envoy's configuration has a line for each, so a handful; a question of as many as these
allow takes the event loop some 10 ms."""


class RateLimits:
    """``ShouldRateLimit``.

    Each descriptor is one check and is decided on its own: those whose limits allow it are charged, even if
    another one's do not.

    Args:
        limiter: What is asked.
        mapping: Who is meant by a descriptor.
        legacy_headers: Callers are told ``X-RateLimit-*`` too.
    """

    def __init__(self, limiter: Limiter, mapping: Mapping, *, legacy_headers: bool) -> None:
        self._limiter = limiter
        self._mapping = mapping
        self._legacy = legacy_headers

    async def decide(self, request: Any) -> Any:
        """The ``RateLimitResponse`` to a ``RateLimitRequest``.

        Raises:
            InvalidInput: no domain, no descriptors, one without entries, or too many of either; nothing was
                charged.
        """
        answers = await self._limiter.check_many(self._checks(request))
        over = any(not answer.allowed for answer in answers)
        response = RateLimitResponse(overall_code=OVER_LIMIT if over else OK)
        for answer in answers:
            _tell(answer, response.statuses.add())
        for name, value in rate_limit_headers(_tightest(answers), legacy=self._legacy):
            response.response_headers_to_add.add(key=name.decode(), value=value.decode())
        return response

    def _checks(self, request: Any) -> list[Check]:
        if not request.domain:
            raise InvalidInput("domain", "empty", "set it in Envoy's rate limit filter")
        if not 1 <= len(request.descriptors) <= MAX_DESCRIPTORS:
            raise InvalidInput(
                "descriptors", f"{len(request.descriptors)} of them", f"send 1 to {MAX_DESCRIPTORS}"
            )
        checks = []
        for index, descriptor in enumerate(request.descriptors):
            if not 1 <= len(descriptor.entries) <= MAX_ENTRIES:
                raise InvalidInput(
                    f"descriptors[{index}].entries",
                    f"{len(descriptor.entries)} of them",
                    f"send 1 to {MAX_ENTRIES}",
                )
            entries = [(entry.key, entry.value) for entry in descriptor.entries]
            client, plan, resource = self._mapping.who(request.domain, entries)
            checks.append(Check(client, _cost(request, descriptor), plan, resource))
        return checks


def _cost(request: Any, descriptor: Any) -> int:
    """What a descriptor spends, at most what a check can: refused, it would pass Envoy.

    Nothing is ever given back: who asks for that only looks.
    """
    if descriptor.is_negative_hits:
        return 0
    asked = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or 1
    return min(asked, MAX_COST)


def _tell(answer: Answer, status: Any) -> None:
    """Write *answer* into a ``DescriptorStatus``; of one unlimited or degraded there is only the code."""
    status.code = OK if answer.allowed else OVER_LIMIT
    if answer.limit is not None and answer.remaining is not None:
        status.current_limit.requests_per_unit = min(answer.limit, MAX_UINT32)
        status.limit_remaining = min(answer.remaining, MAX_UINT32)
        status.duration_until_reset.seconds = reset_s(answer)


_FOREVER: Final = float("inf")


def _tightest(answers: Sequence[Answer]) -> Answer:
    """The one that a caller is told of: a denial before the rest, of these the one that lasts longest."""

    def tightness(answer: Answer) -> tuple[bool, float]:
        if not answer.allowed:
            return True, _FOREVER if answer.retry_after_ms is None else answer.retry_after_ms
        return False, -_FOREVER if answer.remaining is None else -answer.remaining

    return max(answers, key=tightness)
