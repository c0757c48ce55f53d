"""The batches that were sent and await a reply."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import Final

from stoplog.client.pending_batch import PendingBatch

MAX_GIVEN_UP: Final = 65_536
"""Batches given up whose late reply is still recognized as late: at most 10 MB of numbers."""


class InFlight:
    """Batches in flight, by number. A number is never used again."""

    __slots__ = ("_batches", "_given_up", "_numbers")

    def __init__(self) -> None:
        self._batches: dict[int, PendingBatch] = {}
        self._given_up: OrderedDict[int, int] = OrderedDict()
        self._numbers = count(1)

    def new_batch(self, partition: int) -> PendingBatch:
        """Return an empty batch with a number of its own; it is not in flight before :meth:`add`."""
        return PendingBatch(next(self._numbers), partition)

    def add(self, batch: PendingBatch) -> None:
        """Expect a reply to *batch* from now on."""
        self._batches[batch.number] = batch

    def take(self, number: int) -> PendingBatch | None:
        """Remove and return the batch with this number; ``None`` if it is not in flight."""
        return self._batches.pop(number, None)

    def give_up(self, number: int) -> PendingBatch | None:
        """Remove and return the batch with this number, and remember that a reply to it is late."""
        batch = self.take(number)
        if batch is not None:
            self._given_up[number] = batch.partition
            if len(self._given_up) > MAX_GIVEN_UP:
                self._given_up.popitem(last=False)
        return batch

    def take_given_up(self, number: int) -> int | None:
        """Forget a batch that was given up. Return its partition; ``None`` if the number is unknown."""
        return self._given_up.pop(number, None)

    def drain(self) -> list[PendingBatch]:
        """Remove and return every batch."""
        batches = list(self._batches.values())
        self._batches.clear()
        return batches
