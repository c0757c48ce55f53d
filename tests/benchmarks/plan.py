"""How much is measured: quick in three minutes, full in what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLIENTS: Final = 10_000
"""Clients of all rows that do not say otherwise."""

CALLERS: Final = (1, 32, 128, 512)


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        name: ``quick`` or ``full``.
        rounds: Measured rounds; one more before them is discarded.
        seconds: Of each measured window; whole, since wrk counts in whole seconds.
        warmup_s: Of a load process before its window.
        warm_broker_s: Of load on a system just started, before anything is measured on it.
        clients: Numbers of clients, from few to many; the tables are filled with each before it is measured.
        peer_connections: Of the peers' HTTP servers.
        full: Whether systems of 1 and 16 partitions and of 2 workers run too.
    """

    name: str
    rounds: int
    seconds: int
    warmup_s: float
    warm_broker_s: float
    clients: tuple[int, ...]
    peer_connections: tuple[int, ...]
    full: bool


QUICK: Final = Plan(
    "quick",
    rounds=3,
    seconds=1,
    warmup_s=0.2,
    warm_broker_s=6.0,
    clients=(1_000, 1_000_000),
    peer_connections=(32, 128),
    full=False,
)
FULL: Final = Plan(
    "full",
    rounds=5,
    seconds=3,
    warmup_s=1.0,
    warm_broker_s=20.0,
    clients=(1_000, 1_000_000, 10_000_000),
    peer_connections=CALLERS,
    full=True,
)
