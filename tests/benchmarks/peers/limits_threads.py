"""A peer: threads that call PyPI's `limits` with its sliding window in Redis.

It runs in the peers' environment.
"""

from __future__ import annotations

import sys
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from tests.benchmarks.orders import carry_out_orders
from tests.benchmarks.threads import check_in_threads


def main(port: str) -> None:
    """Carry out orders until standard input ends."""
    limit = RateLimitItemPerMinute(1_000_000)
    strategy = SlidingWindowCounterRateLimiter(RedisStorage(f"redis://127.0.0.1:{port}"))

    def run(order: dict[str, Any]) -> dict[str, Any]:
        return check_in_threads(order, lambda client: strategy.hit(limit, client))

    carry_out_orders(run)


if __name__ == "__main__":
    main(sys.argv[1])
