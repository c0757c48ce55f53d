"""A worker that dies in its flush, as if killed there: ``python -m tests.support.dying_worker <point>``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import stoplog_worker.partition.checkpoint
import stoplog_worker.partition.partition
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.partition.checkpoint import Checkpointer
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
"""Between every two steps of a flush."""

FIRST_POINTS: Final = tuple(
    f"first {point}" for point in ("before", "marker produced", "marker acknowledged", "all stored")
)
"""The same of a partition's first flush, which writes the marker alone."""

DIED: Final = 70

_flushes = count(1)
_FUSE: Final = 5
"""The flush (of any partition, with counters in it) at which it dies: those before it went well."""


class DyingCheckpointer(Checkpointer):
    """Ends the process, without any cleaning up, when it comes to the point."""

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
            self.armed = next(_flushes) >= _FUSE
        self._reached("before")
        super().begin()
        if self._unsent is not None:
            self._reached("some entries produced")

    def _delivered(self, table: str, error: Any, message: Any) -> None:
        super()._delivered(table, error, message)
        if self._step == "entries":
            self._reached("one entry acknowledged")

    def _step_on(self) -> Marker | None:
        before, sending = self._step, self._unsent is not None
        if not self._waiting and not sending:
            self._reached(f"{before} acknowledged")
        marker = super()._step_on()
        if sending and self._unsent is None:
            self._reached("entries produced")
        if before == "entries" and self._step == "marker":
            self._reached("marker produced")
        if marker is not None:
            self._reached("all stored")
        return marker

    def _persist_some(self) -> bool:
        last = super()._persist_some()
        if not last:
            self._reached("some counters stored")
        return last


def dying_write(
    write: Callable[[PartitionStore, str, Sequence[tuple[bytes, bytes]]], None],
) -> Callable[[PartitionStore, str, Sequence[tuple[bytes, bytes]]], None]:
    """Between the writes to one table and to the other."""
    writes = count(1)

    def wrapped(store: PartitionStore, table: str, entries: Sequence[tuple[bytes, bytes]]) -> None:
        if table == POLICIES and DyingCheckpointer.point == "counters stored" and next(writes) >= _FUSE:
            os._exit(DIED)
        write(store, table, entries)

    return wrapped


if __name__ == "__main__":
    DyingCheckpointer.point = sys.argv[1]
    assert DyingCheckpointer.point in POINTS + FIRST_POINTS
    setattr(stoplog_worker.partition.partition, "Checkpointer", DyingCheckpointer)  # noqa: B010 - a name that it imports
    setattr(stoplog_worker.partition.checkpoint, "CHUNK", 2)  # noqa: B010 - so that a flush has several
    PartitionStore.write = dying_write(PartitionStore.write)  # type: ignore[method-assign, assignment]
    sys.exit(main())
