"""Load by threads: each sends a check, waits for the answer, and sends the next.

Standard library only: the peers' environment imports it too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter
from typing import Any

from tests.benchmarks.client_ids import client_id, picker
from tests.benchmarks.orders import Stopwatch


def check_in_threads(order: dict[str, Any], check: Callable[[str], bool]) -> dict[str, Any]:
    """Return the figures of ``callers`` threads that call *check*, which returns whether a client may go on.

    Raises:
        RuntimeError: A check was denied.
    """
    watch, lock = Stopwatch(order["warmup_s"], order["seconds"]), Lock()
    pick = picker(order["clients"], order["distribution"], order["seed"])

    def call() -> None:
        going = True
        while going:
            client = client_id(pick())
            sent_at = perf_counter()
            if not check(client):
                raise RuntimeError(f"{client} was denied")
            with lock:
                going = watch.done(1, sent_at)

    with ThreadPoolExecutor(order["callers"]) as pool:
        for ended in [pool.submit(call) for _ in range(order["callers"])]:
            ended.result()
    return watch.figures()
