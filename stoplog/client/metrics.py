"""The metrics of the SDK and the gateway: plain integers, turned into Prometheus samples by a scrape.

``Counter.inc`` of prometheus-client takes half a microsecond, more than the rest of a check's way through the
batcher. The hot path therefore adds to attributes of :class:`Metrics`, where possible once per batch.

========================================  =========  =======  ============================================
name                                      type       label    what
========================================  =========  =======  ============================================
``stoplog_checks_received_total``         counter             checks received, with or without an answer
``stoplog_checks_allowed_total``          counter             allowed by the store
``stoplog_checks_rejected_total``         counter             denied by the store or by the deny cache
``stoplog_checks_degraded_total``         counter    reason   failed open: allowed without a decision
``stoplog_checks_failed_closed_total``    counter    reason   failed closed: denied without a decision
``stoplog_checks_published_total``        counter             published without waiting for an answer
``stoplog_checks_uncounted_total``        counter             not published, so counted nowhere; at most
``stoplog_requests_blocked_total``        counter             refused: their address is blocked
``stoplog_requests_exempt_total``         counter             allowed uncharged: their address is exempt
``stoplog_check_duration_seconds``        histogram           from call to answer, degraded ones included
``stoplog_batch_checks``                  histogram           checks in a published batch
``stoplog_checks_in_flight``              gauge               checks waiting for a reply
``stoplog_replies_late_total``            counter             first replies after their batch's deadline
``stoplog_lane_divergence_total``         counter             batches that two lanes answered differently
``stoplog_second_replies_total``          counter    answers  further replies to a batch of a single lane
``stoplog_deny_cache_hits_total``         counter             checks denied from the deny cache
``stoplog_deny_cache_stores_total``       counter             denials stored in it
``stoplog_deny_cache_entries``            gauge               denials in it
``stoplog_deny_cache_unlogged_total``     counter             its checks whose report was not published
``stoplog_lease_hits_total``              counter             checks allowed by the permits of a lease
``stoplog_lease_permits_granted_total``   counter             permits of leases that were accepted
``stoplog_lease_permits_used_total``      counter             of these, permits used
``stoplog_lease_permits_returned_total``  counter             of these, permits given back in time
``stoplog_lease_permits_expired_total``   counter             of these, permits lost at the lease's end
``stoplog_reservations_total``            counter    result   reservations: granted, denied, degraded
``stoplog_settlements_total``             counter    state    settlements of reservations, by their result
``stoplog_refunds_total``                 counter    state    refunds without a hold, by their result
``stoplog_leases``                        gauge               leases in use
``stoplog_publish_failures_total``        counter             records that could not be published
``stoplog_undecodable_records_total``     counter             skipped records of ``replies`` and ``nodes``
``stoplog_degraded_partitions``           gauge               partitions whose checks fail open at once
``stoplog_nodes``                         gauge      role     nodes with a heartbeat in the last 10 s
``stoplog_store_state``                   gauge      state    1 for the state of the store, else 0
========================================  =========  =======  ============================================

If several processes share a port, the page of each shows the sums of all counters and histograms. Gauges are
combined as :data:`GAUGES` states (``stoplog_gateway/server/shared_metrics.py``).

A gateway adds those of its connections (``stoplog_gateway/http/connections.py``), and of what it refuses
(``stoplog_gateway/http/overload.py``).

Reasons are those of :mod:`stoplog.client.fail_open`, states those of :mod:`stoplog.client.cluster_status`,
and answers (same, different, unknown) those of :mod:`stoplog.client.lane_divergence`. No label contains a
client id, for there can be billions of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stoplog.client.fail_open import REASONS
from stoplog.client.refunds import REFUNDS
from stoplog.identity.identity import Verdict

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

LATENCY_S: Final = (
    0.0002, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0,
)  # fmt: skip
"""Bucket bounds in seconds: from the round trip of one broker (0.6 ms) to well past the default deadline."""

BATCH_CHECKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""Bucket bounds in checks."""

