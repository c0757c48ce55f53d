"""The clock of what must not outlast its time: leases, proofs."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds of a clock that is never set back and, where it can, goes on while the machine is suspended."""
    return time.clock_gettime(_CLOCK)
