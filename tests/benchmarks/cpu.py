"""CPU time and memory of processes, including threads and children, as the kernel counts them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import psutil

from tests.support.cpu import own_cpu_seconds


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the user and system time so far of processes and all their descendants, including ended ones.

    Each process's CPU clock counts nanoseconds. ``/proc`` counts ticks of 10 ms, which is too coarse for a
    light load, so only the time of ended descendants is read from there.
    """
    total = 0.0
    for process in _tree(pids):
        with contextlib.suppress(OSError):  # the process has ended
            total += own_cpu_seconds(process.pid)
    for pid in pids:
        total += sum(psutil.Process(pid).cpu_times()[2:4])  # children that were waited for
    return total


def rss_mb(pids: Sequence[int]) -> float:
    """Return the resident megabytes (10^6 bytes) of processes and descendants. Shared pages count in each."""
    total = 0
    for process in _tree(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


class Meter:
    """The CPU time of several parts in a measured window.

    Args:
        parts: Process ids by part.
    """

    def __init__(self, parts: Mapping[str, Sequence[int]]) -> None:
        self._parts = parts
        self._began: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}

    def begin(self) -> None:
        """Begin the measured window."""
        self._began = {part: cpu_seconds(pids) for part, pids in self._parts.items()}

    def end(self) -> None:
        """End the measured window."""
        now = {part: cpu_seconds(pids) for part, pids in self._parts.items()}
        self.cpu_s = {part: now[part] - began for part, began in self._began.items()}

    def rss_mb(self) -> dict[str, float]:
        """Return the resident megabytes of each part, now."""
        return {part: rss_mb(pids) for part, pids in self._parts.items()}


def _tree(pids: Sequence[int]) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in pids]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]
