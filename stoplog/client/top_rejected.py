"""The clients rejected most in the last minutes, in bounded memory for any number of clients.

The counts use Space-Saving (Metwally, Agrawal, El Abbadi 2005). Of a stream of N keys, a summary of m entries
holds every key that came more than N / m times. Each count is at most N / m too high, and the summary states
by how much. Summaries of several streams can be merged (Agarwal and others, "Mergeable summaries", 2012).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappush, heapreplace
from typing import Final, TypeAlias

import msgspec

ENTRIES: Final = 100
"""Clients in a summary. Each id has at most 256 bytes."""

Summary: TypeAlias = dict[str, tuple[int, int]]
"""For each client its count, which is never too low, and by how much it may be too high.

Of a full summary (:data:`ENTRIES` clients), no other client came more often than the least of its clients.
"""

SLICE_S: Final = 60.0
"""Seconds of one slice of time."""

SLICES: Final = 5
"""Slices that are kept, the current one included: the last 4 to 5 minutes."""


class Rejected(msgspec.Struct, frozen=True):
    """A client, and how many of its checks were rejected: at most `checks`, at least `checks - surplus`."""

    client_id: str
    checks: int
    surplus: int


class SpaceSaving:
    """Counts of the most frequent keys. None of them is too low.

    ``counts`` holds each key's count, and by how much it may be too high.
    """

    __slots__ = ("_entries", "_heap", "counts")

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self.counts: Summary = {}
        # Outdated counts, none of them too high: the smallest is found by correcting the top of the heap.
        self._heap: list[tuple[int, str]] = []

    def add(self, key: str, times: int = 1) -> None:
        """Count *key*. A new key replaces the least frequent one if the summary is full.

        >>> summary = SpaceSaving(2)
        >>> for key in "aaabbc":
        ...     summary.add(key)
        >>> summary.counts
        {'a': (3, 0), 'c': (3, 2)}
        """
        counts, heap = self.counts, self._heap
        found = counts.get(key)
        if found is not None:
            counts[key] = found[0] + times, found[1]
        elif len(counts) < self._entries:
            counts[key] = times, 0
            heappush(heap, (times, key))
        else:
            least, other = heap[0]
            while (now := counts[other][0]) != least:
                heapreplace(heap, (now, other))
                least, other = heap[0]
            del counts[other]
            counts[key] = least + times, least
            heapreplace(heap, (least + times, key))


class Rejections:
    """Counts the rejected checks of each client over the last minutes. Belongs to one event loop.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slices: deque[SpaceSaving] = deque([SpaceSaving(ENTRIES)], SLICES)
        self._until = clock() + SLICE_S

    def add(self, client: str, checks: int = 1) -> None:
        """Count *checks* rejected checks of *client*. Takes 0.2 µs, or 0.6 µs if every client is new."""
        self._slices[-1].add(client, checks)

    def tick(self) -> None:
        """Start a new slice when it is time. Call this regularly."""
        over = int((self._clock() - self._until) // SLICE_S) + 1
        for _ in range(min(over, SLICES)):
            self._slices.append(SpaceSaving(ENTRIES))
        self._until += over * SLICE_S

    def summary(self) -> Summary:
        """Return the clients rejected most, in descending order."""
        self.tick()
        return merge_summaries(part.counts for part in self._slices)


def merge_summaries(summaries: Iterable[Summary]) -> Summary:
    """Return one summary of all *summaries*, in descending order. Takes 0.15 ms for five full ones.

    >>> merge_summaries([{"a": (3, 0), "b": (1, 0)}, {"b": (5, 2)}])
    {'b': (6, 2), 'a': (3, 0)}
    """
    sums: dict[str, list[int]] = {}
    missed = 0  # the most that a client in none of the full summaries can have
    for part in summaries:
        least = min(checks for checks, _ in part.values()) if len(part) >= ENTRIES else 0
        for client, (checks, surplus) in part.items():
            entry = sums.setdefault(client, [0, 0])
            entry[0] += checks - least
            entry[1] += surplus - least
        missed += least
    found = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))
    return {client: (checks + missed, surplus + missed) for client, (checks, surplus) in found[:ENTRIES]}


def ranked(summary: Summary) -> list[Rejected]:
    """Return the clients of a summary, in its order."""
    return [Rejected(client, checks, surplus) for client, (checks, surplus) in summary.items()]
