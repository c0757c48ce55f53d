"""Cases of the peers, and of the raw echo, which is the floor for any check that goes through Kafka."""

from __future__ import annotations

from typing import Any, Final

from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.cases_stoplog import JSON_DOOR
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import CHECK_TEXT, drive
from tests.benchmarks.loader import Loader
from tests.benchmarks.plan import CLIENT_COUNT, BenchPlan

_THROTTLE: Final = (
    '{"key":"',
    '","max_burst":1000000,"count_per_period":1000000,"period":60,"quantity":1}',
)

STAGE: Final = "callers"


def limits_http(port: int, pids: list[int], plan: BenchPlan, connections: int) -> BenchCase:
    """Return the case of wrk on `limits` behind FastAPI. Redis is part of the server."""
    what = "peer: limits 5.8 + FastAPI + Redis, HTTP"
    return _wrk("limits", what, f"http://127.0.0.1:{port}/v1/check", pids, plan, connections)


def throttlecrab_http(port: int, pids: list[int], plan: BenchPlan, connections: int) -> BenchCase:
    """Return the case of wrk on throttlecrab's server."""
    what = "peer: throttlecrab (Rust, in memory, not durable), HTTP"
    url = f"http://127.0.0.1:{port}/throttle"
    return _wrk("throttlecrab", what, url, pids, plan, connections, _THROTTLE)


def envoy_ratelimit_http(
    port: int, pids: list[int], plan: BenchPlan, connections: int, distribution: str = "uniform"
) -> BenchCase:
    """Return the case of wrk on envoyproxy/ratelimit, ``POST /json``. Redis is part of the server."""
    what = "peer: envoyproxy/ratelimit + Redis, POST /json"
    url = f"http://127.0.0.1:{port}{JSON_DOOR.path}"
    return _wrk("ratelimit", what, url, pids, plan, connections, JSON_DOOR.check, distribution)


def _wrk(
    peer: str,
    what: str,
    url: str,
    pids: list[int],
    plan: BenchPlan,
    connections: int,
    check: tuple[str, str] = CHECK_TEXT,
    distribution: str = "uniform",
) -> BenchCase:
    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return drive(
            url,
            meter,
            connections=connections,
            seconds=plan.seconds,
            seed=seed,
            clients=CLIENT_COUNT,
            check=check,
            distribution=distribution,
        )

    return BenchCase(f"{peer}-{connections}", STAGE, what, connections, {"server": pids}, load)


def redis_script(loader: Loader, pids: list[int], plan: BenchPlan, pipelined: int) -> BenchCase:
    """Return the case of redis-py calling the sliding-window script."""

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        return loader.run(
            meter,
            clients=CLIENT_COUNT,
            pipelined=pipelined,
            seed=seed,
            warmup_s=plan.warmup_s,
            seconds=plan.seconds,
        )

    how = "single calls" if pipelined == 1 else f"{pipelined} calls in a pipeline"
    what = f"peer: Redis 7, sliding-window script, no HTTP, {how}"
    return BenchCase(f"redis-{pipelined}", STAGE, what, 1, {"server": pids}, load)


def echo(
    caller: Loader,
    server_pid: int,
    broker_pid: int,
    plan: BenchPlan,
    *,
    key: str,
    partitions: int,
    size: int,
    stage: str = STAGE,
    rate: int = 0,
    seconds: int | None = None,
) -> BenchCase:
    """Return the case of the echo: one record of *size* checks in flight in each of *partitions*.

    *caller* stands in the gateway's place. It sends the next record at once, or *rate* records per second.
    """

    def load(meter: Meter, seed: int) -> dict[str, Any]:
        figures = caller.run(
            meter,
            partitions=partitions,
            size=size,
            rate=rate,
            warmup_s=plan.warmup_s,
            seconds=seconds or plan.seconds,
        )
        return {**figures, "load_cpu_s": None}

    what = "floor: raw Kafka echo" + ("" if size == 1 else f", {size} checks per record, 4 in flight")
    what += f", {rate}/s" if rate else ""
    parts = {"gateway": [caller.pid], "worker": [server_pid], "broker": [broker_pid]}
    return BenchCase(key, stage, what, partitions, parts, load)
