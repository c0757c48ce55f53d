"""A thousand calls at once to Envoy's rate limit service, each followed by the next one."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from itertools import count
from typing import Any, Final

import grpc
import grpc.aio
from stoplog_gateway.envoy.messages import METHOD, SERVICE, RateLimitRequest, RateLimitResponse

from tests.benchmarks.client_ids import client_id
from tests.benchmarks.overload.context import DEADLINE_MS, FLOOD_CLIENTS, Context
from tests.benchmarks.overload.figures import AT_ONCE, DECIDED, OUTCOMES, latency_of
from tests.benchmarks.overload.floods import add_share

_STAGE: Final = "gRPC"
_CONNECTIONS: Final = 8
_FEW: Final = 32
_MANY: Final = 1_000
_WARM_S: Final = 3.0
_CAPACITY_S: Final = 10.0
_FLOOD_S: Final = 20.0


def grpc_calls(context: Context) -> None:
    """Measure the calls of a slow gateway: a few at a time, then many."""
    with context.slow_gateway():
        asyncio.run(_measure(context))


async def _measure(context: Context) -> None:
    async with AsyncExitStack() as stack:
        # Channels with the same options share a connection by default.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(context.stoplog.grpc_address, options))
            for _ in range(_CONNECTIONS)
        ]
        calls = [
            channel.unary_unary(
                f"/{SERVICE}/{METHOD}",
                request_serializer=RateLimitRequest.SerializeToString,
                response_deserializer=RateLimitResponse.FromString,
            )
            for channel in channels
        ]
        await _drive(calls, _FEW, _WARM_S)
        capacity = len((await _drive(calls, _FEW, _CAPACITY_S))[DECIDED]) / _CAPACITY_S
        context.add(_STAGE, f"capacity ({_FEW} calls at once)", f"{capacity:,.0f}/s")
        seconds = await _drive(calls, _MANY, _FLOOD_S)
    stage = f"{_STAGE}, {_MANY:,} calls at once"
    add_share(context, stage, len(seconds[DECIDED]) / _FLOOD_S, capacity)
    worst = 0.0
    for kind in filter(seconds.get, seconds):
        latency = latency_of(seconds[kind])
        worst = max(worst, latency.p99_ms)
        context.add(
            stage,
            OUTCOMES[kind],
            f"{latency.count / _FLOOD_S:,.0f}/s, p50 {latency.p50_ms:,.0f} ms, p99 {latency.p99_ms:,.0f} ms",
        )
    context.add(
        stage,
        "p99 of what it answers",
        f"{worst:,.0f} ms",
        f"< {2 * DEADLINE_MS:.0f} ms",
        met=worst < 2 * DEADLINE_MS,
    )


async def _drive(calls: list[Any], at_once: int, duration_s: float) -> dict[str, list[float]]:
    """Keep *at_once* calls in flight; return the seconds of those that were decided, or failed open."""
    until, numbers = time.monotonic() + duration_s, count()
    seconds: dict[str, list[float]] = {DECIDED: [], AT_ONCE: []}

    async def caller(call: Any) -> None:
        while (began := time.monotonic()) < until:
            request = RateLimitRequest(domain="edge")
            entry = request.descriptors.add().entries.add()
            entry.key, entry.value = "client_id", client_id(next(numbers) % FLOOD_CLIENTS)
            response = await call(request)
            decided = response.statuses[0].HasField("current_limit")
            seconds[DECIDED if decided else AT_ONCE].append(time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(caller(calls[number % len(calls)]))
    return seconds
