"""One of several gateway processes on a port: share its state with the others, and end with the parent."""

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
from stoplog_gateway.server.shared_metrics import WRITE_INTERVAL_S, SharedMetrics, remove_gauges
from stoplog_gateway.server.shared_status import SharedStatus, remove_status

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessSlot:
    """One process's position among the processes of a gateway. A restarted process takes the same slot.

    Attributes:
        number: Number of the slot, from 1.
        reply_slot: See :class:`~stoplog.client.limiter.Limiter`.
        folder: Folder in which the processes share metrics and status.
        parent_pipe: File descriptor that becomes readable when the parent process is gone.
    """

    number: int
    reply_slot: int
    folder: Path
    parent_pipe: int

    @asynccontextmanager
    async def occupied(self, limiter: Limiter) -> AsyncIterator[None]:
        """Share the metrics and status of *limiter* with the other processes within the block.

        Raises SIGTERM in this process when the parent is gone. The parent blocks signals before it forks;
        this method unblocks them.
        """
        loop = asyncio.get_running_loop()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        loop.add_reader(self.parent_pipe, self._stop_as_orphan, loop)
        metrics = limiter.metrics
        shared = SharedMetrics(metrics.registry, self.folder, self.number)
        status = SharedStatus(limiter.process_state, self.folder, self.number)
        metrics.shown, limiter.other_processes = shared.registry, status.others
        writing = loop.create_task(_write_periodically(shared, status))
        try:
            yield
        finally:
            metrics.shown, limiter.other_processes = metrics.registry, list
            writing.cancel()
            loop.remove_reader(self.parent_pipe)
            shared.close()

    def clean_up(self) -> None:
        """Remove the gauges and the status of a process that has ended. Its counts stay."""
        remove_gauges(self.folder, self.number)
        remove_status(self.folder, self.number)

    def _stop_as_orphan(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self.parent_pipe)
        signal.raise_signal(signal.SIGTERM)


async def _write_periodically(shared: SharedMetrics, status: SharedStatus) -> None:
    failing = False
    while True:
        try:
            shared.write()
            status.write()
            failing = False
        except Exception:
            if not failing:
                log.exception(
                    "cannot write this process's metrics and status, so other processes show old ones "
                    "(is STOPLOG_HOME full?)"
                )
            failing = True
        await asyncio.sleep(WRITE_INTERVAL_S)
