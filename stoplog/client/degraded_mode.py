"""Normal or degraded, for the gateway as a whole: one line in the log when it begins, one when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from stoplog.client.metrics import Metrics

log = logging.getLogger(__name__)

SETTLE_S: Final = 1.0
"""Degraded mode ends when every partition has answered for this long."""

MAX_SETTLE_S: Final = 60.0
"""A partition that flaps doubles the time to settle, up to this: at most two lines a minute."""


class Mode:
    """Which partitions are degraded, since when and why.

    Args:
        metrics: Where let-through and uncounted checks are counted; ``degraded_partitions`` is set here.
        clock: Seconds, monotonic.
        wall_ms: Milliseconds since the Unix epoch; only shown.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float], wall_ms: Callable[[], int]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._wall_ms = wall_ms
        self._settle_s = SETTLE_S
        self._began = 0.0
        self._well_since = self._ended = float("-inf")
        self._failed_open = self._uncounted = 0
        self.since_ms = wall_ms()
        self.why: str | None = None
        self.partitions: set[int] = set()

    @property
    def degraded(self) -> bool:
        """Whether degraded mode is on; it outlasts the last partition's breaker until things have settled."""
        return self.why is not None

    @property
    def failed_open(self) -> int:
        """Checks let through since degraded mode began; 0 when normal."""
        return self._metrics.failed_open - self._failed_open if self.degraded else 0

    @property
    def uncounted(self) -> int:
        """Checks that could not be published since degraded mode began; 0 when normal."""
        return self._metrics.uncounted - self._uncounted if self.degraded else 0

    def opened(self, partition: int, why: str) -> None:
        """The breaker of *partition* opened; *why* is for the operator."""
        self.partitions.add(partition)
        self._metrics.degraded_partitions = len(self.partitions)
        if self.degraded:
            return
        now = self._clock()
        flapping = now - self._ended < MAX_SETTLE_S
        self._settle_s = min(self._settle_s * 2, MAX_SETTLE_S) if flapping else SETTLE_S
        self._began, self.since_ms, self.why = now, self._wall_ms(), why
        log.warning("degraded: checks are let through without an answer: %s", why)

    def closed(self, partition: int) -> None:
        """The breaker of *partition* closed."""
        self.partitions.discard(partition)
        self._metrics.degraded_partitions = len(self.partitions)
        self._well_since = self._clock()

    def tick(self, *, calm: bool) -> None:
        """End degraded mode if all has been well for long enough; to be called about twice a second.

        Args:
            calm: No partition is missing deadlines. The checks let through in an episode are counted from
                the last calm tick before it, since those that opened the breaker belong to it.
        """
        now = self._clock()
        if not self.degraded:
            if calm:
                self._failed_open, self._uncounted = self._metrics.failed_open, self._metrics.uncounted
            return
        if self.partitions or now - self._well_since < self._settle_s:
            return
        log.warning(
            "normal again after %.1f s degraded: %s checks were let through, %s could not be published "
            "and are uncounted",
            now - self._began,
            f"{self.failed_open:,}",
            f"{self.uncounted:,}",
        )
        self._ended, self.since_ms, self.why = now, self._wall_ms(), None
