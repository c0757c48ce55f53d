"""Keep aiokafka's coordination of the group going after an error.

aiokafka hands an error that it does not expect to its user, and pauses until the user asks for records. Faust
asks its fetcher directly, so nobody takes the error. The worker would never send another heartbeat, and log
nothing. A broker that starts or stops can answer with such an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from stoplog.log_throttle import LogThrottle

_log = logging.getLogger("stoplog.membership")

RETRY_S: Final = 1.0
"""Seconds between an error and the next attempt."""

_SAME_TEXT_S: Final = 600.0
"""Seconds between two log lines with the same error."""


class Coordination:
    """Makes aiokafka's coordinator try again after an error, and reports its end.

    Args:
        coordinator: aiokafka's coordinator. Errors that it would hand to its user come here.
        client: Its client. Without the task that updates the metadata, the coordinator would wait forever.
        failed: Called in the coordinator's thread with the exception that ended one of their tasks.
        retry_s: Seconds between an error and the next attempt.
    """

    def __init__(
        self,
        coordinator: Any,
        client: Any,
        failed: Callable[[BaseException], None],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._coordinator = coordinator
        self._failed = failed
        self._retry_s = retry_s
        self._throttle = LogThrottle(_SAME_TEXT_S)
        coordinator._push_error_to_user = self.retry_later
        for task in (coordinator._coordination_task, client._sync_task):
            task.add_done_callback(self._on_done)

    async def retry_later(self, error: BaseException) -> None:
        """Log *error* and return when the coordinator may try again."""
        if (suppressed := self._throttle.admit(repr(error))) is not None:
            _log.warning(
                "the broker that coordinates the group answered with an error: %s. This worker tries again "
                "every second. Meanwhile it answers checks without writing checkpoints, and later drops its "
                "partitions. If the error lasts, check the brokers and this worker's rights on its group%s",
                error,
                suppressed,
            )
        coordinator = self._coordinator
        await asyncio.wait([coordinator._closing], timeout=self._retry_s)
        # A task that has failed must be started again: the coordinator only looks at its exception.
        if _has_failed(coordinator._heartbeat_task):
            coordinator._heartbeat_task = None
            if not coordinator._closing.done():
                coordinator._start_heartbeat_task()
        if _has_failed(coordinator._commit_refresh_task):
            coordinator._commit_refresh_task = None  # for committed offsets, which are not used

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)


def _has_failed(task: asyncio.Task[None] | None) -> bool:
    return task is not None and task.done() and not task.cancelled() and task.exception() is not None
