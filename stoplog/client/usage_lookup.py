"""A client looked up: what it is held to, and what it has used of each window.

The worker that owns the client knows. It is asked by a single check of cost 0, which charges nothing; its
reply tells of every window, where a batch's tells only of the one nearest to being used up.
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

LOOK_S: Final = 2.0
"""Seconds that a look waits for the worker: a person asks, so longer than a check."""

MAX_WAITING: Final = 64
"""Looks at the same time: each is a record of its own, and costs a worker what many batched checks do."""


class Checks(Protocol):
    """The topic ``checks``: the transport."""

    reply_partition: int

    def send_lookup(self, partition: int, value: bytes) -> None:
        """Publish a single check; raises Unavailable. One that fails later is not told: nobody answers."""


class Lookup:
    """Looks that wait for their reply; of one event loop.

    Args:
        checks: The topic.
        partitions: Its partitions.
        prefix: What the ids of this gateway's looks begin with.
    """

    def __init__(self, checks: Checks, *, partitions: int, prefix: str) -> None:
        self._checks = checks
        self._partitions = partitions
        self._prefix = prefix
        self._numbers = count(1)
        self._waiting: dict[str, asyncio.Future[LookupReply]] = {}

    async def look(self, client: str, plan: str, resource: str) -> LookupReply:
        """Ask the owner of *client*.

        Raises:
            Busy: :data:`MAX_WAITING` looks wait already.
            Unavailable: it did not answer within :data:`LOOK_S`, or cannot tell.
        """
        if len(self._waiting) == MAX_WAITING:
            raise Busy(f"{MAX_WAITING} clients are being looked up: try again later")
        id_ = f"{self._prefix}{next(self._numbers)}"
        to = ReplyTo(self._checks.reply_partition, id_)
        partition = partition_of(client, self._partitions)
        future: asyncio.Future[LookupReply] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = future
        try:
            self._checks.send_lookup(
                partition, encode_single(SingleCheck(Check(client, 0, plan, resource), to))
            )
            async with asyncio.timeout(LOOK_S):
                found = await future
        except TimeoutError:
            raise Unavailable(f"partition {partition} did not answer: is its worker running?") from None
        finally:
            del self._waiting[id_]
        if found.error is not None or found.windows is None:
            raise Unavailable(found.error or "the worker is too old to tell of windows: upgrade it")
        return found

    def looked(self, looks: list[LookupReply]) -> None:
        """Replies; a further lane's, or one that comes too late, is dropped."""
        for look in looks:
            future = self._waiting.get(look.id)
            if future is not None and not future.done():
                future.set_result(look)
