"""Overload is reported once when it begins, and once, with the number of checks, when it ends."""

from __future__ import annotations

import pytest

from stoplog.client.fail_open import DEADLINE, OVERLOAD
from stoplog.client.metrics import Metrics
from stoplog.client.overload_report import QUIET_S, OverloadReport


def test_overload_is_reported_at_its_begin_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    metrics, now = Metrics(), 50.0
    report = OverloadReport(metrics, lambda: now)
    metrics.count_degraded(DEADLINE, False, 7)
    report.on_tick()
    assert not caplog.records
    for checks in (1_000, 0, 500, 0):
        metrics.count_degraded(OVERLOAD, checks == 500, checks)
        metrics.uncounted += checks // 100
        report.on_tick()
        now += 1.0
    assert [r.getMessage()[:9] for r in caplog.records] == ["overload:"]
    now += QUIET_S
    report.on_tick()
    report.on_tick()
    assert len(caplog.records) == 2
    assert caplog.records[1].getMessage() == (
        "overload ended after 2.0 s: 1,500 checks were answered without the store, 15 are not counted"
    )
