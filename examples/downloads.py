"""Limit a client's downloads: how many run at the same time, and how many bytes they send in an hour.

Both limits are for all processes together.

::

    stoplog limits set team-7 --resource downloads 1000000/hour "2 in flight"
    python examples/downloads.py team-7 5 30000

The arguments are the client, the number of downloads to begin at the same time, and the bytes of each.
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
    """Send a file of *size* bytes to *client* if its limits allow that. Return the outcome as a sentence."""
    # Each open reservation is a download in progress. on_error="charge" charges the bytes that were sent even
    # if the reader hangs up. If this process dies, all of the reservation is charged when ttl_ms is over.
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
    """Begin so many downloads of *size* bytes at the same time, and print their outcomes."""
    async with Limiter(Settings()) as limiter:
        results = await asyncio.gather(*(download(limiter, client, size) for _ in range(downloads)))
        for number, result in enumerate(results, 1):
            print(f"download {number}: {result}")
        print(f"{(await limiter.peek(client, resource='downloads')).remaining} bytes left")


if len(sys.argv) != 4:
    raise SystemExit(f"usage: python {sys.argv[0]} CLIENT DOWNLOADS SIZE")
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
