"""THE RULE: a check that the store does not decide in time is allowed, and its answer says so.

A caller never waits longer than ``deadline_ms``. Within that time a check gets one of two answers:

- the decision of the store, or
- a *degraded* answer: ``allowed`` is true, ``degraded`` is true, and ``reason`` is one of :data:`REASONS`.

One kind of check is denied without the store: a check that the deny cache proves the store would deny
(:mod:`stoplog.client.deny_cache`). Such an answer is a decision, and is not degraded.

Failing open skips the decision, not the count. A check is published wherever that is possible, and a published
check counts against its client as soon as a worker reads it.

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

- :meth:`stoplog.client.batcher.Batcher.ask` answers at once when there is nothing to wait for: the circuit breaker
  of the partition is open, too many checks wait, or the gateway has stopped.
- :class:`Deadlines` ends the wait of a batch; :mod:`stoplog.client.partition_queue` then answers its checks.
- :mod:`stoplog.client.circuit_breaker` decides when a partition's checks no longer wait.
"""

from __future__ import annotations

from typing import Final

from stoplog.client.answer import Answer

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
