"""Cases of Stoplog itself: over HTTP, through the SDK, and published without a reply."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import CHECK_TEXT, drive
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import CLIENT_COUNT, BenchPlan
from tests.benchmarks.stoplog_system import Stoplog
from tests.support.system import Gateway


class Door(NamedTuple):
    """A route that answers checks.

    Attributes:
        path: Its path.
        check: Text of a check before and after the client's id, as in
            :func:`~tests.benchmarks.load_http.run_wrk`.
        method: ``POST`` or ``GET``.
    """

    path: str
    check: tuple[str, str] = CHECK_TEXT
    method: str = "POST"


CHECK_DOOR: Final = Door("/v1/check")
AUTHORIZE_DOOR: Final = Door("/v1/authorize", ("X-Client-Id: ", ""), "GET")
JSON_DOOR: Final = Door(
    "/json", ('{"domain":"edge","descriptors":[{"entries":[{"key":"client","value":"', '"}]}]}')
)

_COUNTED: Final = {"failed_open": "stoplog_checks_degraded_total", "lease_hits": "stoplog_lease_hits_total"}
"""Fields of a sample, and the counters of the gateway from which they come."""

LIST_SIZE: Final = 100
LIST_CONNECTIONS: Final = 16
_WARMING_CALLERS: Final = 256


def counts_of(gateway: Gateway) -> dict[str, int]:
    """Return how many checks of *gateway* have failed open so far, and how many leases have answered."""
    return {field: int(gateway.metric(metric)) for field, metric in _COUNTED.items()}


def http(
    stoplog: Stoplog,
    plan: BenchPlan,
    *,
    stage: str,
    callers: int,
    key: str,
    what: str = "HTTP, single checks",
    size: int = 1,
    clients: int = CLIENT_COUNT,
    distribution: str = "uniform",
    door: Door = CHECK_DOOR,
    token: str | None = None,
    warmup_s: int = 0,
) -> BenchCase:
    """Return the case of wrk on the first gateway, in lists of *size* checks if that is not 1.

    Before its window there is the same load for *warmup_s* seconds.
    """
    gateway = stoplog.system.gateways[0]
    url = f"{stoplog.url}{door.path}{'' if size == 1 else 's'}"

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        drive_for = partial(
            drive,
            url,
            connections=callers,
            seed=seed,
            clients=clients,
            distribution=distribution,
            size=size,
            check=door.check,
            method=door.method,
            token=token,
        )
        if warmup_s:
            drive_for(Meter({}), seconds=warmup_s)
        before = counts_of(gateway)
        figures = drive_for(meter, seconds=plan.seconds)
        return {**figures, **{field: count - before[field] for field, count in counts_of(gateway).items()}}

    return BenchCase(key, stage, what, callers, stoplog.pids(), load)


def sdk(
    stoplog: Stoplog,
    plan: BenchPlan,
    loader: Loader,
    *,
    stage: str,
    callers: int,
    key: str,
    what: str = "SDK",
    distribution: str = "uniform",
    warmup_s: float | None = None,
) -> BenchCase:
    """Return the case of callers in a process with a Limiter. It stands in the gateway's place."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = loader.run(
            meter,
            mode="check",
            callers=callers,
            clients=CLIENT_COUNT,
            distribution=distribution,
            seed=seed,
            warmup_s=plan.warmup_s if warmup_s is None else warmup_s,
            seconds=plan.seconds,
        )
        return {**figures, "load_cpu_s": None}

    parts = {"gateway": [loader.pid], **stoplog.pids(None)}
    return BenchCase(key, stage, what, callers, parts, load)


def published(
    stoplog: Stoplog,
    plan: BenchPlan,
    loader: Loader,
    *,
    stage: str,
    key: str,
    what: str,
    clients: int,
    distribution: str = "uniform",
    partitions: list[int] | None = None,
    callers: int = 0,
    rate: int = 0,
) -> BenchCase:
    """Return the case of checks that are published without waiting, and judged within the window.

    Args:
        stoplog: The system.
        plan: Length of the window.
        loader: Publishes the checks.
        stage: Stage of the case.
        key: Key of the case.
        what: Label of the case.
        clients: Number of clients.
        distribution: Distribution of the checks among them.
        partitions: Use only clients of these partitions.
        callers: Callers that publish one check each per turn; 0 publishes batches of 100 per turn.
        rate: Checks per second; 0 publishes as many as possible.
    """

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = loader.run(
            meter,
            mode="publish",
            callers=callers,
            rate=rate,
            clients=clients,
            distribution=distribution,
            partitions=partitions,
            seed=seed,
            warmup_s=plan.warmup_s,
            seconds=plan.seconds,
        )
        return {**figures, "load_cpu_s": None}

    return BenchCase(key, stage, what, callers, {"gateway": [loader.pid], **stoplog.pids(None)}, load)


def warm(loader: Loader, plan: BenchPlan, clients: int) -> None:
    """Create load with checks of *clients* until the broker's JVM has compiled its hot code.

    Until then a record costs about four times as much.
    """
    loader.run(
        Meter({}),
        mode="check",
        callers=_WARMING_CALLERS,
        clients=clients,
        distribution="uniform",
        seed=0,
        warmup_s=0,
        seconds=plan.warm_broker_s,
    )


def fill(stoplog: Stoplog, loader: Loader, clients: int) -> None:
    """Publish one check of each of *clients*, and wait until the worker has judged them."""
    loader.run(
        Meter(stoplog.pids(None)),
        mode="publish",
        callers=0,
        rate=0,
        clients=clients,
        distribution="each",
        partitions=None,
        checks=clients,
        seed=0,
        warmup_s=0,
        seconds=0,
    )
