"""Degraded mode of the whole gateway: one line in the log when it begins and one when it ends.

After a start, the breakers of partitions without a reply open as well. This is not logged while no check has
failed open: the workers may still be starting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Final

from stoplog.client.metrics import Metrics

log = logging.getLogger(__name__)

SETTLE_S: Final = 1.0
"""Seconds for which every partition must have answered before degraded mode ends."""

FIRST_REPLY_S: Final = 30.0
"""Seconds without the first reply of a partition, and without a check that failed open, after which degraded
mode is logged. Workers that start together with the gateway take a few seconds."""

MAX_SETTLE_S: Final = 60.0
"""Upper bound of the settling time. It doubles while degraded mode returns within this time of its end, so a
partition that keeps failing causes at most two lines a minute."""


class ModeState(Enum):
    """The mode of the gateway.

    =============  ==============  =================  =====================  =========================
    state          breaker opened  a breaker closed   the last one closed    tick after settling time
    =============  ==============  =================  =====================  =========================
    ``NORMAL``     ``DEGRADED``                                              ``NORMAL``
    ``DEGRADED``   ``DEGRADED``    ``DEGRADED``       ``SETTLING``           ``DEGRADED``
    ``SETTLING``   ``DEGRADED``                                              ``NORMAL``
    =============  ==============  =================  =====================  =========================

    A tick before the settling time is over changes nothing. An empty cell cannot happen.
    """

    NORMAL = "normal"
    """Every partition's checks wait for their replies."""

    DEGRADED = "degraded"
    """The circuit breaker of at least one partition is open."""

    SETTLING = "settling"
    """Every circuit breaker is closed again, but not for long enough. Shown to operators as degraded."""


class DegradedMode:
    """Tracks which partitions fail open, since when and why; :class:`ModeState` has its table.

    Args:
        metrics: Counts checks that failed open and uncounted checks; ``degraded_partitions`` is set here.
        clock: Returns monotonic seconds.
        wall_ms: Returns milliseconds since the Unix epoch. It is only shown.

    Attributes:
        state: The current state.
        since_ms: When the gateway last became degraded or normal, in milliseconds since the Unix epoch.
        why: The reason for the degraded mode, for the operator; ``None`` when normal.
        partitions: The partitions whose circuit breaker is open.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float], wall_ms: Callable[[], int]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._wall_ms = wall_ms
        self._settle_s = SETTLE_S
        self._began = 0.0
        self._logged = False
        self._settling_since = self._ended = float("-inf")
        self._failed_open_before = self._failed_closed_before = self._uncounted_before = 0
        self.state = ModeState.NORMAL
        self.since_ms = wall_ms()
        self.why: str | None = None
        self.partitions: set[int] = set()

    @property
    def degraded(self) -> bool:
        """Whether the mode is not normal; it still is while the partitions settle."""
        return self.state is not ModeState.NORMAL

    @property
    def failed_open(self) -> int:
        """Checks that failed open since degraded mode began; 0 when normal."""
        return self._metrics.failed_open - self._failed_open_before if self.degraded else 0

    @property
    def failed_closed(self) -> int:
        """Checks that failed closed since degraded mode began; 0 when normal."""
        total = sum(self._metrics.failed_closed.values())
        return total - self._failed_closed_before if self.degraded else 0

    @property
    def uncounted(self) -> int:
        """Checks that could not be published since degraded mode began; 0 when normal."""
        return self._metrics.uncounted - self._uncounted_before if self.degraded else 0

    def on_breaker_open(self, partition: int, why: str, *, before_first_reply: bool = False) -> None:
        """Enter degraded mode, or stay in it.

        Args:
            partition: The partition whose circuit breaker opened.
            why: The cause, for the operator.
            before_first_reply: The partition has never replied, and nothing else is known to be wrong.
        """
        self.partitions.add(partition)
        self._metrics.degraded_partitions = len(self.partitions)
        before, self.state = self.state, ModeState.DEGRADED
        if before is ModeState.NORMAL:
            now = self._clock()
            returned_soon = now - self._ended < MAX_SETTLE_S
            self._settle_s = min(self._settle_s * 2, MAX_SETTLE_S) if returned_soon else SETTLE_S
            self._began, self.since_ms, self.why = now, self._wall_ms(), why
            self._logged = False
        if not self._logged and (self._has_degraded_checks or not before_first_reply):
            self._log_beginning(why)

    @property
    def _has_degraded_checks(self) -> bool:
        return self.failed_open > 0 or self.failed_closed > 0 or self.uncounted > 0

    def _log_beginning(self, why: str | None) -> None:
        self._logged, self.why = True, why
        log.warning("degraded: checks fail open: %s", why)

    def on_growth(self, partitions: int, why: str) -> None:
        """Enter degraded mode for all *partitions*, because their number grows. *why* is for the operator."""
        if self.degraded and self._logged:
            log.warning("%s", why)
        for partition in range(partitions):
            self.on_breaker_open(partition, why)
        self.why = why

    def on_breaker_closed(self, partition: int) -> None:
        """Begin to settle if *partition* was the last one with an open breaker."""
        self.partitions.discard(partition)
        self._metrics.degraded_partitions = len(self.partitions)
        if self.state is ModeState.DEGRADED and not self.partitions:
            self.state = ModeState.SETTLING
            self._settling_since = self._clock()

    def on_tick(self, *, healthy: bool) -> None:
        """End degraded mode once the partitions have settled. Call this about twice a second.

        Args:
            healthy: No partition is missing deadlines. An episode counts checks from the last healthy tick
                before it, because the checks that opened the breaker belong to the episode.
        """
        if self.state is ModeState.NORMAL:
            if healthy:
                self._failed_open_before = self._metrics.failed_open
                self._failed_closed_before = sum(self._metrics.failed_closed.values())
                self._uncounted_before = self._metrics.uncounted
            return
        now = self._clock()
        if not self._logged and (self._has_degraded_checks or now - self._began >= FIRST_REPLY_S):
            self._log_beginning(self.why)
        if self.state is ModeState.DEGRADED or now - self._settling_since < self._settle_s:
            return
        if self._logged:
            log.warning(
                "normal again after %.1f s: %s checks failed open, %s failed closed, "
                "%s could not be published and are not counted",
                now - self._began,
                f"{self.failed_open:,}",
                f"{self.failed_closed:,}",
                f"{self.uncounted:,}",
            )
        self.state = ModeState.NORMAL
        self._ended, self.since_ms, self.why = now, self._wall_ms(), None

    def on_stop(self) -> None:
        """Log what the gateway leaves uncounted. Call this once everything was published or dropped."""
        uncounted = self._metrics.uncounted - self._uncounted_before
        if not uncounted and not (self.degraded and (self._logged or self._has_degraded_checks)):
            return
        state = f"degraded for {self._clock() - self._began:.1f} s" if self.degraded else "not degraded"
        log.warning(
            "stopped while %s: %s checks failed open, %s could not be published and are not counted",
            state,
            f"{self._metrics.failed_open - self._failed_open_before:,}",
            f"{uncounted:,}",
        )
