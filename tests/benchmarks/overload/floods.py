"""Five times the capacity of a gateway, and a thousand connections that never pause."""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import run_wrk
from tests.benchmarks.overload.context import DEADLINE_MS, FLOOD_CLIENTS, Context
from tests.benchmarks.overload.figures import (
    AT_ONCE,
    DECIDED,
    DEGRADED,
    Flood,
    Memory,
    flood_of,
    kind_of,
)
from tests.benchmarks.overload.open_loop import ATTACK_TIMEOUT_S, MAX_SENT, NO_CONNECTION, NO_RESPONSE
from tests.support.system import eventually

TIMES: Final = 5
_FLOOD_S: Final = 60
_SHORT_FLOOD_S: Final = 20
_ROUNDS: Final = 3
_ROUND_S: Final = 5
_CONNECTIONS: Final = 256
_FEW: Final = 32
_POOLED: Final = 1_000
"""Connections in the pools of all callers. Most pools are bounded: a request waits in its caller, or fails
there, if no connection is free."""
_STORM_TIMEOUT_S: Final = 1.0
"""Each of the other callers' requests holds a connection for as long. A second of them is all that the ports
of one address allow."""
_PROBES: Final = 20.0
"""Checks per second of another caller, which show when service is normal."""
_AFTER_S: Final = 15
_NORMAL_S: Final = 5.0
_SETTLED: Final = 0.25
"""Part of a flood after which memory should not grow any more."""
_FLAT: Final = 1.1


def single_checks(context: Context) -> None:
    """Flood the fast path of a slow gateway with single checks, from callers with pools of connections."""
    with context.slow_gateway():
        capacity = _capacity(context, "single checks")
        _flood(context, "single checks", capacity, _FLOOD_S)


def storm_of_connections(context: Context) -> None:
    """Flood it from callers that open a connection for each check that finds none free."""
    with context.slow_gateway():
        stage = "a connection for each check"
        capacity = _capacity(context, stage)
        _flood(context, stage, capacity, _SHORT_FLOOD_S, in_flight=MAX_SENT, timeout_s=_STORM_TIMEOUT_S)


def requests_of_proxies(context: Context) -> None:
    """Flood the route for proxies."""
    with context.slow_gateway():
        capacity = _capacity_of_route(context, "/v1/authorize")
        _flood(context, "/v1/authorize", capacity, _SHORT_FLOOD_S, path="/v1/authorize")


def thousand_connections(context: Context) -> None:
    """Flood the fast path by 1,000 connections that send a check as soon as they have an answer."""
    stage = "wrk -c 1000"
    memory = Memory(context.pid)
    capacity = _capacity(context, stage)
    before = context.counted()
    with memory.sampled():
        figures = _drive(context, 1_000, _SHORT_FLOOD_S)
    after = context.counted()
    seconds = figures["seconds"]
    decided = (after["decided"] - before["decided"]) / seconds
    add_share(context, stage, decided, capacity)
    rate = figures["checks"] / seconds
    context.add(stage, "answered, with those that failed open at once", f"{rate:,.0f}/s")
    context.add(
        stage,
        "p50 and p99 of what it answers",
        f"{figures['p50_ms']:,.0f} and {figures['p99_ms']:,.0f} ms",
        f"< {2 * DEADLINE_MS:.0f} ms",
        met=figures["p99_ms"] < 2 * DEADLINE_MS,
    )
    errors = figures["errors"]
    context.add(stage, "requests refused or without a response", f"{errors:,}")
    _add_memory(context, stage, memory)


def _capacity(context: Context, stage: str) -> float:
    """Return how many checks are decided per second, the median of several rounds."""
    rates = []
    for number in range(_ROUNDS + 1):
        before = context.counted()
        figures = _drive(context, _CONNECTIONS, _ROUND_S, seed=number)
        after = context.counted()
        if number:
            rates.append((after["decided"] - before["decided"]) / figures["seconds"])
    failed_open = after["degraded"] - before["degraded"]
    capacity = median(rates)
    context.add(
        stage,
        f"capacity ({_CONNECTIONS} connections)",
        f"{capacity:,.0f}/s, p99 {figures['p99_ms']:,.0f} ms, {failed_open:,} failed open",
    )
    return capacity


def _capacity_of_route(context: Context, path: str) -> float:
    """Return how many GET requests to *path* are decided per second, the median of several rounds."""
    floods = [
        flood_of(context.attack("capacity", 0, _ROUND_S, path=path, in_flight=_FEW).results())
        for _ in range(_ROUNDS + 1)
    ][1:]
    capacity = median(flood.rate(DECIDED) for flood in floods)
    p99_ms = floods[-1].kinds[DECIDED].p99_ms
    context.add(path, f"capacity ({_FEW} connections)", f"{capacity:,.0f}/s, p99 {p99_ms:,.0f} ms")
    return capacity


