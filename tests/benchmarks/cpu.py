"""CPU and memory of processes, threads and children included, as the kernel counts them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import psutil


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time so far of processes and all their descendants, ended ones included.

    Read from each process's CPU clock, in nanoseconds: ``/proc`` has ticks of 10 ms, a tenth of what a light
    load takes in a second. What descendants took that have ended is in ticks.
    """
    total = 0.0
    for process in _tree(pids):
        with contextlib.suppress(OSError):  # it has ended
            total += time.clock_gettime(_cpu_clock(process.pid))
    for pid in pids:
        total += sum(psutil.Process(pid).cpu_times()[2:4])  # children that were waited for
    return total


def _cpu_clock(pid: int) -> int:
    """Linux's clock of a process's CPU time, as clock_getcpuclockid(3) makes it."""
    return ~pid << 3 | 2


def rss_mb(pids: Sequence[int]) -> float:
    """Resident megabytes (10^6 bytes) of processes and their descendants; shared pages count in each."""
    total = 0
    for process in _tree(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


class Meter:
    """CPU of several parts between two moments.

    Args:
        parts: Process ids by part.
    """

    def __init__(self, parts: Mapping[str, Sequence[int]]) -> None:
        self._parts = parts
        self._began: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}

    def begin(self) -> None:
        """The measured window begins."""
        self._began = {part: cpu_seconds(pids) for part, pids in self._parts.items()}

    def end(self) -> None:
        """It ends."""
        now = {part: cpu_seconds(pids) for part, pids in self._parts.items()}
        self.cpu_s = {part: now[part] - began for part, began in self._began.items()}

    def rss_mb(self) -> dict[str, float]:
        """Resident megabytes by part, now."""
        return {part: rss_mb(pids) for part, pids in self._parts.items()}


def _tree(pids: Sequence[int]) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in pids]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]
