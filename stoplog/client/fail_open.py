"""THE RULE: a check that the store does not decide in time is allowed, and its answer states that.

A check waits for the store no longer than ``deadline_ms``. Within that time it gets one of two answers:

- the decision of the store, or
- a *degraded* answer: ``allowed`` is true, ``degraded`` is true, and ``reason`` is one of :data:`REASONS`.

The gateway itself denies only a check that the store is certain to deny (:mod:`stoplog.client.deny_cache`).
Such a denial is not degraded.

Failing open skips the decision, not the count. A check is published wherever that is possible, and a
published check counts against its client as soon as a worker reads it.

==================  ==========================================  =========  ==================================
reason              the check was answered because              published  counted
==================  ==========================================  =========  ==================================
``deadline``        no reply came within ``deadline_ms``        yes        yes, later
``breaker_open``    its partition missed deadlines in a row     yes        yes, later
``broker``          no broker can be reached                    tried      if a broker returns in time
``overload``        ``max_in_flight`` checks waited already     no         no
``unpublished``     its record could not be published           tried      only if a broker stored it anyway
``replayed``        its worker restarted; the answer is lost    yes        yes
``rejected_batch``  a worker could not read its batch           yes        no
``stopping``        the gateway stopped while the check waited  yes        yes, later
``stopping``        the gateway had stopped before the check    no         no
==================  ==========================================  =========  ==================================

The rule is carried out in three places. Each uses the reasons and answers of this module:

- :meth:`stoplog.client.batcher.Batcher.ask` answers at once if the circuit breaker of the partition is open,
  if too many checks wait, or if the gateway has stopped.
- :class:`Deadlines` ends the wait of a batch; :class:`~stoplog.client.partition_queue.PartitionQueue` then
  answers its checks.
- :mod:`stoplog.client.circuit_breaker` decides when a partition's checks no longer wait.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stoplog.client.answer import Answer

if TYPE_CHECKING:
    from stoplog.client.pending_batch import PendingBatch

DEADLINE: Final = "deadline"
"""No reply came within ``deadline_ms``. The check was published and will be counted."""

BREAKER_OPEN: Final = "breaker_open"
"""The partition missed several deadlines in a row. The check was published without waiting for a reply."""

BROKER: Final = "broker"
"""No broker can be reached. The check is counted only if one returns within ``publish_timeout_ms``."""

OVERLOAD: Final = "overload"
"""``max_in_flight`` checks were already waiting. The check was not published and is never counted."""

UNPUBLISHED: Final = "unpublished"
"""The producer refused the record because its queue was full, and the check is never counted. Or no broker
acknowledged the record within ``publish_timeout_ms``, and the check is counted only if a broker stored it."""

REPLAYED: Final = "replayed"
"""A worker decided and counted the check, then restarted. The decision itself is lost."""

REJECTED_BATCH: Final = "rejected_batch"
"""The worker could not read the record. The check is not counted; the gateway logs the cause."""

STOPPING: Final = "stopping"
"""The gateway stopped while the check waited: it was published and will be counted. A check that comes after
the stop is neither published nor counted."""

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
"""Every value of ``reason`` in a degraded answer."""

FAIL_OPEN: Final = {reason: Answer(True, None, None, 0, 0, -1, True, reason) for reason in REASONS}
"""The degraded answer for each reason. Answers are frozen, so all callers share them."""


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
