"""Compute how long to wait before a process that ended by itself is started again."""

from __future__ import annotations

import time
from typing import Final

_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
_STABLE_S: Final = 60.0
"""After this run time a process counts as stable, and its next end counts as the first in a row."""


class RestartBackoff:
    """Exponential backoff for the restarts of one process."""

    def __init__(self) -> None:
        self._started_at = 0.0
        self._failures = 0

    def on_start(self) -> None:
        """Record that the process was started."""
        self._started_at = time.monotonic()

    def next_delay(self) -> float:
        """Record that the process ended, and return the seconds to wait before the next start.

        The delay doubles with each end in a row, up to 30 s.
        """
        if time.monotonic() - self._started_at > _STABLE_S:
            self._failures = 0
        self._failures += 1
        return min(_FIRST_DELAY_S * 2.0 ** (self._failures - 1), _MAX_DELAY_S)
