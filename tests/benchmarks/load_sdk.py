"""Load through the SDK: a process with a Limiter, and any number of callers in its event loop.

In mode ``check``, each caller sends a check, waits for the answer, and sends the next. In mode ``publish``,
no caller waits. In each turn of the event loop each caller publishes one check. Without callers, each turn
publishes batches of 100 in every partition. Checks are published at a rate, or as fast as possible. From time
to time a check in each partition waits for the worker, so that only judged checks are counted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import uvloop

from stoplog import Check, Limiter
from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, load_topics
from tests.benchmarks.client_ids import client_id, picker
from tests.benchmarks.orders import Stopwatch, orders, say

BATCH: Final = 100
"""Checks per partition in each turn of ``publish``."""

_LOT: Final = 10 * BATCH
"""Checks per partition between two waits for the worker."""

_PATIENT_MS: Final = 30_000
"""The deadline: a slow check shall be reported as slow, and not fail open."""


async def main(bootstrap: str, topics: str, lease_max_ms: str) -> None:
    """Carry out orders until standard input ends."""
    partitions = load_topics(Path(topics))[CHECKS].partitions
    async with Limiter(
        bootstrap, topics=topics, deadline_ms=_PATIENT_MS, lease_max_ms=int(lease_max_ms)
    ) as limiter:
        while not await limiter.ready():  # noqa: ASYNC110 - readiness is probed, there is no event
            await asyncio.sleep(0.05)
        say("ready")
        given = orders()
        while (order := await asyncio.to_thread(next, given, None)) is not None:
            before = limiter.metrics.failed_open
            figures = await _carry_out(limiter, order, partitions)
            say(json.dumps({**figures, "failed_open": limiter.metrics.failed_open - before}))


async def _carry_out(limiter: Limiter, order: dict[str, Any], partitions: int) -> dict[str, Any]:
    watch = Stopwatch(order["warmup_s"], order["seconds"], order.get("checks"))
    pick = picker(order["clients"], order["distribution"], order["seed"])
    if order["mode"] == "check":
        async with asyncio.TaskGroup() as callers:
            for _ in range(order["callers"]):
                callers.create_task(_call(limiter, watch, pick))
    else:
        among = order["partitions"] or list(range(partitions))
        peeks = [Check(_client_in(partition, partitions), 0) for partition in among]
        turn = order["callers"] or BATCH * len(among)
        turns = max(1, _LOT * len(among) // turn)
        pause_s = turn / order["rate"] if order["rate"] else 0.0
        await _publish(limiter, watch, _within(among, partitions, pick), peeks, turn, turns, pause_s)
    return watch.figures()


async def _call(limiter: Limiter, watch: Stopwatch, pick: Callable[[], int]) -> None:
    going = True
    while going:
        sent_at = perf_counter()
        await limiter.check(client_id(pick()))
        going = watch.done(1, sent_at)


async def _publish(
    limiter: Limiter,
    watch: Stopwatch,
    pick: Callable[[], str],
    peeks: list[Check],
    turn: int,
    turns: int,
    pause_s: float,
) -> None:
    """Publish *turns* of *turn* checks, and publish the next ones while the worker judges them."""
    due = perf_counter()
    judged: asyncio.Future[Any] | None = None
    going = True
    while going:
        for _ in range(turns):
            for _ in range(turn):
                await limiter.publish(pick())
            due += pause_s
            await asyncio.sleep(max(0.0, due - perf_counter()))
        if judged is not None:
            await judged
            going = watch.done(turn * turns)
        judged = asyncio.ensure_future(limiter.check_many(peeks))
    if judged is not None:
        await judged


def _within(among: list[int], partitions: int, pick: Callable[[], int]) -> Callable[[], str]:
    """Return a function that returns ids of clients whose partition is one of *among*."""
    if len(among) == partitions:
        return lambda: client_id(pick())

    def within() -> str:
        while partition_of(client := client_id(pick()), partitions) not in among:
            pass
        return client

    return within


def _client_in(partition: int, partitions: int) -> str:
    names = (f"peek-{number}" for number in count())
    return next(name for name in names if partition_of(name, partitions) == partition)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
