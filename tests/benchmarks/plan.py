"""How much is measured: quick in three minutes, full in what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLIENTS: Final = 10_000
"""Clients of all rows that do not say otherwise."""

CALLERS: Final = (1, 32, 128, 512)
PARTITIONS: Final = (1, 2, 4, 16)
PARTITION_CALLERS: Final = (32, 512)
"""Callers of the systems of :data:`PARTITIONS`: a light load and a heavy one."""


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        name: ``quick`` or ``full``.
        rounds: Measured rounds; one more before them is discarded.
        seconds: Of each measured window; whole, since wrk counts in whole seconds. In a window as long as a
            worker's flush interval each partition is flushed once, or more often; a shorter one sees less.
        warmup_s: Of a load process before its window.
        warm_broker_s: Of load on a system just started, before anything is measured on it.
        clients: Numbers of clients; each has a system of its own, filled with them before it is measured.
        peer_connections: Of the peers' HTTP servers.
        hot_window_s: Window of the hot client's limit, which is measured for as long.
        full: Whether lists and published checks come from all :data:`CALLERS`, and systems of several
            partitions, of 2 workers, and recovery are measured too.
    """

    name: str
    rounds: int
    seconds: int
    warmup_s: float
    warm_broker_s: float
    clients: tuple[int, ...]
    peer_connections: tuple[int, ...]
    hot_window_s: int
    full: bool


QUICK: Final = Plan(
    "quick",
    rounds=3,
    seconds=1,
    warmup_s=0.2,
    warm_broker_s=6.0,
    clients=(1_000_000,),
    peer_connections=(32, 128),
    hot_window_s=10,
    full=False,
)
FULL: Final = Plan(
    "full",
    rounds=3,
    seconds=5,
    warmup_s=0.5,
    warm_broker_s=15.0,
    clients=(1_000, 1_000_000, 10_000_000),
    peer_connections=CALLERS,
    hot_window_s=60,
    full=True,
)
