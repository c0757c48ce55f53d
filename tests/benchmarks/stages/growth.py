"""How the cost of a check grows with partitions and workers: several systems beside each other."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from tests.benchmarks import cases_sluice
from tests.benchmarks.bench import Bench
from tests.benchmarks.case import Case
from tests.benchmarks.loader import Loader
from tests.benchmarks.sluice import Sluice

PARTITIONS: Final = (1, 4, 16)
_CALLERS: Final = (32, 128, 512)
_CLIENTS: Final = 8_000


def partitions(bench: Bench) -> None:
    """The same callers on 1, 4 and 16 partitions."""
    with ExitStack() as stack:
        cases = []
        for count in PARTITIONS:
            sluice, sdk = bench.sluice, bench.sdk
            if count != sluice.partitions:
                sluice, sdk = bench.start(stack, partitions=count)
            for n in _CALLERS:
                key = f"partitions-{count}-{n}"
                case = cases_sluice.sdk(sluice, bench.plan, sdk, stage="partitions", callers=n, key=key)
                cases.append(replace(case, what=f"SDK, {count} partition{'s' * (count > 1)}"))
        bench.measure(cases)


def workers(bench: Bench) -> None:
    """The same batches on one worker, and on two that share the partitions, each the other's standby.

    What a standby costs by itself shows where all load is on the other's partitions.
    """
    with ExitStack() as stack:
        one, one_sdk = bench.start(stack)
        two, two_sdk = bench.start(stack, workers=2)
        first, second = two.system.workers
        mine = two.partitions_of(first)
        if not 0 < len(mine) < two.partitions:
            bench.skip("workers-2", "2 workers", f"the group gave the first of them partitions {mine}")
            return
        standby = _batches(
            bench, two, two_sdk, "standby", "a standby alone, beside the worker it follows", mine
        )
        assert second.pid is not None
        bench.measure(
            [
                _batches(bench, one, one_sdk, "workers-1", "1 worker"),
                _batches(bench, two, two_sdk, "workers-2", "2 workers, 2 partitions each, standbys included"),
                replace(standby, parts={"worker": [second.pid]}),
            ]
        )


def _batches(
    bench: Bench, sluice: Sluice, sdk: Loader, key: str, what: str, only: list[int] | None = None
) -> Case:
    what = f"SDK, published, {what}"
    return cases_sluice.published(
        sluice, bench.plan, sdk, stage="workers", key=key, what=what, clients=_CLIENTS, partitions=only
    )
