"""A worker that dies in a checkpoint, as if killed: ``python -m tests.support.dying_worker <point>``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import stoplog_worker.partition.checkpoint
import stoplog_worker.partition.partition
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.partition.checkpoint import Checkpointer, CheckpointPhase
from stoplog_worker.state.store import POLICIES, PartitionStore
from stoplog_worker.worker import main

POINTS: Final = (
    "before",
    "some entries produced",
    "entries produced",
    "one entry acknowledged",
    "entries acknowledged",
    "marker produced",
    "marker acknowledged",
    "some counters stored",
    "counters stored",
    "all stored",
)
"""The points between the steps of a checkpoint."""

FIRST_POINTS: Final = tuple(
    f"first {point}" for point in ("before", "marker produced", "marker acknowledged", "all stored")
)
"""The same for a partition's first checkpoint, which writes the marker alone."""

DIED: Final = 70

_checkpoints = count(1)
_FUSE: Final = 5
"""The worker dies in this checkpoint with counters, counted over all partitions."""


class DyingCheckpointer(Checkpointer):
    """A checkpointer that ends the process at the point, without any cleanup."""

    point: str
    armed = False
    first = False

    def _reached(self, point: str) -> None:
        if self.first:
            point = f"first {point}"
        elif not self.armed:
            return
        if point == self.point:
            os._exit(DIED)

    def begin_with_marker(self) -> None:
        self.first = True
        self._reached("before")
        super().begin_with_marker()

    def begin(self) -> None:
        self.first = False
        if self._ledger.dirty:
            self.armed = next(_checkpoints) >= _FUSE
        self._reached("before")
        super().begin()
        if self.phase is CheckpointPhase.PRODUCING_ENTRIES:
            self._reached("some entries produced")

    def _delivered(self, table: str, error: Any, message: Any) -> None:
        super()._delivered(table, error, message)
        if self.phase in (CheckpointPhase.PRODUCING_ENTRIES, CheckpointPhase.AWAITING_ENTRIES):
            self._reached("one entry acknowledged")

    def _step(self) -> Marker | None:
        before = self.phase
        if not self._unacknowledged and before is CheckpointPhase.AWAITING_ENTRIES:
            self._reached("entries acknowledged")
        if not self._unacknowledged and before is CheckpointPhase.AWAITING_MARKER:
            self._reached("marker acknowledged")
        marker = super()._step()
        if (before, self.phase) == (CheckpointPhase.PRODUCING_ENTRIES, CheckpointPhase.AWAITING_ENTRIES):
            self._reached("entries produced")
        if (before, self.phase) == (CheckpointPhase.AWAITING_ENTRIES, CheckpointPhase.AWAITING_MARKER):
            self._reached("marker produced")
        if marker is not None:
            self._reached("all stored")
        return marker

    def _store_chunk(self) -> bool:
        last = super()._store_chunk()
        if not last:
            self._reached("some counters stored")
        return last


def dying_write(
    write: Callable[[PartitionStore, str, Sequence[tuple[bytes, bytes]]], None],
) -> Callable[[PartitionStore, str, Sequence[tuple[bytes, bytes]]], None]:
    """Wrap *write* so that the process ends between the writes to one table and to the other."""
    writes = count(1)

    def wrapped(store: PartitionStore, table: str, entries: Sequence[tuple[bytes, bytes]]) -> None:
        if table == POLICIES and DyingCheckpointer.point == "counters stored" and next(writes) >= _FUSE:
            os._exit(DIED)
        write(store, table, entries)

    return wrapped


if __name__ == "__main__":
    DyingCheckpointer.point = sys.argv[1]
    assert DyingCheckpointer.point in POINTS + FIRST_POINTS
    setattr(stoplog_worker.partition.partition, "Checkpointer", DyingCheckpointer)  # noqa: B010 - imported
    setattr(stoplog_worker.partition.checkpoint, "CHUNK", 2)  # noqa: B010 - so that a checkpoint has several
    PartitionStore.write = dying_write(PartitionStore.write)  # type: ignore[method-assign, assignment]
    sys.exit(main([]))
