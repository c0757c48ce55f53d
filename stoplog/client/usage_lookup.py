"""Look up the limits of a client, what it has used of each window, and what is held.

The worker that owns the client's partition knows. A lookup is a single check of cost 0, which charges
nothing. Its reply describes every window; the reply to a batch only has the one nearest to being used up.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Final, Protocol

from stoplog.errors import Busy, Unavailable
from stoplog.partitioning import partition_of
from stoplog.wire.checks import Check, SingleCheck, encode_single
from stoplog.wire.format import ReplyTo
from stoplog.wire.replies import LookupReply

LOOKUP_S: Final = 2.0
"""Seconds that a lookup waits for the worker: longer than a check, for a person is waiting."""

MAX_WAITING: Final = 64
"""Lookups at the same time. Each is a record of its own and costs a worker as much as many batched checks."""


class Checks(Protocol):
    """The topic ``checks``, as the transport provides it."""

    reply_partition: int

    def send_lookup(self, partition: int, value: bytes) -> None:
        """Publish a single check; raise Unavailable if that fails now. A later failure is not reported."""


class UsageLookup:
    """Sends lookups and waits for their replies. Belongs to one event loop.

    Args:
        checks: The topic ``checks``.
        partitions: Its number of partitions.
        prefix: Prefix of the ids of this process's lookups.
    """

    def __init__(self, checks: Checks, *, partitions: int, prefix: str) -> None:
        self._checks = checks
        self._partitions = partitions
        self._prefix = prefix
        self._numbers = count(1)
        self._waiting: dict[str, asyncio.Future[LookupReply]] = {}

    async def look_up(self, client: str, plan: str, resource: str) -> LookupReply:
        """Return what the worker of *client* knows about it.

        Raises:
            Busy: :data:`MAX_WAITING` lookups are waiting already.
            Unavailable: The worker did not reply within :data:`LOOKUP_S`, or is too old to describe windows.
        """
        if len(self._waiting) == MAX_WAITING:
            raise Busy(f"{MAX_WAITING} lookups are waiting already: try again later")
        id_ = f"{self._prefix}{next(self._numbers)}"
        to = ReplyTo(self._checks.reply_partition, id_)
        partition = partition_of(client, self._partitions)
        future: asyncio.Future[LookupReply] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = future
        try:
            self._checks.send_lookup(
                partition, encode_single(SingleCheck(Check(client, 0, plan, resource), to))
            )
            async with asyncio.timeout(LOOKUP_S):
                found = await future
        except TimeoutError:
            raise Unavailable(
                f"the worker of partition {partition} did not reply: check that it runs (`stoplog status`)"
            ) from None
        finally:
            del self._waiting[id_]
        if found.error is not None or found.windows is None:
            raise Unavailable(found.error or "the worker is too old to describe windows: upgrade it")
        return found

    def on_replies(self, replies: list[LookupReply]) -> None:
        """Take replies of workers. Late ones, and those of a second lane, are dropped."""
        for reply in replies:
            future = self._waiting.get(reply.id)
            if future is not None and not future.done():
                future.set_result(reply)
