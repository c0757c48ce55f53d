from __future__ import annotations

import re

import stoplog.client.metrics
from stoplog.client.metrics import Histogram, Metrics


def page(metrics: Metrics) -> str:
    return metrics.render().decode()


def test_table_in_the_docstring_lists_exactly_the_metrics_shown() -> None:
    metrics = Metrics()
    metrics.nodes = lambda: {"worker": 1}
    metrics.store = lambda: {"ok": True}
    shown = {
        (name, kind)
        for name, kind in re.findall(r"# TYPE (\S+) (\S+)", page(metrics))
        if not name.startswith("process_") and not name.endswith("_created")
    }
    documented = set(re.findall(r"^``(\w+)``\s+(\w+)", stoplog.client.metrics.__doc__ or "", re.MULTILINE))
    assert shown == documented
    assert all(name.startswith("stoplog_") for name, _ in shown)


def test_render_shows_the_counts() -> None:
    metrics = Metrics()
    metrics.received = 3
    metrics.degraded["deadline"] = 2
    metrics.nodes = lambda: {"worker": 2, "gateway": 1}
    metrics.store = lambda: {"ok": False, "recovering": True}
    text = page(metrics)
    for line in (
        "stoplog_checks_received_total 3.0",
        'stoplog_checks_degraded_total{reason="deadline"} 2.0',
        'stoplog_checks_degraded_total{reason="overload"} 0.0',
        'stoplog_nodes{role="worker"} 2.0',
        'stoplog_store_state{state="recovering"} 1.0',
        'stoplog_store_state{state="ok"} 0.0',
    ):
        assert line in text.splitlines()


def test_two_metrics_in_one_process_count_independently() -> None:
    one, two = Metrics(), Metrics()
    one.received = 1
    assert "stoplog_checks_received_total 0.0" in page(two)


def test_histogram_family_is_cumulative() -> None:
    histogram = Histogram((1, 5))
    histogram.observe(1)
    histogram.observe(3, 2)
    histogram.observe(50)
    samples = {s.labels.get("le", s.name): s.value for s in histogram.family("h", "text").samples}
    assert samples == {"1.0": 1, "5.0": 3, "+Inf": 4, "h_count": 4, "h_sum": 57}
