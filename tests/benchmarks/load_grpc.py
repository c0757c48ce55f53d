"""Load through Envoy's rate limit service: a process with callers, each of which waits for its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import grpc
import grpc.aio
import uvloop
from stoplog_gateway.envoy.messages import METHOD, OK, SERVICE, RateLimitRequest, RateLimitResponse

from tests.benchmarks.client_ids import client_id, picker
from tests.benchmarks.orders import Stopwatch, orders, say

_CONNECTIONS: Final = 4
"""Connections of the callers. Envoy has one for each of its threads."""

_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)  # channels do not share connections


async def main() -> None:
    """Carry out orders until standard input ends."""
    say("ready")
    given = orders()
    while (order := await asyncio.to_thread(next, given, None)) is not None:
        say(json.dumps(await _carry_out(order)))


async def _carry_out(order: dict[str, Any]) -> dict[str, Any]:
    watch = Stopwatch(order["warmup_s"], order["seconds"])
    pick = picker(order["clients"], "uniform", order["seed"])
    channels = [grpc.aio.insecure_channel(order["address"], options=_OPTIONS) for _ in range(_CONNECTIONS)]
    try:
        calls: list[Any] = [channel.unary_unary(f"/{SERVICE}/{METHOD}") for channel in channels]
        async with asyncio.TaskGroup() as callers:
            for number in range(order["callers"]):
                callers.create_task(_ask(calls[number % _CONNECTIONS], watch, pick))
    finally:
        for channel in channels:
            await channel.close()
    return watch.figures()


async def _ask(call: Callable[[bytes], Any], watch: Stopwatch, pick: Callable[[], int]) -> None:
    going = True
    while going:
        request = _request(client_id(pick()))
        sent_at = perf_counter()
        response = await call(request)
        going = watch.done(1, sent_at)
        if RateLimitResponse.FromString(response).overall_code != OK:
            raise RuntimeError("a call was denied")


def _request(client: str) -> bytes:
    request = RateLimitRequest(domain="edge")
    request.descriptors.add().entries.add(key="client", value=client)
    content: bytes = request.SerializeToString()
    return content


if __name__ == "__main__":
    uvloop.run(main())
