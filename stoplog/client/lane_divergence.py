"""Compare the further replies to a batch with the first one.

With several lanes, one worker of each lane replies to every batch. The first reply answers the callers. Every
further reply is compared with it: all lanes process the same log, so their replies must agree. If two replies
differ, one of the lanes has wrong counters.

With one lane, a second reply is expected only while a partition changes hands. It then equals the first one.
A second reply that differs was not written by a worker of that lane.
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
"""Answers kept over all partitions, 100 to 200 bytes each. A reply costs :data:`REPLY_COST` more."""

REPLY_COST: Final = 4
"""Cost of a reply apart from its answers, counted in answers."""

LOG_PAUSE_S: Final = 10.0
"""Seconds between two lines about divergence in the log. Lanes that differ may differ in every batch."""

SAME: Final = "same"
DIFFERENT: Final = "different"
UNKNOWN: Final = "unknown"
"""How a second reply compares with the first: ``unknown`` if the first is not kept, or never came."""

_TWO_LANES: Final = (
    "two lanes answered differently",
    "Either the counters of one lane are wrong, or its workers have another version or were first started "
    "with other STOPLOG_DEFAULT_LIMITS. `stoplog verify` shows which",
)
_TWO_REPLIES: Final = (
    "a batch got two different replies, although there is one lane",
    "One of them is not from a worker of this system: see that only workers may write to `replies`, and that "
    "no other system uses this Kafka's topics",
)

_MAX_SHOWN: Final = 200
"""Characters of an answer in the log. An error may quote a record."""


class DivergenceDetector:
    """Keeps the first replies to recent batches, and compares further replies with them.

    Args:
        metrics: Counts batches that diverge, and second replies where there is one lane.
        partitions: Number of partitions of ``checks``. Each has an equal share of the memory, so a busy
            partition takes none of another's.
        clock: Returns monotonic seconds.
    """

    __slots__ = ("_kept", "_metrics", "_replies", "_room", "_throttle", "lanes")

    def __init__(self, metrics: Metrics, partitions: int, clock: Callable[[], float]) -> None:
        self.lanes = 0
        """Lanes with a worker that is alive; 0 until a worker's heartbeat has arrived."""
        self._metrics = metrics
        self._replies: dict[int, tuple[int, Reply]] = {}
        self._kept: list[deque[tuple[int, int]]] = [deque() for _ in range(partitions)]
        self._room = [KEPT_ANSWERS // partitions] * partitions
        self._throttle = LogThrottle(LOG_PAUSE_S, clock)

    def remember(self, partition: int, reply: Reply) -> None:
        """Keep the first reply to a batch of *partition*, and drop the oldest replies if there is no room."""
        cost = len(reply.answers) + REPLY_COST
        kept = self._kept[partition]
        room = self._room[partition] - cost
        while room < 0 and kept:
            number, freed = kept.popleft()
            self._replies.pop(number, None)
            room += freed
        self._room[partition] = room
        kept.append((reply.number, cost))
        self._replies[reply.number] = (partition, reply)

    def complete(self, reply: Reply) -> None:
        """Keep *reply*, to which further lanes have added answers, in place of the one with its number.

        That one may not be kept any more: it was dropped, or has diverged.
        """
        found = self._replies.get(reply.number)
        if found is not None:
            self._replies[reply.number] = (found[0], reply)

    def compare(self, reply: Reply) -> None:
        """Compare a further reply with the first one; if that is not kept, no difference can be found.

        A check that a lane decided before a restart has no answer in that lane's reply, so it is not
        compared. A batch is counted once, however many replies differ.
        """
        found = self._replies.get(reply.number)
        if found is None:
            if self.lanes == 1:
                self._metrics.second_replies[UNKNOWN] += 1
            return
        partition, first = found
        index = _first_difference(first, reply)
        if self.lanes == 1:
            self._metrics.second_replies[SAME if index is None else DIFFERENT] += 1
        if index is not None:
            del self._replies[reply.number]
            if self.lanes != 1:
                self._metrics.divergence += 1
            self._log(partition, first, reply, index)

    def _log(self, partition: int, first: Reply, second: Reply, index: int) -> None:
        if (suppressed := self._throttle.admit()) is None:
            return
        what, remedy = _TWO_REPLIES if self.lanes == 1 else _TWO_LANES
        log.error(
            "%s: batch %s of partition %s (offsets %s and %s), check %s: the first answer is %s, another is "
            "%s%s. %s",
            what,
            first.number,
            partition,
            first.offset,
            second.offset,
            index,
            _shown(first, index),
            _shown(second, index),
            suppressed,
            remedy,
        )


def _first_difference(first: Reply, second: Reply) -> int | None:
    """Return the index of the first check with different answers; ``None`` if the replies agree."""
    if first.error != second.error:
        return 0
    if first.answers == second.answers:
        return None
    for index, (one, other) in enumerate(zip(first.answers, second.answers, strict=False)):
        if one is not None and other is not None and one != other:
            return index
    shorter, longer = sorted((len(first.answers), len(second.answers)))
    return shorter if shorter < longer else None


def _shown(reply: Reply, index: int) -> str:
    answer = reply.error or (reply.answers[index] if index < len(reply.answers) else "missing")
    return f"{answer!s:.{_MAX_SHOWN}}"
