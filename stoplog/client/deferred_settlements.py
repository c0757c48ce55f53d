"""Settlements that were refused because the number of partitions grows. They are made after the pause.

The caller of a settlement does not wait for the end of the pause: the answer is ``unconfirmed`` at once. What
is settled twice is settled once, so the caller may repeat the call, too. A settlement is given up when its
reservation ends, and when the limiter stops. The reservation is then charged in full.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from stoplog.client.answer import Answer, HeldAnswer, PendingAnswer, answer_of
from stoplog.client.batcher import Batcher
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import HoldCall
from stoplog.errors import InvalidInput
from stoplog.wire.checks import Check
from stoplog.wire.holds import HoldId, Settlement

log = logging.getLogger(__name__)

MOST: Final = 100_000
"""Settlements that are kept, about 50 MB. Further ones are given up at once."""

_ROUND: Final = 1_000
"""Settlements that are made at the same time, so that checks need not wait for all of them."""

_RETRY_S: Final = 1.0
"""Seconds until a settlement that no worker has confirmed is sent again."""


class Deferred(NamedTuple):
    """A settlement that is to be made.

    Attributes:
        check: The check that carries it.
        settlement: The settlement.
        until_ms: When its reservation ends at the earliest, ms since the Unix epoch.
    """

    check: Check
    settlement: Settlement
    until_ms: int


class DeferredSettlements:
    """The settlements of one limiter that wait for the end of a pause. It outlives the engines.

    Args:
        metrics: Counts those that are given up.
        wall_ms: Returns the milliseconds since the Unix epoch.
    """

    def __init__(self, metrics: Metrics, wall_ms: Callable[[], int]) -> None:
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._waiting: dict[HoldId, Deferred] = {}
        self._making: asyncio.Future[None] | None = None
        """Done once the call of :meth:`make` that is under way ends."""

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def add(self, deferred: Deferred) -> None:
        """Make a settlement later. Of two for the same reservation, the first one counts, as in the log."""
        if len(self._waiting) >= MOST:
            self._metrics.count_unpublished(growing=True)
            return
        self._waiting.setdefault(deferred.settlement.id, deferred)

    async def make(self, batcher: Callable[[], Batcher]) -> None:
        """Publish them until workers have confirmed all of them. Calls make them one after the other.

        Args:
            batcher: Returns the batcher in use. A step of growing replaces it.
        """
        while self._making is not None:
            await asyncio.wait([self._making])
        self._making = making = asyncio.get_running_loop().create_future()
        try:
            await self._make(batcher)
        finally:
            self._making = None
            making.set_result(None)

    async def _make(self, batcher: Callable[[], Batcher]) -> None:
        while self._waiting:
            left = iter(list(self._waiting.values()))
            while part := list(islice(left, _ROUND)):
                pending = [batcher().hold(one.check, HoldCall(None, (one.settlement,))) for one in part]
                for one, answer in zip(part, pending, strict=True):
                    await self._await_answer(one, answer)
            if self._waiting:
                await asyncio.sleep(_RETRY_S)

    async def _await_answer(self, one: Deferred, pending: PendingAnswer) -> None:
        try:
            answer = pending if isinstance(pending, Answer) else answer_of(await pending)
            made = isinstance(answer, HeldAnswer) and len(answer.settled) == 1
        except InvalidInput:  # a worker refuses it
            made, over = False, True
        else:
            over = self._wall_ms() >= one.until_ms
        if made or over:
            self._waiting.pop(one.settlement.id, None)
            if not made:
                self._metrics.count_unpublished(growing=True)

    async def finish(self, batcher: Callable[[], Batcher], for_s: float) -> None:
        """Make them, at most for *for_s* seconds. Then give up the rest.

        It does not rely on another task to make them: an event loop that ends has cancelled all of them.
        """
        try:
            async with asyncio.timeout(for_s):
                await self.make(batcher)
        except TimeoutError:
            log.warning(
                "%d reservations could not be settled, because the number of partitions grows: they are "
                "charged in full at their end",
                len(self._waiting),
            )
            self._metrics.count_unpublished(growing=True, calls=len(self._waiting))
            self._waiting.clear()
