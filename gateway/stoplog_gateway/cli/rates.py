"""Compute rates and latencies of the last seconds from a gateway's counters."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Final

import msgspec

from stoplog.client.traffic import LatencyBucket, Traffic

MEAN_MS: Final = 10_000
"""Rates are means over this time, because checks come in bursts."""


class Rates(msgspec.Struct, frozen=True):
    """Checks per second by outcome, and the median and 99th percentile of their latency.

    A value is ``None`` if there is only one sample, or if there were no checks. A latency beyond the bound of
    the last bucket is given as that bound.
    """

    allowed_per_s: float | None = None
    rejected_per_s: float | None = None
    degraded_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


class RecentSamples:
    """The samples of the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[Traffic] = deque()

    def add(self, now: Traffic) -> Rates:
        """Add the sample *now*; return the rates since the oldest sample that is not too old."""
        samples = self._samples
        if samples and (now.received < samples[-1].received or now.at_ms < samples[-1].at_ms):
            samples.clear()  # the gateway was restarted
        samples.append(now)
        # An older sample stays if there is no other one before *now*.
        while len(samples) > 2 and samples[0].at_ms < now.at_ms - MEAN_MS:
            samples.popleft()
        return _between(samples[0], now)


def _between(before: Traffic, now: Traffic) -> Rates:
    seconds = (now.at_ms - before.at_ms) / 1000
    if seconds <= 0:
        return Rates()
    checks = [
        LatencyBucket(new.le_ms, new.checks - old.checks)
        for old, new in zip(before.latency, now.latency, strict=True)
    ]
    return Rates(
        (now.allowed - before.allowed) / seconds,
        (now.rejected - before.rejected) / seconds,
        (now.degraded - before.degraded) / seconds,
        quantile(0.5, checks),
        quantile(0.99, checks),
    )


def quantile(share: float, buckets: list[LatencyBucket]) -> float | None:
    """Return the latency in ms that a *share* of the checks did not exceed, interpolated in *buckets*.

    >>> quantile(0.5, [LatencyBucket(1.0, 0), LatencyBucket(2.0, 10), LatencyBucket(None, 10)])
    1.5
    """
    if not buckets or not buckets[-1].checks:
        return None
    wanted = share * buckets[-1].checks
    for low, high in pairwise([LatencyBucket(0.0, 0), *buckets]):
        assert low.le_ms is not None
        if high.le_ms is None:
            return low.le_ms
        if high.checks >= wanted:
            return low.le_ms + (high.le_ms - low.le_ms) * (wanted - low.checks) / (high.checks - low.checks)
    return None
