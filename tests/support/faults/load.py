"""Load on all gateways, running throughout a fault: every answer is kept, with when it was asked."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple

import msgspec

from stoplog.partitioning import partition_of
from tests.support.broker import CHECKOUT

PARTITIONS: Final = 4
_PIPE: Final = 1 << 20
"""Bytes that may wait to be read here before the asker would wait for that: those of ten seconds."""
LAST_S: Final = 70.0
"""For the last answers: more than the asker waits for one."""


class Asked(NamedTuple):
    """A check and what came of it: times in seconds, monotonic; no answer if the gateway was gone."""

    gateway: str
    client: str
    at: float
    until: float
    answer: dict[str, Any] | None

    @property
    def good(self) -> bool:
        """Whether the store answered."""
        return self.answer is not None and not self.answer["degraded"]


class Load:
    """A process that asks *urls* until it is told to stop (:mod:`tests.support.faults.asker`).

    Args:
        urls: Of the gateways; one may die.
        seed: Of its choices.
    """

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self.asked: list[Asked] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.asker", str(seed), *urls],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, when all that was asked is answered."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join(LAST_S)
        self._process.kill()  # if it has not ended
        assert self._process.wait(10) == 0

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            self._keep(lines)

    def _keep(self, lines: IO[bytes]) -> None:
        for line in lines:
            url, at, until, clients, answers = msgspec.json.decode(line)
            self.asked.extend(
                Asked(url, name, at, until, answer) for name, answer in zip(clients, answers, strict=True)
            )

    def well_for(self, seconds: float) -> bool:
        """Whether every partition was answered by the store, at every gateway that lives, of late."""
        since = time.monotonic() - seconds
        recent = [asked for asked in self.asked[-5_000:] if asked.at >= since and asked.answer is not None]
        seen = {partition_of(asked.client, PARTITIONS) for asked in recent}
        return len(seen) == PARTITIONS and all(asked.good for asked in recent)


@contextmanager
def running_load(urls: Sequence[str], seed: int = 1) -> Iterator[Load]:
    """Load until the block ends."""
    load = Load(urls, seed)
    try:
        yield load
    finally:
        load.stop()


def late_s(asked: Sequence[Asked], since: float, until: float = float("inf")) -> dict[int, float]:
    """Seconds for which each partition was let through, of checks asked from *since* to *until*.

    A spell of a gateway is from its first check that was let through until the store next answered one that
    it was asked later. Spells are added up, and the gateway that has most counts.
    """
    by_place: dict[tuple[int, str], list[Asked]] = defaultdict(list)
    for one in sorted(asked, key=lambda one: one.at):
        if since <= one.at <= until and one.answer is not None:
            by_place[partition_of(one.client, PARTITIONS), one.gateway].append(one)
    late = dict.fromkeys(range(PARTITIONS), 0.0)
    for (partition, _), of_it in by_place.items():
        late[partition] = max(late[partition], _spells(of_it))
    return late


def _spells(asked: Sequence[Asked]) -> float:
    total, began = 0.0, None
    last = 0.0
    for one in asked:
        last = one.until
        if not one.good:
            began = one.at if began is None else began
        elif began is not None:
            total += one.at - began
            began = None
    return total + (last - began if began is not None else 0.0)
