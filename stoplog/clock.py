"""The clock for leases and for other facts that must not outlast their time."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux has a monotonic clock that continues while the machine is suspended."""


def now() -> float:
    """Return seconds of a monotonic clock that, where possible, continues while the machine is suspended."""
    return time.clock_gettime(_CLOCK)
