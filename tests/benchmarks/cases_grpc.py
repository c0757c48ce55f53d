"""Cases of ``ShouldRateLimit`` over gRPC: of Stoplog, of a peer, and of a server that only answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.cases_peers import STAGE
from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import CLIENT_COUNT, BenchPlan


def grpc_calls(
    loader: Loader,
    plan: BenchPlan,
    *,
    address: str,
    parts: Mapping[str, Sequence[int]],
    callers: int,
    key: str,
    what: str,
) -> BenchCase:
    """Return the case of *callers* that call *address* over four connections."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return loader.run(
            meter,
            address=address,
            callers=callers,
            clients=CLIENT_COUNT,
            seed=seed,
            warmup_s=plan.warmup_s,
            seconds=plan.seconds,
        )

    return BenchCase(key, STAGE, what, callers, parts, load)
