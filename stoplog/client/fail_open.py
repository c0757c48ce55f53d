"""THE RULE: a check that the store does not decide in time is allowed, unless its caller asked for a denial.

A check waits for the store no longer than ``deadline_ms``. Within that time it gets one of two answers:

- the decision of the store, or
- a *degraded* answer: ``degraded`` is true, and ``reason`` is one of :data:`REASONS`.

A degraded answer *fails open* by default: ``allowed`` is true. A check with ``on_unavailable="deny"`` *fails
closed*: ``allowed`` is false, and ``retry_after_ms`` is :data:`RETRY_MS`. Both have the same reasons.
``on_unavailable`` never enters the record of the check, so the store decides both kinds alike.

Without a degraded answer, the gateway itself denies only a check that the store is certain to deny
(:mod:`stoplog.client.deny_cache`), and allows only one that the store has counted in advance
(:mod:`stoplog.client.lease_cache`). It also does so instead of a degraded answer.

Failing open or closed skips the decision, not the count. A check is published wherever that is possible, and
a published check counts against its client as soon as a worker reads it. So a check that failed closed may
still be charged.

==================  ==========================================  =========  ==================================
reason              the check was answered because              published  counted
==================  ==========================================  =========  ==================================
``deadline``        no reply came within ``deadline_ms``        yes        yes, later
``breaker_open``    its partition missed deadlines in a row     yes        yes, later
``broker``          no broker can be reached                    tried      if a broker returns in time
``overload``        the event loop of the gateway was late      yes        yes, later
``overload``        the same, Envoy: over 4 KiB, unusual JSON   no         no
``overload``        ``max_in_flight`` checks waited already     no         no
``unpublished``     its record could not be published           tried      only if a broker stored it anyway
``replayed``        its worker restarted; the answer is lost    yes        yes
``rejected_batch``  a worker refused it, or its whole batch     yes        no
``no_holds``        a reservation: its partition grants none    as a check  yes, in full
``stopping``        the gateway stopped while the check waited  yes        yes, later
``stopping``        the gateway had stopped before the check    no         no
``growing``         the number of partitions is growing         no         no
``internal_error``  a bug prevented the check                   maybe      maybe
==================  ==========================================  =========  ==================================

The rule is carried out in these places. Each takes its answer from :func:`degraded_answer`:

- :meth:`stoplog.client.batcher.Batcher.ask` answers at once if the circuit breaker of the partition is open,
  if too many checks wait, if the number of partitions is growing, or if the gateway has stopped.
- :class:`Deadlines` ends the wait of a batch; :class:`~stoplog.client.partition_queue.PartitionQueue` then
  answers its checks.
- :mod:`stoplog.client.circuit_breaker` decides when a partition's checks no longer wait.
- The routes of the gateway and :mod:`stoplog.asgi` catch unexpected exceptions (:data:`INTERNAL_ERROR`). An
  exception that a call of the SDK raises is no answer; its caller decides.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from stoplog.client.answer import Answer
from stoplog.errors import InvalidInput

if TYPE_CHECKING:
    from stoplog.client.pending_batch import PendingBatch

DEADLINE: Final = "deadline"
"""No reply came within ``deadline_ms``. The check was published and will be counted."""

BREAKER_OPEN: Final = "breaker_open"
"""The partition missed several deadlines in a row. The check was published without waiting for a reply."""

BROKER: Final = "broker"
"""No broker can be reached. The check is counted only if one returns within ``publish_timeout_ms``."""

OVERLOAD: Final = "overload"
"""The event loop was late: the check was published and will be counted. Those of Envoy's requests over 4 KiB,
and of requests to ``/json`` in an unusual form, are not published and never counted. Nor are checks that came
while ``max_in_flight`` checks were already waiting."""

UNPUBLISHED: Final = "unpublished"
"""The producer refused the record because its queue was full, and the check is never counted. Or no broker
acknowledged the record within ``publish_timeout_ms``, and the check is counted only if a broker stored it."""

REPLAYED: Final = "replayed"
"""A worker decided and counted the check, then restarted. The decision itself is lost."""

REJECTED_BATCH: Final = "rejected_batch"
"""The worker could not read the record, or refused the check: it belongs to another partition since their
number has grown. The check is not counted; the gateway logs the cause."""

NO_HOLDS: Final = "no_holds"
"""A reservation whose partition does not grant any yet, as far as the gateway knows: it has just started, or
workers of an older release are running. It was published as a check, which charges all of its cost. A
settlement was not published."""

STOPPING: Final = "stopping"
"""The gateway stopped while the check waited: it was published and will be counted. A check that comes after
the stop is neither published nor counted."""

GROWING: Final = "growing"
"""The number of partitions is growing (``stoplog topics grow``). The check was not published, and is never
counted. The few checks that waited when the step began were published."""

INTERNAL_ERROR: Final = "internal_error"
"""An unexpected exception, which is a bug, prevented the check. Its process logs it."""

REASONS: Final = (
    DEADLINE,
    BREAKER_OPEN,
    BROKER,
    OVERLOAD,
    UNPUBLISHED,
    REPLAYED,
    REJECTED_BATCH,
    NO_HOLDS,
    STOPPING,
    GROWING,
    INTERNAL_ERROR,
)
"""Every value of ``reason`` in a degraded answer."""

OnUnavailable: TypeAlias = Literal["allow", "deny"]
"""The answer to a check that the store does not decide: ``allow`` fails open, ``deny`` fails closed."""

ALLOW: Final = "allow"

DENY: Final = "deny"

RETRY_MS: Final = 1_000
"""Milliseconds after which a check that failed closed may be repeated. The store may answer again by then:
circuit breakers probe twice a second."""

FAIL_OPEN: Final = {reason: Answer(True, None, None, 0, 0, -1, True, reason) for reason in REASONS}
"""The degraded answer that allows, for each reason. Answers are frozen, so all callers share them."""

FAIL_CLOSED: Final = {reason: Answer(False, None, None, 0, RETRY_MS, -1, True, reason) for reason in REASONS}
"""The degraded answer that denies, for each reason."""


def degraded_answer(reason: str, fails_closed: bool) -> Answer:
    """Return the answer to a check without a decision of the store.

    Args:
        reason: One of :data:`REASONS`.
        fails_closed: Whether the check asked for a denial.

    >>> degraded_answer(DEADLINE, False).allowed, degraded_answer(DEADLINE, True).allowed
    (True, False)
    """
    return FAIL_CLOSED[reason] if fails_closed else FAIL_OPEN[reason]


def fails_closed(on_unavailable: str, field: str = "on_unavailable") -> bool:
    """Return whether *on_unavailable* asks for a denial.

    Raises:
        InvalidInput: It is neither ``allow`` nor ``deny``; names the *field*.
    """
    if on_unavailable == ALLOW:
        return False
    if on_unavailable == DENY:
        return True
    raise InvalidInput(field, f"not allow or deny, got {on_unavailable!r}", "use allow or deny")


class Deadlines:
    """The timers that end the wait for replies: one for each batch, however many checks it holds.

    The timer of a batch starts when its oldest check is asked, not when the batch is sent. A check that waits
    behind a slow batch therefore still fails open at its own deadline.

    Args:
        loop: Runs the timers.
        seconds: The deadline.
        on_deadline: Called with each batch whose deadline has passed.
    """

    def __init__(
        self, loop: AbstractEventLoop, seconds: float, on_deadline: Callable[[PendingBatch], None]
    ) -> None:
        self._loop = loop
        self._on_deadline = on_deadline
        self.seconds = seconds

    def start(self, batch: PendingBatch) -> None:
        """Start the timer of *batch*."""
        batch.timer = self._loop.call_later(self.seconds, self._on_timer, batch)

    def _on_timer(self, batch: PendingBatch) -> None:
        # Some loops run timers before callbacks from other threads. After a stall of the loop, replies that
        # came in time may be waiting there: let them be handled first.
        self._loop.call_soon(self._expire, batch, batch.timer)

    def _expire(self, batch: PendingBatch, timer: TimerHandle | None) -> None:
        if timer is None or batch.timer is not timer:  # answered meanwhile, or sent with a new timer
            return
        batch.timer = None
        self._on_deadline(batch)
