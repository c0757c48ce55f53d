"""Answer one request of Envoy: turn its descriptors into checks, and the answers into statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stoplog.asgi.rate_limit_headers import rate_limit_headers, reset_s
from stoplog.client.answer import Answer, answer_of
from stoplog.client.fail_open import DENY, INTERNAL_ERROR, OVERLOAD, OnUnavailable, degraded_answer
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput
from stoplog.policy import MAX_COST
from stoplog.wire.checks import Check
from stoplog_gateway.envoy.mapping import MAX_READ_IN_OVERLOAD, DescriptorMapping, Entries
from stoplog_gateway.envoy.messages import MAX_UINT32, OK, OVER_LIMIT, RateLimitResponse

MAX_DESCRIPTORS: Final = 100
MAX_ENTRIES: Final = 100
"""Entries per descriptor. Envoy's configuration lists each one, so real requests have a handful. A request
with 100 x 100 entries blocks the event loop for about 10 ms."""


class RateLimitService:
    """``ShouldRateLimit``.

    Each descriptor is an independent check: an allowed descriptor is charged even if another one is denied.
    A rule of the mapping may make its checks fail closed. A request that fails as a whole has no checks, so
    it fails closed if any rule of its domain does.

    Args:
        limiter: Limiter that answers the checks.
        mapping: Maps descriptors to clients.
        legacy_headers: Add the ``X-RateLimit-*`` header fields to the response.
    """

    def __init__(self, limiter: Limiter, mapping: DescriptorMapping, *, legacy_headers: bool) -> None:
        self._limiter = limiter
        self._mapping = mapping
        self._legacy_headers = legacy_headers

    async def decide(self, request: Any, on_unavailable: OnUnavailable = "allow") -> Any:
        """Return the ``RateLimitResponse`` for a ``RateLimitRequest``.

        Args:
            request: The request.
            on_unavailable: ``deny`` makes all its checks fail closed and overrides the mapping.

        Raises:
            InvalidInput: The request has no domain or no descriptors, a descriptor has no entries, or there
                are too many of either. Nothing was charged.
        """
        asked = self._checks(request)
        answers = await self._limiter.check_many(
            [check for check, _ in asked],
            on_unavailable=[DENY if on_unavailable == DENY else one for _, one in asked],
        )
        return self._response(answers)

    async def answer_at_once(self, request: Any) -> Any:
        """As :meth:`decide`, but without decisions, because there is no time for them.

        The checks are still published and counted, unless the request is large.

        Raises:
            InvalidInput: As :meth:`decide`. The entries of a large request are not looked at.
        """
        if request.ByteSize() > MAX_READ_IN_OVERLOAD:
            return self.answer_in_overload(request.domain, len(request.descriptors), fails_closed=False)
        pending = [
            self._limiter.answer_at_once(check, on_unavailable == DENY)
            for check, on_unavailable in self._checks(request)
        ]
        return self._response([one if isinstance(one, Answer) else answer_of(await one) for one in pending])

    def denial_after_failure(self, domain: str | bytes) -> Any | None:
        """Count and return the denial of a request of *domain* that failed as a whole.

        ``None`` if no rule of the domain fails closed.
        """
        denial = self.denial(domain)
        if denial is not None:
            self._limiter.metrics.count_degraded(INTERNAL_ERROR, True)
        return denial

    def answer_in_overload(self, domain: str, descriptors: int, *, fails_closed: bool) -> Any:
        """Return the response to a request whose descriptors there is no time to read.

        Its checks are not published. They fail closed if *fails_closed* is true or a rule of the domain does.

        Args:
            domain: Its domain.
            descriptors: The number of its descriptors.
            fails_closed: Whether they fail closed whatever the rules say.

        Raises:
            InvalidInput: As :meth:`decide`, but the entries are not looked at.
        """
        _require_count(domain, descriptors)
        return self._degrade([fails_closed or self._mapping.fails_closed(domain)] * descriptors)

    def map_in_overload(self, domain: str, descriptors: Sequence[Entries], *, fails_closed: bool) -> Any:
        """Return the response to a request whose descriptors there is time to map, but not to publish.

        Args:
            domain: Its domain.
            descriptors: The entries of each descriptor.
            fails_closed: Whether all descriptors fail closed, and not only those whose rule says so.

        Raises:
            InvalidInput: As :meth:`decide`.
        """
        _require_count(domain, len(descriptors))
        rules = []
        for index, entries in enumerate(descriptors):
            _require_entries(index, len(entries))
            rules.append(self._mapping.resolve(domain, entries).on_unavailable)
        return self._degrade([fails_closed or one == DENY for one in rules])

    def _degrade(self, closed: Sequence[bool]) -> Any:
        """Count checks that are not published, and return the response that allows or denies them."""
        metrics = self._limiter.metrics
        metrics.received += len(closed)
        metrics.uncounted += len(closed)
        for one in closed:
            metrics.count_degraded(OVERLOAD, one)
        return self._response([degraded_answer(OVERLOAD, one) for one in closed])

    def denial(self, domain: str | bytes) -> Any | None:
        """Return the denial of a request of *domain*; ``None`` if no rule of the domain fails closed."""
        if not self._mapping.fails_closed(domain):
            return None
        return self._response([degraded_answer(INTERNAL_ERROR, True)])

    def _response(self, answers: Sequence[Answer]) -> Any:
        over = any(not answer.allowed for answer in answers)
        response = RateLimitResponse(overall_code=OVER_LIMIT if over else OK)
        for answer in answers:
            _fill_status(response.statuses.add(), answer)
        for name, value in rate_limit_headers(_tightest(answers), legacy=self._legacy_headers):
            response.response_headers_to_add.add(key=name.decode(), value=value.decode())
        return response

    def _checks(self, request: Any) -> list[tuple[Check, OnUnavailable]]:
        _require_count(request.domain, len(request.descriptors))
        checks = []
        for index, descriptor in enumerate(request.descriptors):
            _require_entries(index, len(descriptor.entries))
            entries = [(entry.key, entry.value) for entry in descriptor.entries]
            client, plan, resource, on_unavailable = self._mapping.resolve(request.domain, entries)
            check = Check(client, _cost(request, descriptor), plan, resource)
            checks.append((check, on_unavailable))
        return checks


def _require_count(domain: str | bytes, descriptors: int) -> None:
    if not domain:
        raise InvalidInput("domain", "empty", "set it in Envoy's rate limit filter")
    if not 1 <= descriptors <= MAX_DESCRIPTORS:
        raise InvalidInput("descriptors", f"{descriptors} of them", f"send 1 to {MAX_DESCRIPTORS}")


def _require_entries(index: int, entries: int) -> None:
    if not 1 <= entries <= MAX_ENTRIES:
        raise InvalidInput(f"descriptors[{index}].entries", f"{entries} of them", f"send 1 to {MAX_ENTRIES}")


def _cost(request: Any, descriptor: Any) -> int:
    """Return the cost of a descriptor, capped at the maximum.

    Envoy allows traffic whose rate limit request fails, so a cost above the maximum must not be an error.
    Stoplog never refunds: a descriptor with negative hits costs 0.
    """
    if descriptor.is_negative_hits:
        return 0
    hits = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or 1
    return min(hits, MAX_COST)


def _fill_status(status: Any, answer: Answer) -> None:
    """Write *answer* into a ``DescriptorStatus``; an unlimited or degraded answer sets only the code."""
    status.code = OK if answer.allowed else OVER_LIMIT
    if answer.limit is not None and answer.remaining is not None:
        status.current_limit.requests_per_unit = min(answer.limit, MAX_UINT32)
        status.limit_remaining = min(answer.remaining, MAX_UINT32)
        status.duration_until_reset.seconds = reset_s(answer)


_FOREVER: Final = float("inf")


def _tightest(answers: Sequence[Answer]) -> Answer:
    """Return the answer for the response's header fields.

    A denial precedes an allowed answer. Among denials, the longest wait wins; among allowed answers, the
    smallest remaining count.
    """

    def tightness(answer: Answer) -> tuple[bool, float]:
        if not answer.allowed:
            return True, _FOREVER if answer.retry_after_ms is None else answer.retry_after_ms
        return False, -_FOREVER if answer.remaining is None else -answer.remaining

    return max(answers, key=tightness)
