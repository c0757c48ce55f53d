from __future__ import annotations

import pytest

from stoplog.client.degraded_mode import MAX_SETTLE_S, SETTLE_S, Mode
from stoplog.client.metrics import Metrics


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        self.mode = Mode(self.metrics, lambda: self.now, lambda: int(self.now * 1000))

    def settle(self, seconds: float = SETTLE_S) -> None:
        self.now += seconds
        self.mode.tick(calm=True)


def test_one_line_when_it_begins_and_one_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.metrics.degraded["deadline"] = 5  # before: not of this episode
    bench.settle()
    bench.metrics.degraded["deadline"] += 6  # what opened it
    bench.mode.tick(calm=False)
    bench.mode.opened(3, "partition 3 is silent")
    bench.now += 10
    bench.mode.opened(1, "partition 1 is silent")
    assert (bench.mode.why, bench.mode.since_ms) == ("partition 3 is silent", 101_000)
    assert bench.metrics.degraded_partitions == 2
    bench.metrics.degraded["breaker_open"] += 1_228
    bench.metrics.uncounted += 56
    assert (bench.mode.failed_open, bench.mode.uncounted) == (1_234, 56)
    bench.mode.closed(3)
    bench.settle(100)
    assert bench.mode.degraded
    bench.mode.closed(1)
    bench.settle()
    assert (bench.mode.degraded, bench.mode.failed_open, bench.mode.uncounted) == (False, 0, 0)
    began, ended = (record.getMessage() for record in caplog.records)
    assert "partition 3 is silent" in began
    assert "after 111.0 s" in ended
    assert "1,234 checks were let through, 56 could not be published" in ended


def test_it_does_not_end_before_things_have_settled() -> None:
    bench = Bench()
    bench.mode.opened(0, "silent")
    bench.mode.closed(0)
    bench.settle(SETTLE_S / 2)
    bench.mode.opened(0, "silent")
    bench.mode.closed(0)
    bench.settle(SETTLE_S / 2)
    assert bench.mode.degraded
    bench.settle(SETTLE_S / 2)
    assert not bench.mode.degraded


def test_a_flapping_partition_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(600):  # an hour of it, well for 5 s after each second of silence
        bench.mode.opened(0, "silent")
        bench.now += 1
        bench.mode.closed(0)
        for _ in range(5):
            bench.settle(1)
    assert len(caplog.records) < 10
    bench.settle(MAX_SETTLE_S)
    bench.settle(MAX_SETTLE_S)
    bench.mode.opened(0, "silent")
    bench.mode.closed(0)
    bench.settle()
    assert not bench.mode.degraded  # long forgotten
