"""Remove the state of clients that no longer come, from the disk and from the changelog.

A client whose charges have all left their windows decides like a new one
(:mod:`stoplog_worker.algorithm.fold`). So it makes no difference whether its state is stored. Owner and
standby each remove such states from their own table, at different times, without coordination.

The changelog is shortened as soon as its beginning is of no use. Each pass over the table leaves a
:class:`~stoplog_worker.state.store.Milestone`: how far the changelog had been read when the pass began, and
the highest position that the pass found. The positions of a key only increase. So every record before that
offset either has at most that position or belongs to a removed state. If a later pass finds only higher
positions, every state it found was written again behind that offset, and nothing before the offset is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from stoplog.wire.checks import POSITION_BITS
from stoplog_worker.algorithm.state_codec import Marker, expires_at_ms, position_of
from stoplog_worker.state.store import COUNTERS, Milestone, PartitionStore

KEYS_PER_STEP: Final = 200
"""Entries examined in one step, which takes about half a millisecond."""
STEP_S: Final = 0.025
"""Seconds between two steps of a thread, whatever the number of its partitions: 8,000 entries a second."""
PASS_S: Final = 600.0
"""Least seconds from the start of one pass over a table to the next.

A state is removed only if it was applied a pass ago. After that, an older version of it that another worker
writes late is not recognized as older. Such a worker must have been suspended for ten minutes.
"""
MAX_MILESTONES: Final = 64
"""Milestones kept. If there is one more, the one between the closest neighbors is dropped: the rest stay
spread."""


class StateExpirer:
    """Removes expired states from a store, a few at a time. Used by the thread that holds the store.

    Args:
        store: The partition's tables.
        on_obsolete: Called at the end of a pass with the offset before which nothing in the counters'
            changelog is needed, if there is one.
        pass_s: Seconds between the beginnings of two passes.
    """

    def __init__(
        self,
        store: PartitionStore,
        on_obsolete: Callable[[int], None] = lambda _: None,
        *,
        pass_s: float = PASS_S,
    ) -> None:
        self._store = store
        self._pass_s = pass_s
        self._on_obsolete = on_obsolete
        self._next_step_at = self._next_pass_at = -inf
        self._horizon: Marker | None = None
        """The marker of a pass ago: no replay begins before it."""
        self._last_marker: Marker | None = None
        self._from_key: bytes | None = None
        """Key at which the next step begins; ``None`` between passes."""
        self._changelog_offset = 0
        self._lowest: float = inf
        self._highest = -1

    def advance(self, now: float, partitions: int) -> list[bytes]:
        """Take a step if one is due.

        Args:
            now: Monotonic seconds.
            partitions: Number of partitions that the thread holds; they share its pace.

        Returns:
            The keys of the removed states.
        """
        if now < self._next_step_at:
            return []
        self._next_step_at = now + STEP_S * partitions
        if self._from_key is None:
            if now < self._next_pass_at:
                return []
            self._next_pass_at = now + self._pass_s
            self._horizon, self._last_marker = self._last_marker, self._store.marker()
            if self._horizon is None:
                return []
            self._from_key = b""
            self._changelog_offset = self._store.next_offset[COUNTERS]
            self._lowest, self._highest = inf, -1
        assert self._horizon is not None
        # A replay begins at or after the horizon, so it needs no earlier time and no earlier check.
        below, clock_ms = self._horizon.next_offset << POSITION_BITS, self._horizon.clock_ms
        entries = self._store.states_from(self._from_key, KEYS_PER_STEP)
        expired = []
        for key, value in entries:
            position = position_of(value)
            self._highest = max(self._highest, position)
            if position < below and expires_at_ms(value) <= clock_ms:
                expired.append(key)
            else:
                self._lowest = min(self._lowest, position)
        self._store.remove(expired)
        if len(entries) == KEYS_PER_STEP:
            self._from_key = entries[-1][0] + b"\0"
        else:
            self._from_key = None
            self._end_pass()
        return expired

    def _end_pass(self) -> None:
        milestones = self._store.milestones
        passed = [milestone for milestone in milestones if milestone.highest < self._lowest]
        highest = max(self._highest, milestones[-1].highest if milestones else -1)
        # The last one passed is kept, so that the next pass repeats a request that the broker did not carry
        # out.
        kept = [*passed[-1:], *milestones[len(passed) :], Milestone(self._changelog_offset, highest)]
        if len(kept) > MAX_MILESTONES:
            between = range(1, len(kept) - 1)
            del kept[min(between, key=lambda index: kept[index + 1].end - kept[index - 1].end)]
        self._store.save_milestones(kept)
        if passed:
            self._on_obsolete(passed[-1].end)
