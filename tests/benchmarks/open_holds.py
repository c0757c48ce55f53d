"""The cost of checks and reservations of a client with many open holds, in the fold alone.

``python -m tests.benchmarks.open_holds`` prints a line for each number of open holds: microseconds of CPU for
a check that is allowed, one that is denied because of the holds, a reservation that is opened or settled, one
that is denied by a limit on requests in flight, and a check with an ask for a lease. The figures contain
decoding the record, but not the reply or the checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import LEASE, RESERVATION, Ask, HoldRow, Settlement, SettlementBatch, SettlementRow
from stoplog.wire.limit_updates import enabling_update

START: Final = 1_764_000_000_000
HOLDER: Final = 1 << 63
BATCH: Final = 50
"""Checks in a record."""
UNITS: Final = 10
"""Units of each hold."""
LIMIT: Final = 100_000
NUMBERS: Final = (0, 1, 10, 100, 1_000)
REPEATS: Final = 15
"""Passes for each figure. The fastest one counts: the others were disturbed."""


class HoldCosts(NamedTuple):
    """Microseconds of CPU for each operation of a client with so many open holds."""

    holds: int
    check: float
    denied: float
    opened: float
    settled: float
    in_flight: float
    lease: float


class _Client:
    """A partition with one client that has open reservations."""

    def __init__(self, holds: int, *limits: str) -> None:
        self._ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", parse_policy(list(limits))))
        self._offset = self._number = 0
        self._after_ms = 0
        self._fold(encode_update(enabling_update()))
        for _ in range(60):  # a charge in each tick
            self._fold(encode_batch(Batch(0, 7, 1, [Check("a")])))
            self._after_ms += 60_000
        for _ in range(holds):
            self.open(1)

    def _fold(self, value: bytes) -> None:
        fold(self._ledger, self._offset, START + self._after_ms, value, fault_finder(0, 1))
        self._offset += 1

    def _measure(self, value: bytes) -> float:
        began = time.thread_time()
        self._fold(value)
        return (time.thread_time() - began) / BATCH * 1e6

    def check(self, cost: int) -> float:
        return self._measure(encode_batch(Batch(0, 7, 1, [Check("a", cost)] * BATCH, [])))

    def open(self, count: int = BATCH) -> float:
        rows = []
        for index in range(count):
            self._number += 1
            # Ends in a mixed order.
            ttl_ms = 1_800_000 + self._number * 7_919 % 1_800_000
            rows.append(HoldRow(index, Ask(RESERVATION, (HOLDER, self._number, 0), 0, 0, ttl_ms)))
        return self._measure(encode_batch(Batch(0, 7, 1, [Check("a", UNITS)] * count, rows)))

    def settle(self) -> float:
        """Settle what :meth:`open` has opened last."""
        ids = [(HOLDER, number, 0) for number in range(self._number - BATCH + 1, self._number + 1)]
        rows = [SettlementRow("a", "", (Settlement(id_, 0),)) for id_ in ids]
        return self._measure(encode_settlements(SettlementBatch(-1, 7, 1, rows)))

    def lease(self) -> float:
        rows = []
        for index in range(BATCH):
            self._number += 1
            rows.append(HoldRow(index, Ask(LEASE, (HOLDER, self._number, 0), self._number, 4, 10_000)))
        return self._measure(encode_batch(Batch(0, 7, 1, [Check("a", 0)] * BATCH, rows)))


def _best(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(REPEATS))


def measure(holds: int) -> HoldCosts:
    """Measure every operation beside *holds* open holds."""
    client = _Client(holds, f"{LIMIT}/hour")
    check = _best(lambda: client.check(1))
    denied = _best(lambda: client.check(LIMIT - UNITS * holds // 2))
    lease = _best(client.lease)
    opened, settled = [], []
    client = _Client(max(0, holds - BATCH), f"{LIMIT}/hour")
    for _ in range(REPEATS):
        opened.append(client.open())
        settled.append(client.settle())
    client = _Client(holds, f"{LIMIT}/hour", f"{holds} in flight")
    in_flight = _best(client.open)
    return HoldCosts(holds, check, denied, min(opened), min(settled), in_flight, lease)


def main() -> None:
    print("".join(f"{name:>10}" for name in HoldCosts._fields))
    for holds in [int(text) for text in sys.argv[1:]] or NUMBERS:
        print(f"{holds:10,}" + "".join(f"{figure:10.1f}" for figure in measure(holds)[1:]))


if __name__ == "__main__":
    main()
