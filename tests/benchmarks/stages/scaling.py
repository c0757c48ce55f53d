"""How the cost of a check grows with partitions and workers: several systems, measured in turn."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from tests.benchmarks import cases_stoplog
from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import PARTITION_CALLERS, PARTITIONS
from tests.benchmarks.stoplog_system import Stoplog

_CLIENTS: Final = 8_000
_RATE: Final = 40_000
"""Checks per second, the same for one worker and for two: a checkpoint writes each client once, no matter how
many checks it had."""

_FLUSH_MS: Final = 1_000
"""Checkpoint interval, the same for one worker and for two. A single worker with twice the load would
otherwise write earlier checkpoints."""

_SETTLED_S: Final = 2.5
"""Seconds after which earlier checks are in a checkpoint, and the standby has read it."""


def partitions(bench: BenchContext) -> None:
    """Measure the same callers on 1 to 16 partitions."""
    with ExitStack() as stack:
        cases = []
        for count in PARTITIONS:
            stoplog, sdk = bench.stoplog, bench.sdk
            if count != stoplog.partitions:
                stoplog, sdk = bench.start(stack, partitions=count)
            for n in PARTITION_CALLERS:
                key = f"partitions-{count}-{n}"
                case = cases_stoplog.sdk(stoplog, bench.plan, sdk, stage="partitions", callers=n, key=key)
                cases.append(replace(case, what=f"SDK, {count} partition{'s' * (count > 1)}"))
        bench.measure(cases)


def workers(bench: BenchContext) -> None:
    """Measure the same batches at the same rate on one worker, and on two that share the partitions.

    Each of the two is also a standby of the other. The cost of following alone is measured at the second
    worker while all load is on the partitions of the first.
    """
    with ExitStack() as stack:
        one, one_sdk = bench.start(stack, flush_ms=_FLUSH_MS)
        two, two_sdk = bench.start(stack, workers=2, flush_ms=_FLUSH_MS)
        first, second = two.system.workers
        mine = two.partitions_of(first)
        if not 0 < len(mine) < two.partitions:
            bench.skip("workers-2", "2 workers", f"the group gave the first of them partitions {mine}")
            return
        # Each partition has as many clients as when the load is on all partitions.
        clients = _CLIENTS * two.partitions // len(mine)
        what = "the standby alone"
        standby = _batches(bench, two, two_sdk, "standby", what, mine, clients)
        assert second.pid is not None
        bench.measure(
            [
                _batches(bench, one, one_sdk, "workers-1", "1 worker"),
                _batches(bench, two, two_sdk, "workers-2", "2 workers, 2 partitions each, standbys included"),
                _after_idling(replace(standby, parts={"worker": [second.pid]}), bench.plan.seconds),
            ]
        )


def _batches(
    bench: BenchContext,
    stoplog: Stoplog,
    sdk: Loader,
    key: str,
    what: str,
    only: list[int] | None = None,
    clients: int = _CLIENTS,
) -> BenchCase:
    what = f"SDK, published, {_RATE:,} checks/s, {what}"
    return cases_stoplog.published(
        stoplog,
        bench.plan,
        sdk,
        stage="workers",
        key=key,
        what=what,
        clients=clients,
        partitions=only,
        rate=_RATE,
    )


def _after_idling(case: BenchCase, seconds: float) -> BenchCase:
    """Return *case* with the CPU time of its idle processes, measured just before it."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        time.sleep(_SETTLED_S)
        idle = Meter(case.parts)
        idle.begin()
        time.sleep(seconds)
        idle.end()
        figures = case.load(meter, seed)
        return {**figures, "idle_cpu_s": sum(idle.cpu_s.values()) * figures["seconds"] / seconds}

    return replace(case, load=load)
