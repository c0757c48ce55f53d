"""Cases of the peers, and of the raw echo that no way through Kafka can be faster than."""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks.case import Case
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import CLIENTS, Plan

_THROTTLE: Final = (
    '{"key":"',
    '","max_burst":1000000,"count_per_period":1000000,"period":60,"quantity":1}',
)

STAGE: Final = "callers"


def limits_http(port: int, pids: list[int], plan: Plan, connections: int) -> Case:
    """wrk on `limits` behind FastAPI; Redis is part of the server."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return drive(
            f"http://127.0.0.1:{port}/v1/check",
            meter,
            connections=connections,
            seconds=plan.seconds,
            seed=seed,
            clients=CLIENTS,
        )

    what = "peer: limits 5.8 + FastAPI + Redis, HTTP"
    return Case(f"limits-{connections}", STAGE, what, connections, {"server": pids}, load)


def throttlecrab_http(port: int, pids: list[int], plan: Plan, connections: int) -> Case:
    """wrk on throttlecrab's server."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return drive(
            f"http://127.0.0.1:{port}/throttle",
            meter,
            connections=connections,
            seconds=plan.seconds,
            seed=seed,
            clients=CLIENTS,
            check=_THROTTLE,
        )

    what = "peer: throttlecrab (Rust, in memory, not durable), HTTP"
    return Case(f"throttlecrab-{connections}", STAGE, what, connections, {"server": pids}, load)


def redis_script(loader: Loader, pids: list[int], plan: Plan, pipelined: int) -> Case:
    """redis-py calling the sliding-window script."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return loader.run(
            meter,
            clients=CLIENTS,
            pipelined=pipelined,
            seed=seed,
            warmup_s=plan.warmup_s,
            seconds=plan.seconds,
        )

    how = "one by one" if pipelined == 1 else f"{pipelined} in a pipeline"
    what = f"peer: Redis 7, sliding-window script, no HTTP, {how}"
    return Case(f"redis-{pipelined}", STAGE, what, 1, {"server": pids}, load)


def echo(
    caller: Loader,
    server_pid: int,
    broker_pid: int,
    plan: Plan,
    *,
    key: str,
    partitions: int,
    size: int,
) -> Case:
    """A record in flight in each of *partitions*, *size* checks in each; *caller* is in a gateway's place."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = caller.run(
            meter, partitions=partitions, size=size, warmup_s=plan.warmup_s, seconds=plan.seconds
        )
        return {**figures, "load_cpu_s": None}

    what = "line: raw Kafka echo" + ("" if size == 1 else f", {size} checks in a record, 4 in flight")
    parts = {"gateway": [caller.pid], "worker": [server_pid], "broker": [broker_pid]}
    return Case(key, STAGE, what, partitions, parts, load)
