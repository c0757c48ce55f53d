"""Load through the SDK for threads: a process with a BlockingLimiter and many threads that call it."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from stoplog import BlockingLimiter
from tests.benchmarks.orders import carry_out_orders
from tests.benchmarks.threads import check_in_threads

_PATIENT_MS: Final = 30_000
"""The deadline: a slow check shall be reported as slow, and not fail open."""


def main(bootstrap: str, topics: str, lease_max_ms: str) -> None:
    """Carry out orders until standard input ends."""
    with BlockingLimiter(
        bootstrap, topics=topics, deadline_ms=_PATIENT_MS, lease_max_ms=int(lease_max_ms)
    ) as limiter:
        while not limiter.ready():
            time.sleep(0.05)

        def run(order: dict[str, Any]) -> dict[str, Any]:
            return check_in_threads(order, lambda client: limiter.check(client).allowed)

        carry_out_orders(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