def _drive(context: Context, connections: int, seconds: int, *, seed: int = 0) -> dict[str, float]:
    return run_wrk(
        f"{context.gateway.url}/v1/check",
        Meter({}),
        connections=connections,
        seconds=seconds,
        seed=seed,
        clients=FLOOD_CLIENTS,
    )


def _flood(
    context: Context,
    stage: str,
    capacity: float,
    seconds: int,
    *,
    path: str = "",
    in_flight: int = _POOLED,
    timeout_s: float = ATTACK_TIMEOUT_S,
) -> None:
    memory = Memory(context.pid)
    eventually("no check waits", lambda: context.gateway.metric("stoplog_checks_in_flight") == 0)
    before = context.counted()
    probes = context.attack("probes", _PROBES, seconds + _AFTER_S)
    time.sleep(1)
    with memory.sampled():
        attack = context.attack(
            "flood",
            TIMES * capacity,
            seconds,
            path=path,
            kept=_POOLED,
            in_flight=in_flight,
            timeout_s=timeout_s,
        )
        flood = flood_of(attack.results())
    others = list(probes.results())
    after = context.counted()
    due = flood.sent + attack.unsent
    context.add(
        stage, "due", f"{due / flood.seconds:,.0f}/s, {due / flood.seconds / capacity:.1f} x capacity"
    )
    context.add(stage, "not sent, because no connection was free", f"{attack.unsent / flood.seconds:,.0f}/s")
    add_share(context, stage, flood.checks[0] / flood.seconds, capacity)
    context.add_kinds(stage, flood)
    _add_latency(context, stage, flood)
    unseen = flood.errors.get(NO_RESPONSE)
    for error in (NO_CONNECTION, NO_RESPONSE):
        if number := flood.errors.pop(error, 0):
            context.add(stage, error, f"{number / flood.seconds:,.0f}/s")
    resets = sum(flood.errors.values())
    context.add(
        stage, "resets, or other errors", f"{resets:,} {flood.errors or ''}".strip(), "0", met=not resets
    )
    _add_memory(context, stage, memory)
    abnormal = [
        one.at_s + one.seconds - flood.last_s
        for one in others
        if kind_of(one) != DECIDED or one.seconds * 1e3 >= DEADLINE_MS
    ]
    normal_s = max([*abnormal, 0.0])
    context.add(
        stage,
        "seconds until normal after the end",
        f"{normal_s:.1f}",
        f"<= {_NORMAL_S:g}",
        met=normal_s <= _NORMAL_S,
    )
    seen = flood.checks[1] + sum(one.body.count(b'"degraded":true') for one in others)
    counted = after["degraded"] - before["degraded"]
    context.add(
        stage,
        "checks that failed open: in responses, in metrics, of these not counted",
        f"{seen:,}, {counted:,}, {after['uncounted'] - before['uncounted']:,}",
        "" if unseen else "the same",
        met=None if unseen else seen == counted,
    )
    lines = context.gateway.lines("WARNING", "overload")
    context.add(stage, "lines about overload in the log", f"{len(lines)}", ">= 2", met=len(lines) >= 2)


def add_share(context: Context, stage: str, decided: float, capacity: float) -> None:
    """Add a row with the checks that were *decided* per second, relative to the *capacity*."""
    context.add(
        stage,
        "decided by the store, relative to capacity",
        f"{decided:,.0f}/s, {decided / capacity:.0%}",
        ">= 80 %",
        met=decided >= 0.8 * capacity,
    )


def _add_latency(context: Context, stage: str, flood: Flood) -> None:
    worst = max(flood.kinds[kind].p99_ms for kind in (DECIDED, AT_ONCE, DEGRADED) if kind in flood.kinds)
    context.add(
        stage,
        "p99 of what it answers",
        f"{worst:,.0f} ms",
        f"< {2 * DEADLINE_MS:.0f} ms",
        met=worst < 2 * DEADLINE_MS,
    )


def _add_memory(context: Context, stage: str, memory: Memory) -> None:
    samples = memory.samples
    settled = max(samples[: max(int(len(samples) * _SETTLED), 1)])
    peak = max(samples)
    context.add(
        stage,
        "memory at start, peak, end",
        f"{samples[0]:.0f}, {peak:.0f}, {samples[-1]:.0f} MB",
        f"peak <= {_FLAT} x that of the first quarter",
        met=peak <= _FLAT * settled,
    )
