"""Compute how long to wait before a process that ended by itself is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
_STABLE_S: Final = 60.0
"""After this run time a process counts as stable, and its next end counts as the first in a row."""


class RestartBackoff:
    """Exponential backoff for the restarts of one process.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = 0.0
        self._failures = 0

    def on_start(self) -> None:
        """Record that the process was started."""
        self._started_at = self._clock()

    def next_delay(self) -> float:
        """Record that the process ended, and return the seconds to wait before the next start.

        The delay doubles with each end in a row, up to 30 s.
        """
        if self._clock() - self._started_at > _STABLE_S:
            self._failures = 0
        self._failures += 1
        return self._delay()

    @property
    def keeps_ending(self) -> bool:
        """Whether the process has ended so often in a row that the delay has reached its maximum."""
        return self._delay() == _MAX_DELAY_S and self._clock() - self._started_at <= _STABLE_S

    def _delay(self) -> float:
        # The exponent is bounded: a process that ends for days would make it too large for a float.
        return min(_FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 10), _MAX_DELAY_S)
