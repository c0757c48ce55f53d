"""A worker that dies in its flush, as if killed there: ``python -m tests.dying_worker <point>``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import streams.owned
from streams.flush import Flusher
from streams.ledger import Marker
from streams.store import COUNTERS, PartitionStore
from streams.worker import main

POINTS: Final = (
    "before",
    "entries produced",
    "one entry acknowledged",
    "entries acknowledged",
    "marker produced",
    "marker acknowledged",
    "counters stored",
    "all stored",
)
"""Between every two steps of a flush."""

DIED: Final = 70

_flushes = count(1)
_FUSE: Final = 5
"""The flush (of any partition, with counters in it) at which it dies: those before it went well."""


class DyingFlusher(Flusher):
    """Ends the process, without any cleaning up, when it comes to the point."""

    point: str
    armed = False

    def _reached(self, point: str) -> None:
        if self.armed and point == self.point:
            os._exit(DIED)

    def begin(self) -> None:
        if self._ledger.dirty:
            self.armed = next(_flushes) >= _FUSE
        self._reached("before")
        super().begin()
        self._reached("entries produced")

    def _delivered(self, table: str, error: Any, message: Any) -> None:
        super()._delivered(table, error, message)
        if self._step == "entries":
            self._reached("one entry acknowledged")

    def advance(self) -> Marker | None:
        if not self._waiting:
            self._reached(f"{self._step} acknowledged")
        before = self._step
        marker = super().advance()
        if before == "entries" and self._step == "marker":
            self._reached("marker produced")
        if marker is not None:
            self._reached("all stored")
        return marker


def dying_write(
    write: Callable[[PartitionStore, str, Sequence[tuple[bytes, bytes]]], None],
) -> Callable[[PartitionStore, str, Sequence[tuple[bytes, bytes]]], None]:
    """Between the writes to one table and to the other."""
    writes = count(1)

    def wrapped(store: PartitionStore, table: str, entries: Sequence[tuple[bytes, bytes]]) -> None:
        write(store, table, entries)
        if table == COUNTERS and DyingFlusher.point == "counters stored" and next(writes) >= _FUSE:
            os._exit(DIED)

    return wrapped


if __name__ == "__main__":
    DyingFlusher.point = sys.argv[1]
    assert DyingFlusher.point in POINTS
    setattr(streams.owned, "Flusher", DyingFlusher)  # noqa: B010 - a name that it imports
    PartitionStore.write = dying_write(PartitionStore.write)  # type: ignore[method-assign, assignment]
    sys.exit(main())
