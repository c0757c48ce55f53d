"""How much a run measures: the quick plan takes eight minutes, the full one forty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLIENT_COUNT: Final = 10_000
"""Number of clients of all rows that do not state another."""

CALLERS: Final = (1, 32, 128, 512)
DOOR_CALLERS: Final = (32, 128)
"""Numbers of callers of the doors that proxies use."""

DISTRIBUTIONS: Final = {"uniform": "uniform", "zipf": "Zipf(1.0)"}
"""How checks are distributed among the clients: name of the distribution, and its label in rows."""

PARTITIONS: Final = (1, 2, 4, 16)
PARTITION_CALLERS: Final = (32, 512)
"""Numbers of callers of the systems of :data:`PARTITIONS`: a light load and a heavy one."""

HTTP_PARTITIONS: Final = (1, 2, 4, 64)
"""Numbers of partitions that are compared over HTTP with a peer."""


@dataclass(frozen=True)
class BenchPlan:
    """The extent of one run.

    Attributes:
        name: ``quick`` or ``full``.
        rounds: Rounds in which the cases of a stage are measured.
        seconds: Length of each measured window, in whole seconds as wrk needs them. A window as long as the
            workers' checkpoint interval contains a checkpoint of each partition. A shorter one may not.
        warmup_s: Seconds of load of a load process before its window.
        warm_broker_s: Seconds of load on a new system before its first measurement.
        lease_warmup_s: Seconds of the same load before a window with leases. The first lease lasts 3 s.
        pace_s: Seconds of each window at a steady pace.
        clients: Numbers of clients. Each has a system of its own, which stores all of them before it is
            measured.
        peer_connections: Numbers of connections to the peers' HTTP servers.
        hot_window_s: Seconds of the window of the hot client's limit, and of its measurement.
        full: Whether to measure lists and published checks with all :data:`CALLERS`, systems of several
            partitions and of 2 workers, and recovery.
    """

    name: str
    rounds: int
    seconds: int
    warmup_s: float
    warm_broker_s: float
    lease_warmup_s: int
    pace_s: int
    clients: tuple[int, ...]
    peer_connections: tuple[int, ...]
    hot_window_s: int
    full: bool


QUICK: Final = BenchPlan(
    "quick",
    rounds=2,
    seconds=1,
    warmup_s=0.2,
    warm_broker_s=6.0,
    lease_warmup_s=3,
    pace_s=4,
    clients=(1_000_000,),
    peer_connections=(32, 128),
    hot_window_s=10,
    full=False,
)
FULL: Final = BenchPlan(
    "full",
    rounds=2,
    seconds=5,
    warmup_s=0.5,
    warm_broker_s=15.0,
    lease_warmup_s=5,
    pace_s=15,
    clients=(1_000, 1_000_000, 10_000_000),
    peer_connections=CALLERS,
    hot_window_s=60,
    full=True,
)
