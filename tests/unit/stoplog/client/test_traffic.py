from __future__ import annotations

from pathlib import Path

from stoplog_gateway.server.shared_metrics import SharedMetrics

from stoplog.client.metrics import Metrics
from stoplog.client.traffic import LatencyBucket, traffic


def counted(received: int) -> Metrics:
    metrics = Metrics()
    metrics.received = received
    metrics.allowed, metrics.rejected, metrics.in_flight = 4, 3, 2
    metrics.degraded["deadline"], metrics.degraded["broker"] = 1, 5
    metrics.published, metrics.uncounted = 8, 6
    metrics.latency.observe(0.0007, 9)
    metrics.latency.observe(70.0)
    return metrics


def test_traffic_equals_the_metrics() -> None:
    seen = traffic(counted(15), 1_000)
    assert (seen.at_ms, seen.received, seen.allowed, seen.rejected, seen.degraded) == (1_000, 15, 4, 3, 6)
    assert (seen.published, seen.uncounted, seen.in_flight) == (8, 6, 2)
    assert seen.latency[:3] == [LatencyBucket(0.2, 0), LatencyBucket(0.5, 0), LatencyBucket(0.75, 9)]
    assert seen.latency[-2:] == [LatencyBucket(1_000.0, 9), LatencyBucket(None, 10)]


def test_traffic_of_several_processes_is_their_sum(tmp_path: Path) -> None:
    own = counted(15)
    others = SharedMetrics(counted(100).registry, tmp_path, 2)
    others.close()
    shared = SharedMetrics(own.registry, tmp_path, 1)
    own.shown = shared.registry
    seen = traffic(own, 1_000)
    shared.close()
    assert (seen.received, seen.degraded, seen.in_flight) == (115, 12, 4)
    assert seen.latency[-2:] == [LatencyBucket(1_000.0, 18), LatencyBucket(None, 20)]
