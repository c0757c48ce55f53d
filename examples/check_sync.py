"""Threads that share one limiter, without asyncio.

::

    python examples/check_sync.py alice

``STOPLOG_KAFKA`` sets the address of Kafka.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from stoplog import BlockingLimiter, Settings


def main(client: str) -> None:
    """Send up to ten messages for *client*, as its limits allow."""
    with BlockingLimiter(Settings()) as limiter, ThreadPoolExecutor(4) as pool:

        def send(message: int) -> bool:
            return limiter.check(client, resource="messages").allowed

        sent = sum(pool.map(send, range(10)))
        left = limiter.peek(client, resource="messages").remaining
        print(f"{sent} sent, {10 - sent} held back, {left} left")


if len(sys.argv) != 2:
    raise SystemExit(f"usage: python {sys.argv[0]} CLIENT")
main(sys.argv[1])
