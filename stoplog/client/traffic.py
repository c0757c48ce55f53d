"""The few counts from which the console draws checks per second. ``/metrics`` has them as well.

If several processes share a port, the counts are those of all of them, as in ``/metrics``.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Final

import msgspec

from stoplog.client.metrics import Metrics

_BUCKET: Final = "stoplog_check_duration_seconds_bucket"


class LatencyBucket(msgspec.Struct, frozen=True):
    """Checks that took at most `le_ms` milliseconds, including the smaller buckets. null: any time."""

    le_ms: float | None
    checks: int


class Traffic(msgspec.Struct, frozen=True):
    """Counts since the gateway started. For a rate, divide the difference of two by that of their `at_ms`.

    `degraded` checks failed open, `failed_closed` checks failed closed. `uncounted` checks could not be
    published, so no client's counter has them.
    `latency` is the time from call to answer, degraded answers included.
    """

    at_ms: int
    received: int
    allowed: int
    rejected: int
    degraded: int
    published: int
    uncounted: int
    in_flight: int
    latency: list[LatencyBucket]
    failed_closed: int = 0


def traffic(metrics: Metrics, at_ms: int) -> Traffic:
    """Return the counts of *metrics* at *at_ms* (ms since the Unix epoch)."""
    totals: Counter[str] = Counter()
    buckets: Counter[float] = Counter()
    for family in metrics.shown.collect():
        for sample in family.samples:
            if sample.name == _BUCKET:
                buckets[float(sample.labels["le"])] += int(sample.value)
            else:
                totals[sample.name] += int(sample.value)
    return Traffic(
        at_ms=at_ms,
        received=totals["stoplog_checks_received_total"],
        allowed=totals["stoplog_checks_allowed_total"],
        rejected=totals["stoplog_checks_rejected_total"],
        degraded=totals["stoplog_checks_degraded_total"],
        published=totals["stoplog_checks_published_total"],
        uncounted=totals["stoplog_checks_uncounted_total"],
        in_flight=totals["stoplog_checks_in_flight"],
        latency=[LatencyBucket(None if le == inf else le * 1_000, buckets[le]) for le in sorted(buckets)],
        failed_closed=totals["stoplog_checks_failed_closed_total"],
    )
