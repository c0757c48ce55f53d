"""What a gateway process does differently where several share a port (gateway/prefork.py)."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.metrics import Metrics
from gateway.shared_metrics import FLUSH_S, SharedMetrics

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """The place of one process among the others.

    Attributes:
        place: Its number, from 1.
        reply_slot: See :class:`~gateway.limiter.Limiter`.
        folder: Of the metrics of all.
        parent: Descriptor that can be read (the end of a pipe) once the parent is gone.
    """

    place: int
    reply_slot: int
    folder: Path
    parent: int

    @asynccontextmanager
    async def joined(self, metrics: Metrics) -> AsyncIterator[None]:
        """Share *metrics* meanwhile, and end as by SIGTERM when the parent is gone.

        Signals, which the parent keeps blocked, come through from here on.
        """
        loop = asyncio.get_running_loop()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        loop.add_reader(self.parent, self._orphaned, loop)
        shared = SharedMetrics(metrics.registry, self.folder, self.place)
        metrics.shown = shared.registry
        flushing = loop.create_task(_flush(shared))
        try:
            yield
        finally:
            metrics.shown = metrics.registry
            flushing.cancel()
            loop.remove_reader(self.parent)
            shared.close()

    def _orphaned(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self.parent)
        signal.raise_signal(signal.SIGTERM)


async def _flush(shared: SharedMetrics) -> None:
    failing = False
    while True:
        try:
            shared.flush()
            failing = False
        except Exception:
            if not failing:
                log.exception("metrics of this process grow old on the others' pages (is TMPDIR full?)")
            failing = True
        await asyncio.sleep(FLUSH_S)
