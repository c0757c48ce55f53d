"""How long to wait before starting again what has ended by itself."""

from __future__ import annotations

import time
from typing import Final

_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
_STEADY_S: Final = 60.0
"""Having run this long, a process is taken to be sound, and its next end is the first of a row again."""


class Backoff:
    """The ends of one process in a row."""

    def __init__(self) -> None:
        self._started = 0.0
        self._ends = 0

    def started(self) -> None:
        """It was started."""
        self._started = time.monotonic()

    def delay(self) -> float:
        """Seconds to wait before the next start, having ended once more: doubled for each end in a row."""
        if time.monotonic() - self._started > _STEADY_S:
            self._ends = 0
        self._ends += 1
        return min(_FIRST_DELAY_S * 2.0 ** (self._ends - 1), _MAX_DELAY_S)
