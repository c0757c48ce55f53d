"""CPU time of a process, as the kernel counts it."""

from __future__ import annotations

import time


def own_cpu_seconds(pid: int) -> float:
    """Return the user and system time so far of one process, without its children.

    Raises:
        OSError: The process has ended.
    """
    return time.clock_gettime(~pid << 3 | 2)  # the id of its CPU clock, as clock_getcpuclockid(3) makes it
