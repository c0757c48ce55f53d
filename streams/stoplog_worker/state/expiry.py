"""Clients that no longer come leave the disk, and the changelog.

A client whose charges have all left its windows is judged as one never seen (:mod:`stoplog_worker.algorithm.fold`), so
whether its state is stored makes no difference, and each reader of a changelog may remove it when it likes:
owner and standby, at different times, without a word to each other.

The changelog loses its beginning, as soon as that says nothing any more. A pass over the table leaves a
:class:`~stoplog_worker.state.store.Milestone`: how far the changelog had been read as it began, and the highest position
that it met. Positions of a key only rise, so what the changelog has before that offset are states of no
higher position, or removed. A later pass that meets no position as low has therefore met no state whose
record lies there: each was written again behind it, or has been removed since.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from stoplog.wire.checks import POSITION_BITS
from stoplog_worker.algorithm.state_codec import Marker, expires_at_ms, position_of
from stoplog_worker.state.store import COUNTERS, Milestone, PartitionStore

KEYS: Final = 200
"""Entries looked at in one step: half a millisecond."""
STEP_S: Final = 0.025
"""Seconds between two steps of a thread, whatever the number of its partitions: 8,000 entries a second."""
PASS_S: Final = 600.0
"""Seconds at least from one pass over a table to the next.

What is removed had been applied a pass ago. Once it is, an older state that a worker writes late is not known
to be older; a worker that does so must have slept for that long.
"""
MILESTONES: Final = 64
"""Beyond it the one goes whose neighbors are nearest to each other, so that the others stay well spread."""


class Sweeper:
    """Removes such states from *store*, a few at a time; for whoever holds it.

    Args:
        store: Of the partition.
        outlived: Called at the end of a pass with the offset before which the counters' changelog holds
            nothing that anybody needs, if there is one.
    """

    def __init__(self, store: PartitionStore, outlived: Callable[[int], None] = lambda _: None) -> None:
        self._store = store
        self._outlived = outlived
        self._next_step = self._next_pass = -inf
        self._horizon: Marker | None = None
        self._last: Marker | None = None
        self._from: bytes | None = None
        self._read_to = 0
        self._lowest: float = inf
        self._highest = -1

    def advance(self, now: float, among: int) -> list[bytes]:
        """Take a step if it is time for one; returns the keys of the states that were removed.

        Args:
            now: Monotonic seconds.
            among: How many partitions the thread may have to look after.
        """
        if now < self._next_step:
            return []
        self._next_step = now + STEP_S * among
        if self._from is None:
            if now < self._next_pass:
                return []
            self._next_pass = now + PASS_S
            self._horizon, self._last = self._last, self._store.marker()
            if self._horizon is None:
                return []
            self._from = b""
            self._read_to, self._lowest, self._highest = self._store.next[COUNTERS], inf, -1
        assert self._horizon is not None
        # No replay begins below the horizon, so none asks for a time or a check before it.
        below, clock_ms = self._horizon.next_offset << POSITION_BITS, self._horizon.clock_ms
        entries = self._store.states_from(self._from, KEYS)
        gone = []
        for key, value in entries:
            position = position_of(value)
            self._highest = max(self._highest, position)
            if position < below and expires_at_ms(value) <= clock_ms:
                gone.append(key)
            else:
                self._lowest = min(self._lowest, position)
        self._store.remove(gone)
        if len(entries) == KEYS:
            self._from = entries[-1][0] + b"\0"
        else:
            self._from = None
            self._end_pass()
        return gone

    def _end_pass(self) -> None:
        milestones = self._store.milestones
        passed = [stone for stone in milestones if stone.highest < self._lowest]
        highest = max(self._highest, milestones[-1].highest if milestones else -1)
        # The last that was passed stays: what the broker did not do now it is asked for again.
        left = [*passed[-1:], *milestones[len(passed) :], Milestone(self._read_to, highest)]
        if len(left) > MILESTONES:
            between = range(1, len(left) - 1)
            del left[min(between, key=lambda index: left[index + 1].end - left[index - 1].end)]
        self._store.keep_milestones(left)
        if passed:
            self._outlived(passed[-1].end)
