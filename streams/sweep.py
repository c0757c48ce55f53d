"""Clients that no longer come leave the disk.

A client whose charges have all left its windows is judged as one never seen (:mod:`streams.judge`), so
whether its state is stored makes no difference, and each reader of a changelog may remove it when it likes:
owner and standby, at different times, without a word to each other. From the changelog it goes by the topic's
retention.
"""

from __future__ import annotations

from typing import Final

from streams.contract.records import POSITION_BITS
from streams.ledger import Marker, leaves_at_ms, position_of
from streams.store import PartitionStore

KEYS: Final = 200
"""Entries looked at in one step: half a millisecond."""
STEP_S: Final = 0.025
"""Seconds between two steps of a thread, whatever the number of its partitions: 8,000 entries a second."""
PASS_S: Final = 600.0
"""Seconds at least from one pass over a table to the next.

What is removed had been applied a pass ago. Once it is, an older state that a worker writes late is not known
to be older; a worker that does so must have slept for that long.
"""


class Sweeper:
    """Removes such states from *store*, a few at a time; for whoever holds it."""

    def __init__(self, store: PartitionStore) -> None:
        self._store = store
        self._next_step = self._next_pass = float("-inf")
        self._horizon: Marker | None = None
        self._last: Marker | None = None
        self._from: bytes | None = None

    def advance(self, now: float, among: int) -> int:
        """Take a step if it is time for one; returns how many states were removed.

        Args:
            now: Monotonic seconds.
            among: How many partitions the thread may have to look after.
        """
        if now < self._next_step:
            return 0
        self._next_step = now + STEP_S * among
        if self._from is None:
            if now < self._next_pass:
                return 0
            self._next_pass = now + PASS_S
            self._horizon, self._last = self._last, self._store.marker()
            if self._horizon is None:
                return 0
            self._from = b""
        assert self._horizon is not None
        # No replay begins below the horizon, so none asks for a time or a check before it.
        below, clock_ms = self._horizon.next_offset << POSITION_BITS, self._horizon.clock_ms
        entries = self._store.states_from(self._from, KEYS)
        gone = [
            key for key, value in entries if position_of(value) < below and leaves_at_ms(value) <= clock_ms
        ]
        self._store.remove(gone)
        self._from = entries[-1][0] + b"\0" if len(entries) == KEYS else None
        return len(gone)
