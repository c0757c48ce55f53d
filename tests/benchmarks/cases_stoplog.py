"""Cases of Stoplog itself: through HTTP, through the SDK, published without an answer."""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks.case import Case
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import CLIENTS, Plan
from tests.benchmarks.stoplog_system import Stoplog

LIST: Final = 100
LIST_CONNECTIONS: Final = 16
_WARMING_CALLERS: Final = 256


def http(
    stoplog: Stoplog,
    plan: Plan,
    *,
    stage: str,
    callers: int,
    key: str,
    what: str = "HTTP, one by one",
    size: int = 1,
    clients: int = CLIENTS,
    distribution: str = "uniform",
) -> Case:
    """wrk on the first gateway; with a *size*, in lists of it."""
    gateway = stoplog.system.gateways[0]
    url = f"{stoplog.url}/v1/check{'' if size == 1 else 's'}"

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        before = gateway.metric("stoplog_checks_degraded_total")
        figures = drive(
            url,
            meter,
            connections=callers,
            seconds=plan.seconds,
            seed=seed,
            clients=clients,
            distribution=distribution,
            size=size,
        )
        let_through = gateway.metric("stoplog_checks_degraded_total") - before
        return {**figures, "let_through": int(let_through)}

    return Case(key, stage, what, callers, stoplog.pids(), load)


def sdk(stoplog: Stoplog, plan: Plan, loader: Loader, *, stage: str, callers: int, key: str) -> Case:
    """Callers in a process with a Limiter; it stands where the gateway would."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = loader.run(
            meter,
            mode="check",
            callers=callers,
            clients=CLIENTS,
            distribution="uniform",
            seed=seed,
            warmup_s=plan.warmup_s,
            seconds=plan.seconds,
        )
        return {**figures, "load_cpu_s": None}

    parts = {"gateway": [loader.pid], **stoplog.pids(None)}
    return Case(key, stage, "SDK", callers, parts, load)


def published(
    stoplog: Stoplog,
    plan: Plan,
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
) -> Case:
    """Checks that nobody waits for, judged within the window.

    Args:
        stoplog: The system.
        plan: How long.
        loader: Publishes them.
        stage: Of the case.
        key: Of the case.
        what: Of the case.
        clients: How many there are.
        distribution: How they ask.
        partitions: Only of clients of these.
        callers: Who publish one each in a turn; 0: in each turn what makes batches of 100.
        rate: Checks a second; 0: as many as can be.
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

    return Case(key, stage, what, callers, {"gateway": [loader.pid], **stoplog.pids(None)}, load)


def warm(loader: Loader, plan: Plan, clients: int) -> None:
    """Load it with checks of *clients* until the broker's virtual machine has compiled what it runs.

    Until then a record costs four times as much: 380 µs a check instead of 90, measured with 32 callers.
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
    """Have each of *clients* counted once."""
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
