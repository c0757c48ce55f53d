"""What a gateway process does differently where several share a port (gateway/stoplog_gateway/server/prefork.py)."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stoplog.client.limiter import Limiter
from stoplog.client.shared_status import SharedState, forget_state
from stoplog_gateway.server.shared_metrics import FLUSH_S, SharedMetrics, forget_gauges

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """The place of one process among the others.

    Attributes:
        place: Its number, from 1.
        reply_slot: See :class:`~stoplog.client.limiter.Limiter`.
        folder: Where all keep what each must know of the others.
        parent: Descriptor that can be read (the end of a pipe) once the parent is gone.
    """

    place: int
    reply_slot: int
    folder: Path
    parent: int

    @asynccontextmanager
    async def joined(self, limiter: Limiter) -> AsyncIterator[None]:
        """Share what *limiter* counts and knows meanwhile, and end as by SIGTERM when the parent is gone.

        Signals, which the parent keeps blocked, come through from here on.
        """
        loop = asyncio.get_running_loop()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        loop.add_reader(self.parent, self._orphaned, loop)
        metrics = limiter.metrics
        shared = SharedMetrics(metrics.registry, self.folder, self.place)
        state = SharedState(limiter.state, self.folder, self.place)
        metrics.shown, limiter.others = shared.registry, state.others
        flushing = loop.create_task(_flush(shared, state))
        try:
            yield
        finally:
            metrics.shown, limiter.others = metrics.registry, list
            flushing.cancel()
            loop.remove_reader(self.parent)
            shared.close()

    def ended(self) -> None:
        """Keep what it has counted, and forget the rest: to be called when the process has ended."""
        forget_gauges(self.folder, self.place)
        forget_state(self.folder, self.place)

    def _orphaned(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self.parent)
        signal.raise_signal(signal.SIGTERM)


async def _flush(shared: SharedMetrics, state: SharedState) -> None:
    failing = False
    while True:
        try:
            shared.flush()
            state.flush()
            failing = False
        except Exception:
            if not failing:
                log.exception("what this process has to say grows old on the others' pages (is TMPDIR full?)")
            failing = True
        await asyncio.sleep(FLUSH_S)
