"""Limit downloads of a client: how many at the same time, over all processes, and how many bytes an hour.

::

    stoplog limits set team-7 --resource downloads 1000000/hour "2 in flight"
    python examples/downloads.py team-7 5 30000

The arguments are the client, the number of downloads that it begins at the same time, and the bytes of each.
``STOPLOG_KAFKA`` sets the address of Kafka.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from stoplog import Denied, Limiter, Settings

CHUNK = 10_000
"""Bytes that are sent at once."""


async def content(size: int) -> AsyncIterator[bytes]:
    """Yield the chunks of a file. Your storage takes the place of this function."""
    for start in range(0, size, CHUNK):
        await asyncio.sleep(0)
        yield bytes(min(CHUNK, size - start))


async def download(limiter: Limiter, client: str, size: int) -> str:
    """Send a file of *size* bytes to *client*, if its limits allow it; return what became of that."""
    # Each open reservation is a download in progress. Bytes that were sent are charged although the reader
    # hangs up: on_error="charge". If this process dies, the place is free again after ttl_ms.
    reserving = limiter.reserve(
        client, size, resource="downloads", ttl_ms=600_000, on_error="charge", on_unavailable="deny"
    )
    try:
        async with reserving as held:
            held.used = 0
            async for chunk in content(size):
                held.used += len(chunk)
    except Denied as denied:
        return f"not now: {denied.reservation.detail or denied}"
    return f"{held.used} bytes sent"


async def main(client: str, downloads: int, size: int) -> None:
    """Begin *downloads* at the same time."""
    async with Limiter(Settings()) as limiter:
        results = await asyncio.gather(*(download(limiter, client, size) for _ in range(downloads)))
        for number, result in enumerate(results, 1):
            print(f"download {number}: {result}")
        print(f"{(await limiter.peek(client, resource='downloads')).remaining} bytes left")


if len(sys.argv) != 4:
    raise SystemExit(f"usage: python {sys.argv[0]} CLIENT DOWNLOADS SIZE")
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
