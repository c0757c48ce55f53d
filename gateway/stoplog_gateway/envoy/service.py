"""Answer one request of Envoy: turn its descriptors into checks, and the answers into statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer, PendingAnswer, answer_of
from stoplog.client.fail_open import DENY, INTERNAL_ERROR, OVERLOAD, OnUnavailable, degraded_answer
from stoplog.client.limiter import Limiter
from stoplog.client.listed import answer_listed
from stoplog.wire.checks import Check
from stoplog_gateway.envoy.call import RateLimitCall, call_of, require_count, require_entries
from stoplog_gateway.envoy.mapping import MAX_READ_IN_OVERLOAD, CheckTarget, DescriptorMapping, Entries
from stoplog_gateway.envoy.response import encode_answers, render_answers


class RateLimitService:
    """``ShouldRateLimit``.

    Each descriptor is an independent check: an allowed descriptor is charged even if another one is denied.
    A descriptor with negative hits is a refund, and one that was sent after the response is a charge. No
    limit judges them, so they are always allowed.

    A request from an address that is blocked or exempt is no check: all its descriptors are denied or
    allowed, and none is charged.

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

    def ask(
        self, call: RateLimitCall, on_unavailable: OnUnavailable = "allow", *, has_time: bool = True
    ) -> list[PendingAnswer]:
        """Return the answer to each descriptor of *call*, or futures for them. Do not wait.

        Args:
            call: The request.
            on_unavailable: ``deny`` makes all its checks fail closed and overrides the mapping.
            has_time: Whether there is time for decisions. Otherwise, the checks are only published.
        """
        verdict = self._mapping.verdict(descriptor.entries for descriptor in call.descriptors)
        if (listed := answer_listed(verdict, self._limiter.metrics)) is not None:
            return [listed] * len(call.descriptors)
        ask = self._limiter.ask if has_time else self._limiter.answer_at_once
        pending: list[PendingAnswer] = []
        for (check, target), descriptor in zip(self.checks(call), call.descriptors, strict=True):
            if descriptor.is_refund or target.after_response:
                adjust = self._limiter.ask_refund if descriptor.is_refund else self._limiter.ask_charge
                adjusted = adjust(check)
                pending.append(adjusted if has_time else degraded_answer(OVERLOAD, False))
            else:
                pending.append(ask(check, DENY in (on_unavailable, target.on_unavailable)))
        return pending

    def checks(self, call: RateLimitCall) -> list[tuple[Check, CheckTarget]]:
        """Return the check of each descriptor, and what it was made of."""
        checks = []
        for descriptor in call.descriptors:
            target = self._mapping.resolve(call.domain, descriptor.entries)
            checks.append((Check(target.client, descriptor.cost, target.plan, target.resource), target))
        return checks

    async def decide(self, call: RateLimitCall, on_unavailable: OnUnavailable = "allow") -> list[Answer]:
        """Return the answer to each descriptor of *call*. The arguments are those of :meth:`ask`."""
        return await _all(self.ask(call, on_unavailable))

    async def answer_at_once(self, message: Any) -> list[Answer]:
        """Return the answers to a ``RateLimitRequest`` for whose decisions there is no time.

        The checks are still published and counted, unless the request is large.

        Raises:
            InvalidInput: As :func:`~stoplog_gateway.envoy.call.call_of`. The entries of a large request are
                not looked at.
        """
        if message.ByteSize() > MAX_READ_IN_OVERLOAD:
            return self.answer_in_overload(message.domain, len(message.descriptors), fails_closed=False)
        return await _all(self.ask(call_of(message), has_time=False))

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """Return the encoded ``RateLimitResponse`` with *answers*."""
        return encode_answers(answers, legacy=self._legacy_headers)

    def render(self, answers: Sequence[Answer]) -> Rendered:
        """Return the HTTP response with *answers*."""
        return render_answers(answers, legacy=self._legacy_headers)

    def denial_after_failure(self, domain: str | bytes) -> list[Answer] | None:
        """Count and return the denial of a request of *domain* that failed as a whole.

        ``None`` if no rule of the domain fails closed.
        """
        denial = self.denial(domain)
        if denial is not None:
            self._limiter.metrics.count_degraded(INTERNAL_ERROR, True)
        return denial

    def answer_in_overload(self, domain: str, descriptors: int, *, fails_closed: bool) -> list[Answer]:
        """Return the answers to a request whose descriptors there is no time to read.

        Its checks are not published. They fail closed if *fails_closed* is true or a rule of the domain does.

        Args:
            domain: Its domain.
            descriptors: The number of its descriptors.
            fails_closed: Whether they fail closed whatever the rules say.

        Raises:
            InvalidInput: As :func:`~stoplog_gateway.envoy.call.call_of`, but the entries are not looked at.
        """
        require_count(domain, descriptors)
        return self._degrade([fails_closed or self._mapping.fails_closed(domain)] * descriptors)

    def map_in_overload(
        self, domain: str, descriptors: Sequence[Entries], *, fails_closed: bool
    ) -> list[Answer]:
        """Return the answers to a request whose descriptors there is time to map, but not to publish.

        Args:
            domain: Its domain.
            descriptors: The entries of each descriptor.
            fails_closed: Whether all descriptors fail closed, and not only those whose rule says so.

        Raises:
            InvalidInput: As :func:`~stoplog_gateway.envoy.call.call_of`.
        """
        require_count(domain, len(descriptors))
        rules = []
        for index, entries in enumerate(descriptors):
            require_entries(index, len(entries))
            rules.append(self._mapping.resolve(domain, entries).on_unavailable)
        if (listed := answer_listed(self._mapping.verdict(descriptors), self._limiter.metrics)) is not None:
            return [listed] * len(descriptors)
        return self._degrade([fails_closed or one == DENY for one in rules])

    def _degrade(self, closed: Sequence[bool]) -> list[Answer]:
        """Count checks that are not published, and return the answers that allow or deny them."""
        metrics = self._limiter.metrics
        metrics.received += len(closed)
        metrics.uncounted += len(closed)
        for one in closed:
            metrics.count_degraded(OVERLOAD, one)
        return [degraded_answer(OVERLOAD, one) for one in closed]

    def denial(self, domain: str | bytes) -> list[Answer] | None:
        """Return the denial of a request of *domain*; ``None`` if no rule of the domain fails closed."""
        return [degraded_answer(INTERNAL_ERROR, True)] if self._mapping.fails_closed(domain) else None


async def _all(pending: Sequence[PendingAnswer]) -> list[Answer]:
    return [one if isinstance(one, Answer) else answer_of(await one) for one in pending]
