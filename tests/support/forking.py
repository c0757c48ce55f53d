"""Programs that fork after they have entered a limiter. Each child prints one line, and ends normally.

Run ``python -m tests.support.forking KIND``. The limiter gets its settings from the environment.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import TopicPartition

from stoplog import BlockingLimiter, Limiter, Settings
from stoplog.kafka import clients
from stoplog.topics import CHECKS

CLIENT = "forked"
KINDS = ("os-fork", "async", "pool", "spawn", "within", "destroyed")


def report(limiter: Any, allowed: bool, degraded: bool, began: float) -> None:
    """Print the answer, the name of the node, and the seconds that the call took."""
    taken = time.monotonic() - began
    print(json.dumps([os.getpid(), limiter.node_id, allowed, degraded, taken]), flush=True)


def check(limiter: BlockingLimiter) -> None:
    began = time.monotonic()
    answer = limiter.check(CLIENT)
    report(limiter._limiter, answer.allowed, answer.degraded, began)


async def check_async(limiter: Limiter) -> None:
    began = time.monotonic()
    answer = await limiter.check(CLIENT)
    report(limiter, answer.allowed, answer.degraded, began)


def in_children(work: Callable[[], None]) -> None:
    """Run *work* in two children, each of which ends as a program does."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            work()
            sys.exit()
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, status


def check_in_pool(_: int) -> None:
    check(entered)


def check_after_spawn() -> None:
    with BlockingLimiter(Settings()) as limiter:
        check(limiter)


def destroy_clients() -> None:
    """Have children destroy a connected consumer of their parent: librdkafka would abort the process."""
    connected = [clients.sdk_consumer(Settings().connection)]
    connected[0].assign([TopicPartition(CHECKS, 0)])
    connected[0].list_topics(CHECKS, 30)
    connected[0].poll(1)
    in_children(connected.clear)


entered: BlockingLimiter


def main(kind: str) -> None:
    """Enter a limiter, check, and check again in children."""
    global entered
    if kind == "destroyed":
        destroy_clients()
        return
    if kind == "async":
        # Each `asyncio.run` is a loop of its own. The block is left open on purpose, as a framework would.
        limiter = Limiter(Settings())
        runner = asyncio.Runner()
        runner.run(limiter.__aenter__())
        runner.run(check_async(limiter))
        in_children(lambda: asyncio.run(check_async(limiter)))
        runner.run(limiter.__aexit__(None, None, None))
        return
    entered = BlockingLimiter(Settings())
    with entered:
        check(entered)
        if kind == "os-fork":
            in_children(lambda: check(entered))
        elif kind == "within":  # the child leaves the block without a call
            in_children(lambda: entered.__exit__(None, None, None))
        elif kind == "pool":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(check_in_pool, range(2), chunksize=1)
        else:
            child = multiprocessing.get_context("spawn").Process(target=check_after_spawn)
            child.start()
            child.join()
            assert child.exitcode == 0


if __name__ == "__main__":
    main(sys.argv[1])
