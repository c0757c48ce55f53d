"""How the cost of a check grows with partitions and workers: several systems, measured in turn."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from tests.benchmarks import cases_peers, cases_stoplog
from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import Loader
from tests.benchmarks.peers.environment import PeerMissing
from tests.benchmarks.plan import CALLERS, HTTP_PARTITIONS, PARTITION_CALLERS, PARTITIONS
from tests.benchmarks.stoplog_system import LEASE_MAX_MS, Stoplog

HTTP_STAGE: Final = "http-partitions"

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


def http_partitions(bench: BenchContext) -> None:
    """Measure single checks over HTTP on 1 to 64 partitions, each number beside envoyproxy/ratelimit.

    Systems run one after another: an idle one with many partitions takes a part of the CPU. So the peer is
    measured again in the rounds of each.
    """
    if not bench.has_wrk(HTTP_STAGE, "HTTP, 1 to 64 partitions"):
        return
    try:
        peer = bench.ratelimit
    except PeerMissing as exc:
        bench.skip(HTTP_STAGE, "HTTP, 1 to 64 partitions, beside envoyproxy/ratelimit + Redis", str(exc))
        return
    pids = [peer.pid, bench.redis.pid]
    for count in HTTP_PARTITIONS:
        for lease_max_ms, leases in ((0, "off"), (LEASE_MAX_MS, "on")):
            with ExitStack() as stack:
                stoplog, _ = bench.start(stack, partitions=count, lease_max_ms=lease_max_ms)
                cases = []
                for n in CALLERS:
                    key = f"{count}-{leases}-{n}"
                    what = f"HTTP, {count} partition{'s' * (count > 1)}, leases {leases}"
                    own = cases_stoplog.http(
                        stoplog,
                        bench.plan,
                        stage=HTTP_STAGE,
                        callers=n,
                        key=f"{HTTP_STAGE}-{key}",
                        what=what,
                        warmup_s=bench.plan.lease_warmup_s if lease_max_ms else 1,
                    )
                    other = cases_peers.envoy_ratelimit_http(peer.port, pids, bench.plan, n)
                    cases += [own, replace(other, key=f"{HTTP_STAGE}-peer-{key}", stage=HTTP_STAGE)]
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
