"""The answer to a check, and the forms in which it is handed over."""

from __future__ import annotations

from asyncio import Future
from typing import Any, TypeAlias

import msgspec

from stoplog.errors import InvalidInput
from stoplog.wire.holds import Grant
from stoplog.wire.replies import Decision, HeldDecision


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer to one check: the store's decision, or a degraded answer if the store gave none in time.

    Attributes:
        allowed: Whether the client may spend the cost. When degraded: true, unless the check asked to fail
            closed.
        limit: Requests that the limit nearest to being used up allows in its window; ``None`` when
            unlimited or degraded.
        remaining: Requests left of that limit; ``None`` when unlimited or degraded.
        reset_after_ms: Milliseconds until that limit is unused again, provided that the client spends
            nothing.
        retry_after_ms: Milliseconds until the same check would be allowed; 0 if allowed, ``None`` if waiting
            cannot help (the cost exceeds the limit). For a check that failed closed: milliseconds after which
            the caller may try again.
        policy_version: Offset in ``limit-updates`` of the policy that decided; -1 for the built-in
            default and when degraded.
        degraded: Whether the check was answered without a decision of the store.
        reason: The reason for a degraded answer, one of :data:`stoplog.client.fail_open.REASONS`;
            ``blocked`` if the client's address is blocked, ``no_client`` if nothing names the client
            (:mod:`stoplog.client.listed`); ``None`` otherwise.
    """

    allowed: bool
    limit: int | None
    remaining: int | None
    reset_after_ms: int
    retry_after_ms: int | None
    policy_version: int
    degraded: bool = False
    reason: str | None = None


class HeldAnswer(Answer, frozen=True, gc=False):
    """The store's answer to a check that asks for a reservation, or settles one.

    Attributes:
        grant: The hold that was granted; ``None`` if there is none.
        settled: The answer to each settlement (:data:`stoplog.wire.replies.Settled`).
        detail: The reason of a denial that no limit caused; else empty.
    """

    grant: Grant | None = None
    settled: tuple[int, ...] = ()
    detail: str = ""


Outcome: TypeAlias = Answer | InvalidInput
"""The result of a future that waits for an answer. An error is a value here, not the future's exception:
asyncio would log an exception that nobody retrieves, and the caller may have gone."""

PendingAnswer: TypeAlias = Answer | Future[Outcome]
"""An answer that is already known, or the future that will resolve to it."""


def from_decision(decision: Decision) -> Answer:
    """Return the answer that carries the store's *decision*."""
    return Answer(
        decision.allowed,
        decision.limit,
        decision.remaining,
        decision.reset_after_ms,
        decision.retry_after_ms,
        decision.policy_version,
    )


def from_held_decision(decision: HeldDecision) -> HeldAnswer:
    """Return the answer that carries the store's *decision* and what it says about holds."""
    fields: dict[str, Any] = {name: getattr(decision, name) for name in Decision.__struct_fields__}
    return HeldAnswer(**fields, grant=decision.grant, settled=decision.settled, detail=decision.reason)


def answer_of(outcome: Outcome) -> Answer:
    """Return the answer in *outcome*.

    Raises:
        InvalidInput: A worker refused the check.
    """
    if isinstance(outcome, InvalidInput):
        raise outcome
    return outcome


def unwrap(pending: PendingAnswer) -> Answer:
    """Return the answer of *pending*, whose future (if it is one) must be done.

    Raises:
        InvalidInput: A worker refused the check.
    """
    return pending if isinstance(pending, Answer) else answer_of(pending.result())


def is_degraded(pending: PendingAnswer) -> bool:
    """Return whether the store has not decided *pending*, whose future (if it is one) must be done."""
    outcome = pending if isinstance(pending, Answer) else pending.result()
    return isinstance(outcome, Answer) and outcome.degraded
