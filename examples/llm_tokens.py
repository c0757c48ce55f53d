"""Limit the tokens of a streaming language model: reserve the most, stream, and settle what was used.

::

    stoplog limits set team-7 --resource tokens 10000/hour "2 in flight"
    python examples/llm_tokens.py team-7 500 120

The arguments are the client, the most tokens of the answer (``max_tokens``), and the length of the answer
that the stand-in for a model gives. ``STOPLOG_KAFKA`` sets the address of Kafka.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from stoplog import Denied, Limiter, Settings


async def model(prompt: str, max_tokens: int, length: int) -> AsyncIterator[str]:
    """Yield the tokens of an answer. Your model's client takes the place of this function."""
    for number in range(min(max_tokens, length)):
        await asyncio.sleep(0)
        yield f"{prompt}-{number}"


async def main(client: str, max_tokens: int, length: int) -> None:
    """Stream one answer to *client*, as its limits allow."""
    async with Limiter(Settings()) as limiter:
        # Tokens that were streamed are charged although the reader hangs up: on_error="charge".
        reserving = limiter.reserve(
            client, max_tokens, resource="tokens", ttl_ms=600_000, on_error="charge", on_unavailable="deny"
        )
        try:
            async with reserving as held:
                print(f"{held.reservation.held} tokens reserved, {held.reservation.remaining} left")
                held.used = 0
                async for _ in model("token", max_tokens, length):
                    held.used += 1
        except Denied as denied:
            print(f"no answer now: {denied}")
            return
        print(f"{held.used} tokens used")
        print(f"{(await limiter.peek(client, resource='tokens')).remaining} left")


if len(sys.argv) != 4:
    raise SystemExit(f"usage: python {sys.argv[0]} CLIENT MAX_TOKENS LENGTH")
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
