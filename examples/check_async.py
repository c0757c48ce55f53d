"""An asyncio program that checks the client's limits before each job.

::

    python examples/check_async.py alice

``STOPLOG_KAFKA`` sets the address of Kafka.
"""

from __future__ import annotations

import asyncio
import sys

from stoplog import Limiter, Settings


async def main(client: str) -> None:
    """Do up to five jobs for *client*, as its limits allow."""
    async with Limiter(Settings()) as limiter:
        # Checks that are made at the same time share a batch.
        answers = await asyncio.gather(*(limiter.check(client, resource="jobs") for _ in range(5)))
        for job, answer in enumerate(answers, 1):
            if answer.degraded:
                print(f"job {job}: done; the store did not answer ({answer.reason})")
            elif answer.allowed:
                print(f"job {job}: done; {answer.remaining} of {answer.limit} left")
            else:
                print(f"job {job}: over the limit of {answer.limit}")


if len(sys.argv) != 2:
    raise SystemExit(f"usage: python {sys.argv[0]} CLIENT")
asyncio.run(main(sys.argv[1]))