SETTLEMENTS: Final = ("settled", "repeated", "over", "unknown", "unlimited", "unconfirmed")
"""Results of settlements (:class:`stoplog.client.reservations.Settled`)."""

GAUGES: Final = {
    "stoplog_checks_in_flight": "livesum",
    "stoplog_deny_cache_entries": "livesum",
    "stoplog_leases": "livesum",
    # Each process has circuit breakers of its own and reads heartbeats itself: show the worst, and the most.
    "stoplog_degraded_partitions": "livemax",
    "stoplog_nodes": "livemax",
    "stoplog_store_state": "livemax",
    "stoplog_http_connections": "livesum",
    "stoplog_files_stale": "livemax",
    "process_virtual_memory_bytes": "livesum",
    "process_resident_memory_bytes": "livesum",
    "process_open_fds": "livesum",
    "process_max_fds": "livemin",
    "process_start_time_seconds": "livemax",
}
"""How prometheus-client combines the values of several running processes, by name of the gauge."""


class Histogram:
    """Observations in buckets. Adding many equal ones costs as much as adding one."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add *value*, *times* times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """Return the metric family of prometheus-client."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class Metrics(Collector):
    """The counts of one limiter, and the registry that shows them. Others may register metrics in it."""

    def __init__(self) -> None:
        self.reset()
        self.nodes: Callable[[], dict[str, int]] = dict
        """Returns the number of nodes by role."""
        self.store: Callable[[], dict[str, bool]] = dict
        """Returns for every state of the store whether it holds."""
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self.shown = self.registry
        """The registry that is rendered: with several processes, that of all their metrics."""

    def reset(self) -> None:
        """Count from 0."""
        self.received = self.allowed = self.rejected = self.published = 0
        self.degraded = dict.fromkeys(REASONS, 0)
        """Checks that failed open, by reason."""
        self.failed_closed = dict.fromkeys(REASONS, 0)
        """Checks that failed closed, by reason."""
        self.reservations = dict.fromkeys(("granted", "denied", "degraded"), 0)
        self.settlements = dict.fromkeys(SETTLEMENTS, 0)
        self.refunds = dict.fromkeys(REFUNDS, 0)
        self.second_replies = dict.fromkeys(("same", "different", "unknown"), 0)
        self.uncounted_growing = 0
        """Those of ``uncounted`` that were not published because the number of partitions grows."""
        self.uncounted = self.late = self.publish_failures = self.divergence = 0
        self.deny_hits = self.deny_stores = self.deny_entries = self.deny_unlogged = 0
        self.leases = self.lease_hits = self.lease_granted = self.lease_used = 0
        self.lease_returned = self.lease_expired = 0
        self.blocked = self.exempt = 0
        """Requests whose address is blocked or exempt. They are no checks."""
        self.undecodable = self.in_flight = self.degraded_partitions = 0
        self.latency = Histogram(LATENCY_S)
        self.batches = Histogram(BATCH_CHECKS)

    @property
    def failed_open(self) -> int:
        """Checks allowed without a decision of the store, for any reason."""
        return sum(self.degraded.values())

    def count_degraded(self, reason: str, fails_closed: bool, checks: int = 1) -> None:
        """Count *checks* without a decision of the store, which failed open or closed for *reason*."""
        if fails_closed:
            self.failed_closed[reason] += checks
        else:
            self.degraded[reason] += checks

    def count_verdict(self, verdict: Verdict) -> None:
        """Count a request if its address is blocked or exempt."""
        if verdict is Verdict.BLOCKED:
            self.blocked += 1
        elif verdict is Verdict.EXEMPT:
            self.exempt += 1

    def count_unpublished(self, *, growing: bool, calls: int = 1) -> None:
        """Count calls that are not published, and whether that is because the number of partitions grows."""
        self.uncounted += calls
        self.uncounted_growing += calls * growing

    def render(self) -> bytes:
        """Return the page of ``/metrics``. Its type is :data:`CONTENT_TYPE`."""
        return generate_latest(self.shown)

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families, for a scrape."""
        for name, text, count in (
            ("stoplog_checks_received", "Checks received", self.received),
            ("stoplog_checks_allowed", "Checks allowed by the store", self.allowed),
            ("stoplog_checks_rejected", "Checks denied by the store or the deny cache", self.rejected),
            ("stoplog_checks_published", "Checks published without waiting for an answer", self.published),
            ("stoplog_checks_uncounted", "Checks not published, counted nowhere; at most", self.uncounted),
            ("stoplog_replies_late", "Replies after their batch's deadline", self.late),
            ("stoplog_lane_divergence", "Batches that two lanes answered differently", self.divergence),
            ("stoplog_deny_cache_hits", "Checks denied from the deny cache", self.deny_hits),
            ("stoplog_deny_cache_stores", "Denials stored", self.deny_stores),
            (
                "stoplog_deny_cache_unlogged",
                "Checks denied from the deny cache whose report was not published",
                self.deny_unlogged,
            ),
            ("stoplog_lease_hits", "Checks allowed by the permits of a lease", self.lease_hits),
            ("stoplog_lease_permits_granted", "Permits of accepted leases", self.lease_granted),
            ("stoplog_lease_permits_used", "Permits of leases used", self.lease_used),
            ("stoplog_lease_permits_returned", "Permits of leases given back in time", self.lease_returned),
            ("stoplog_lease_permits_expired", "Permits lost at the end of a lease", self.lease_expired),
            ("stoplog_requests_blocked", "Requests refused: their address is blocked", self.blocked),
            ("stoplog_requests_exempt", "Requests not charged: their address is exempt", self.exempt),
            ("stoplog_publish_failures", "Records that could not be published", self.publish_failures),
            (
                "stoplog_undecodable_records",
                "Records of replies and nodes skipped as undecodable",
                self.undecodable,
            ),
        ):
            yield CounterMetricFamily(name, text, value=count)
        for name, text, value in (
            ("stoplog_checks_in_flight", "Checks waiting for a reply", self.in_flight),
            ("stoplog_deny_cache_entries", "Denials in the deny cache", self.deny_entries),
            ("stoplog_leases", "Leases in use", self.leases),
            (
                "stoplog_degraded_partitions",
                "Partitions whose checks fail open at once",
                self.degraded_partitions,
            ),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield self.latency.family("stoplog_check_duration_seconds", "Seconds from call to answer")
        yield self.batches.family("stoplog_batch_checks", "Checks in a published batch")
        degraded = CounterMetricFamily(
            "stoplog_checks_degraded", "Checks that failed open", labels=["reason"]
        )
        for reason, count in self.degraded.items():
            degraded.add_metric([reason], count)
        reserved = CounterMetricFamily(
            "stoplog_reservations", "Reservations: granted, denied, degraded", labels=["result"]
        )
        for result, count in self.reservations.items():
            reserved.add_metric([result], count)
        settled = CounterMetricFamily("stoplog_settlements", "Settlements of reservations", labels=["state"])
        for state, count in self.settlements.items():
            settled.add_metric([state], count)
        refunded = CounterMetricFamily("stoplog_refunds", "Refunds without a hold", labels=["state"])
        for state, count in self.refunds.items():
            refunded.add_metric([state], count)
        second = CounterMetricFamily(
            "stoplog_second_replies", "Further replies to a batch of a single lane", labels=["answers"]
        )
        for answers, count in self.second_replies.items():
            second.add_metric([answers], count)
        closed = CounterMetricFamily(
            "stoplog_checks_failed_closed", "Checks that failed closed", labels=["reason"]
        )
        for reason, count in self.failed_closed.items():
            closed.add_metric([reason], count)
        nodes = GaugeMetricFamily("stoplog_nodes", "Nodes with a heartbeat in the last 10 s", labels=["role"])
        for role, count in self.nodes().items():
            nodes.add_metric([role], count)
        store = GaugeMetricFamily("stoplog_store_state", "1 for the state of the store", labels=["state"])
        for state, holds in self.store().items():
            store.add_metric([state], holds)
        yield from (degraded, closed, reserved, settled, refunded, second, nodes, store)
