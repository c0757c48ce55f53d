"""Report overload of the gateway: one line in the log when it begins, and one when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from stoplog.client.fail_open import OVERLOAD
from stoplog.client.metrics import Metrics

log = logging.getLogger(__name__)

QUIET_S: Final = 10.0
"""Seconds without a check that the gateway had no time for. Then the overload has ended."""


class OverloadReport:
    """Watches the checks that were degraded because the gateway had no time for them.

    Args:
        metrics: Counts them.
        clock: Returns monotonic seconds.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._seen = self._seen_uncounted = 0
        self._began: float | None = None
        self._last = 0.0
        self._before = self._before_uncounted = 0

    def on_tick(self) -> None:
        """Compare the counts with those of the last call. Call this about twice a second."""
        metrics, now = self._metrics, self._clock()
        count = metrics.degraded[OVERLOAD] + metrics.failed_closed[OVERLOAD]
        if count > self._seen:
            self._last = now
            if self._began is None:
                self._began = now
                self._before, self._before_uncounted = self._seen, self._seen_uncounted
                log.warning(
                    "overload: checks are answered without the store, because the event loop is late or "
                    "max_in_flight checks wait. Add gateways, or processes with STOPLOG_PROCESSES"
                )
        elif self._began is not None and now - self._last >= QUIET_S:
            log.warning(
                "overload ended after %.1f s: %s checks were answered without the store, %s are not counted",
                self._last - self._began,
                f"{count - self._before:,}",
                f"{metrics.uncounted - self._before_uncounted:,}",
            )
            self._began = None
        self._seen, self._seen_uncounted = count, metrics.uncounted
