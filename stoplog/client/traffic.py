"""What a gateway has counted so far, in one value: what a chart of checks a second is drawn from.

All of it is in ``/metrics`` too; this is the little that a page asks for once a second. Where one port has
several processes it counts for all of them, as ``/metrics`` does.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Final

import msgspec

from stoplog.client.metrics import Metrics

_BUCKET: Final = "stoplog_check_duration_seconds_bucket"


class LatencyBucket(msgspec.Struct, frozen=True):
    """Checks that took at most `le_ms` milliseconds, those of the buckets before included; null: any time."""

    le_ms: float | None
    checks: int


class Traffic(msgspec.Struct, frozen=True):
    """Counts since the gateway was started; take two, and divide their difference by that of `at_ms`.

    `degraded`: let through without an answer. `uncounted`: of these, and of those only published, could not
    be published. `latency`: from asked to answered, degraded answers too.
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


def traffic(metrics: Metrics, at_ms: int) -> Traffic:
    """Read *metrics* at *at_ms*, ms since the Unix epoch; 0.5 ms, and 2 for four processes."""
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
    )
