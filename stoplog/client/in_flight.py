"""The batches that were sent and await a reply.

A batch has a random number. Otherwise a producer of ``replies`` that may not read the topic could guess the
number of the next batch, and answer it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from struct import Struct
from typing import Final

from stoplog.client.pending_batch import PendingBatch, Rescue, no_rescue

MAX_GIVEN_UP: Final = 65_536
"""Batches given up whose late reply is still recognized as late: at most 10 MB of numbers."""

_POOL: Final = Struct("512Q")
"""Numbers taken from the system at once. One call for each number would cost a batch ten times as much."""


def _random_numbers() -> Iterator[int]:
    """Yield unpredictable numbers of 64 bits, which do not repeat in practice."""
    while True:
        yield from _POOL.unpack(os.urandom(_POOL.size))


class InFlight:
    """Batches in flight, by number.

    Args:
        rescue: See :class:`~stoplog.client.pending_batch.PendingBatch`.
    """

    __slots__ = ("_batches", "_given_up", "_numbers", "_rescue")

    def __init__(self, rescue: Rescue = no_rescue) -> None:
        self._rescue = rescue
        self._batches: dict[int, PendingBatch] = {}
        self._given_up: OrderedDict[int, int] = OrderedDict()
        self._numbers = _random_numbers()

    def new_batch(self, partition: int) -> PendingBatch:
        """Return an empty batch with a number of its own; it is not in flight before :meth:`add`."""
        return PendingBatch(next(self._numbers), partition, self._rescue)

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
