"""Compute how long to wait before a process that ended by itself is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST_DOUBLINGS: Final = 20
"""A process that ends for weeks would make the power too large for a float."""


class RestartBackoff:
    """Exponential backoff for the restarts of one process.

    Args:
        first_s: Seconds to wait after the first end in a row.
        most_s: Longest wait in seconds.
        stable_s: Run time after which a process counts as stable: its next end is the first in a row.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        most_s: float = 30.0,
        stable_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._stable_s = stable_s
        self._clock = clock
        self._started_at = 0.0
        self._failures = 0

    def on_start(self) -> None:
        """Record that the process was started."""
        self._started_at = self._clock()

    def next_delay(self) -> float:
        """Record that the process ended, and return the seconds to wait before the next start.

        The delay doubles with each end in a row.
        """
        if self._clock() - self._started_at > self._stable_s:
            self._failures = 0
        self._failures += 1
        return self._delay()

    @property
    def keeps_ending(self) -> bool:
        """Whether the process has ended so often in a row that the delay has reached its maximum."""
        return self._delay() == self._most_s and self._clock() - self._started_at <= self._stable_s

    def _delay(self) -> float:
        return min(self._first_s * 2.0 ** min(self._failures - 1, _MOST_DOUBLINGS), self._most_s)
