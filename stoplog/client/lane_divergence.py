"""The second answer to a batch: with more than one lane, every lane's worker answers every batch.

The first answer has been given to the callers. Any other is only compared with it: the lanes fold the same
log, so they must agree, and if they do not, one of them has wrong counters.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from stoplog.client.metrics import Metrics
from stoplog.log_throttle import LogThrottle
from stoplog.wire.replies import Reply

log = logging.getLogger(__name__)

KEPT_ANSWERS: Final = 65_536
"""Answers kept over all partitions, 100 to 200 bytes each; a reply counts as :data:`REPLY_COST` more."""

REPLY_COST: Final = 4

QUIET_S: Final = 10.0
"""Between two lines on divergence in the log: lanes that differ may differ in every batch."""

_SHOWN: Final = 200
"""Characters of an answer in the log: an error may quote a record."""


class Answered:
    """The first replies to the batches last answered, by number, until their partition needs the room.

    Args:
        metrics: Counts divergence.
        partitions: Of ``checks``; each has an equal share of the room, so that a busy one takes none of
            another's.
        clock: Seconds, monotonic.
    """

    __slots__ = ("_metrics", "_numbers", "_replies", "_room", "_throttle")

    def __init__(self, metrics: Metrics, partitions: int, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._replies: dict[int, tuple[int, Reply]] = {}
        self._numbers: list[deque[tuple[int, int]]] = [deque() for _ in range(partitions)]
        self._room = [KEPT_ANSWERS // partitions] * partitions
        self._throttle = LogThrottle(QUIET_S, clock)

    def keep(self, partition: int, reply: Reply) -> None:
        """Note the first reply to a batch of *partition*."""
        cost = len(reply.answers) + REPLY_COST
        numbers = self._numbers[partition]
        room = self._room[partition] - cost
        while room < 0 and numbers:
            number, freed = numbers.popleft()
            self._replies.pop(number, None)
            room += freed
        self._room[partition] = room
        numbers.append((reply.number, cost))
        self._replies[reply.number] = (partition, reply)

    def compare(self, reply: Reply) -> None:
        """Hold another reply to a batch against the first; one that is not kept (any more) is passed over.

        Checks that either lane had judged before, in a replay, have no answer in its reply: they say
        nothing. A batch is found to diverge once, however many replies it gets.
        """
        found = self._replies.get(reply.number)
        if found is None:
            return
        partition, first = found
        if (at := _difference(first, reply)) is not None:
            del self._replies[reply.number]
            self._metrics.divergence += 1
            self._tell(partition, first, reply, at)

    def _tell(self, partition: int, first: Reply, second: Reply, at: int) -> None:
        if (suppressed := self._throttle.admit()) is None:
            return
        log.error(
            "two lanes answered differently: batch %s of partition %s (offset %s; %s), check %s: the first "
            "said %s, another %s%s. One lane's counters are wrong, or its workers are of another version or "
            "were first started with another STOPLOG_DEFAULT_LIMITS: `stoplog verify` tells which",
            first.number,
            partition,
            first.offset,
            second.offset,
            at,
            _shown(first, at),
            _shown(second, at),
            suppressed,
        )


def _difference(first: Reply, second: Reply) -> int | None:
    """Index of the first check that the two answer differently; ``None``: they agree."""
    if first.error != second.error:
        return 0
    if first.answers == second.answers:
        return None
    for at, (one, other) in enumerate(zip(first.answers, second.answers, strict=False)):
        if one is not None and other is not None and one != other:
            return at
    shorter, longer = sorted((len(first.answers), len(second.answers)))
    return shorter if shorter < longer else None


def _shown(reply: Reply, at: int) -> str:
    what = reply.error or (reply.answers[at] if at < len(reply.answers) else "nothing")
    return f"{what!s:.{_SHOWN}}"
