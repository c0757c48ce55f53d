"""What a caller of a check gets back."""

from __future__ import annotations

from typing import Final

import msgspec

from stoplog.wire.replies import Decision

DEADLINE: Final = "deadline"
"""No reply within ``deadline_ms``; the check was published and will be counted."""

BREAKER_OPEN: Final = "breaker_open"
"""Its partition missed several deadlines in a row: not waited for, but published."""

BROKER: Final = "broker"
"""No broker can be reached: not waited for; counted only if one is back within ``publish_timeout_ms``."""

OVERLOAD: Final = "overload"
"""``max_in_flight`` checks were waiting already; not published, never counted."""

UNPUBLISHED: Final = "unpublished"
"""The producer refused the record (its queue was full), and it is never counted; or it was given up after
``publish_timeout_ms``, and is counted only if a broker had it all the same."""

REPLAYED: Final = "replayed"
"""Decided and counted before its worker restarted; the answer itself is lost."""

REJECTED_BATCH: Final = "rejected_batch"
"""The worker could not read the record it came in; not counted, the gateway's log says why."""

STOPPING: Final = "stopping"
"""The gateway was stopped while it waited: published, and will be counted. Asked after that: neither."""

REASONS: Final = (
    DEADLINE,
    BREAKER_OPEN,
    BROKER,
    OVERLOAD,
    UNPUBLISHED,
    REPLAYED,
    REJECTED_BATCH,
    STOPPING,
)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer to one check: the store's, or a degraded one when the store did not answer.

    Attributes:
        allowed: Whether the cost may be spent; always true when degraded.
        limit: Requests that the limit nearest to being used up allows in its window; ``None`` when
            unlimited or degraded.
        remaining: Requests left of that limit; ``None`` when unlimited or degraded.
        reset_after_ms: Milliseconds until that limit is whole again if nothing more is spent.
        retry_after_ms: Milliseconds until the same check would pass; 0 if allowed, ``None`` if waiting
            cannot help (a cost above the limit).
        policy_version: Offset in ``limit-updates`` of the policy that decided; -1 for the built-in
            default and when degraded.
        degraded: Let through without the store's decision.
        reason: Why it is degraded, one of :data:`REASONS`; ``None`` otherwise.
    """

    allowed: bool
    limit: int | None
    remaining: int | None
    reset_after_ms: int
    retry_after_ms: int | None
    policy_version: int
    degraded: bool = False
    reason: str | None = None


def from_decision(decision: Decision) -> Answer:
    """The store's answer."""
    return Answer(
        decision.allowed,
        decision.limit,
        decision.remaining,
        decision.reset_after_ms,
        decision.retry_after_ms,
        decision.policy_version,
    )


LET_THROUGH: Final = {reason: Answer(True, None, None, 0, 0, -1, True, reason) for reason in REASONS}
"""The degraded answer of each reason: frozen, hence shared."""
