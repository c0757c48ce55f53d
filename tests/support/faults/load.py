"""Load on all gateways during a fault. Every answer is kept, with the times of request and response."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from statistics import median_low
from typing import IO, Any, Final, NamedTuple

import msgspec

from stoplog.partitioning import partition_of
from tests.support.broker import CHECKOUT
from tests.support.faults.check_sender import HOT_CLIENTS

PARTITIONS: Final = 4
"""The number of partitions, until it grows."""
_PIPE: Final = 1 << 20
"""Bytes of the pipe from the sender: ten seconds of output, so that the sender never waits for the test."""
LAST_S: Final = 70.0
"""Seconds to wait for the last answers: longer than the sender's timeout."""


class SentCheck(NamedTuple):
    """A check, its times (seconds, monotonic) and its answer, which is ``None`` if the gateway was gone."""

    gateway: str
    client: str
    sent_at: float
    ended_at: float
    answer: dict[str, Any] | None

    @property
    def decided(self) -> bool:
        """Return whether the store decided the check."""
        return self.answer is not None and not self.answer["degraded"]


class Load:
    """A process that sends checks until it is stopped (:mod:`tests.support.faults.check_sender`).

    Args:
        urls: URLs of the gateways; one may die.
        seed: Seed of the random choices.
        partitions: The number of partitions.
    """

    def __init__(self, urls: Sequence[str], seed: int, partitions: int) -> None:
        self.partitions = partitions
        self.sent: list[SentCheck] = []
        self.aside: list[SentCheck] = []
        """Checks that the test itself sent meanwhile. They are compared with the log, and not measured."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.check_sender", str(seed), *urls],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the load, and wait for all answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join(LAST_S)
        self._process.kill()  # if the process has not ended by itself
        assert self._process.wait(10) == 0

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            self._keep(lines)

    def _keep(self, lines: IO[bytes]) -> None:
        for line in lines:
            url, sent_at, ended_at, clients, answers = msgspec.json.decode(line)
            self.sent.extend(
                SentCheck(url, name, sent_at, ended_at, answer)
                for name, answer in zip(clients, answers, strict=True)
            )

    @property
    def lost(self) -> list[SentCheck]:
        """Return the checks without an answer: their connection was refused, reset, or ended."""
        return [one for one in self.sent if one.answer is None]

    def healthy_for(self, seconds: float) -> bool:
        """Return whether the store decided every check of the last *seconds*, in all partitions."""
        since = time.monotonic() - seconds
        recent = [
            one
            for one in self.sent[-5_000:]
            if one.sent_at >= since and one.answer is not None and one.client not in HOT_CLIENTS
        ]
        seen = {partition_of(one.client, self.partitions) for one in recent}
        return len(seen) == self.partitions and all(one.decided for one in recent)


@contextmanager
def running_load(urls: Sequence[str], seed: int = 1, partitions: int = PARTITIONS) -> Iterator[Load]:
    """Put load on the gateways until the block ends."""
    load = Load(urls, seed, partitions)
    try:
        yield load
    finally:
        load.stop()


def failed_open_s(sent: Sequence[SentCheck], since: float, partitions: int) -> dict[int, float]:
    """Return the seconds for which each of so many *partitions* failed open, of checks sent from *since* on.

    A spell of a gateway begins with the first check that failed open. It ends with the next check that the
    store decided. The spells of a gateway are added up, and the largest sum of all gateways is returned.
    Leases answer hot clients meanwhile, so these are left out.
    """
    by_place: dict[tuple[int, str], list[SentCheck]] = defaultdict(list)
    for one in sorted(sent, key=lambda one: one.sent_at):
        if since <= one.sent_at and one.answer is not None and one.client not in HOT_CLIENTS:
            by_place[partition_of(one.client, partitions), one.gateway].append(one)
    seconds = dict.fromkeys(range(partitions), 0.0)
    for (partition, _), checks in by_place.items():
        seconds[partition] = max(seconds[partition], _spells(checks))
    return seconds


def exact_s(
    sent: Sequence[SentCheck], since: float, partitions: Collection[int], number: int = PARTITIONS
) -> float | None:
    """Return for how many seconds from *since* on hot clients of *partitions* got exact answers.

    The time of a client at a gateway ends with its first check that failed open. It has no end if none did.
    The median of all is returned; ``None`` if that has no end. *number* is the number of all partitions.
    """
    seconds: dict[tuple[str, str], float] = {}
    for one in sent:
        if one.client in HOT_CLIENTS and partition_of(one.client, number) in partitions:
            place = one.client, one.gateway
            first = seconds.setdefault(place, inf)
            if one.sent_at >= since and one.answer is not None and not one.decided:
                seconds[place] = min(first, one.sent_at - since)
    middle = median_low(seconds.values()) if seconds else inf
    return None if middle == inf else middle


def _spells(sent: Sequence[SentCheck]) -> float:
    total, began = 0.0, None
    last = 0.0
    for one in sent:
        last = one.ended_at
        if not one.decided:
            began = one.sent_at if began is None else began
        elif began is not None:
            total += one.sent_at - began
            began = None
    return total + (last - began if began is not None else 0.0)
