from __future__ import annotations

from collections.abc import Callable

import pytest

from stoplog.client.degraded_mode import FIRST_REPLY_S, MAX_SETTLE_S, SETTLE_S, DegradedMode, ModeState
from stoplog.client.metrics import Metrics


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        self.mode = DegradedMode(self.metrics, lambda: self.now, lambda: int(self.now * 1000))

    def settle(self, seconds: float = SETTLE_S) -> None:
        self.now += seconds
        self.mode.on_tick(healthy=True)


def test_episode_logs_one_line_when_it_begins_and_one_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.metrics.degraded["deadline"] = 5  # before this episode
    bench.metrics.failed_closed["deadline"] = 1
    bench.settle()
    bench.metrics.degraded["deadline"] += 6  # the checks that opened the breaker
    bench.mode.on_tick(healthy=False)
    bench.mode.on_breaker_open(3, "partition 3 is silent")
    bench.now += 10
    bench.mode.on_breaker_open(1, "partition 1 is silent")
    assert (bench.mode.why, bench.mode.since_ms) == ("partition 3 is silent", 101_000)
    assert bench.metrics.degraded_partitions == 2
    bench.metrics.degraded["breaker_open"] += 1_228
    bench.metrics.failed_closed["breaker_open"] += 7
    bench.metrics.uncounted += 56
    assert (bench.mode.failed_open, bench.mode.failed_closed, bench.mode.uncounted) == (1_234, 7, 56)
    bench.mode.on_breaker_closed(3)
    bench.settle(100)
    assert bench.mode.degraded
    bench.mode.on_breaker_closed(1)
    bench.settle()
    assert (bench.mode.degraded, bench.mode.failed_open, bench.mode.uncounted) == (False, 0, 0)
    assert bench.mode.failed_closed == 0
    began, ended = (record.getMessage() for record in caplog.records)
    assert "partition 3 is silent" in began
    assert "after 111.0 s" in ended
    assert "1,234 checks failed open, 7 failed closed, 56 could not be published" in ended


def test_stop_while_degraded_logs_what_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.mode.on_breaker_open(3, "partition 3 is silent")
    caplog.clear()
    bench.now += 10
    bench.metrics.degraded["breaker_open"] += 1_228
    bench.metrics.uncounted += 1_056
    bench.mode.on_stop()
    assert [record.getMessage() for record in caplog.records] == [
        "stopped while degraded for 10.0 s: 1,228 checks failed open, 1,056 could not be published and are "
        "not counted"
    ]


def test_stop_when_normal_logs_only_checks_that_were_not_published(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.metrics.uncounted += 5  # before the last tick, so an earlier line has them
    bench.settle()
    bench.mode.on_stop()
    assert caplog.records == []
    bench.metrics.uncounted += 2
    bench.mode.on_stop()
    assert "stopped while not degraded: 0 checks failed open, 2 could not be" in caplog.text


def test_mode_does_not_end_before_partitions_have_settled() -> None:
    bench = Bench()
    bench.mode.on_breaker_open(0, "silent")
    bench.mode.on_breaker_closed(0)
    bench.settle(SETTLE_S / 2)
    bench.mode.on_breaker_open(0, "silent")
    bench.mode.on_breaker_closed(0)
    bench.settle(SETTLE_S / 2)
    assert bench.mode.degraded
    bench.settle(SETTLE_S / 2)
    assert not bench.mode.degraded


def test_flapping_partition_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(600):  # one hour: a second without replies, then 5 s with replies
        bench.mode.on_breaker_open(0, "silent")
        bench.now += 1
        bench.mode.on_breaker_closed(0)
        for _ in range(5):
            bench.settle(1)
    assert len(caplog.records) < 10
    bench.settle(MAX_SETTLE_S)
    bench.settle(MAX_SETTLE_S)
    bench.mode.on_breaker_open(0, "silent")
    bench.mode.on_breaker_closed(0)
    bench.settle()
    assert not bench.mode.degraded  # the earlier failures no longer matter


def test_start_without_failed_checks_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.mode.on_breaker_open(0, "no reply yet", before_first_reply=True)
    bench.mode.on_breaker_open(1, "no reply yet", before_first_reply=True)
    bench.settle(FIRST_REPLY_S - 10)
    bench.mode.on_stop()
    assert bench.mode.degraded
    bench.mode.on_breaker_closed(0)
    bench.mode.on_breaker_closed(1)
    bench.settle()
    assert not bench.mode.degraded
    assert caplog.records == []


def fail_open(bench: Bench) -> None:
    bench.metrics.degraded["breaker_open"] += 1
    bench.settle(0.5)


def wait_long(bench: Bench) -> None:
    bench.settle(FIRST_REPLY_S)


def open_after_a_reply(bench: Bench) -> None:
    bench.mode.on_breaker_open(1, "partition 1 is silent")


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (fail_open, "no reply yet"),
        (wait_long, "no reply yet"),
        (open_after_a_reply, "partition 1 is silent"),
    ],
)
def test_start_that_does_not_end_logs_degraded_mode_once(
    caplog: pytest.LogCaptureFixture, event: Callable[[Bench], None], why: str
) -> None:
    bench = Bench()
    bench.settle()
    bench.mode.on_breaker_open(0, "no reply yet", before_first_reply=True)
    event(bench)
    bench.settle(0.5)
    bench.mode.on_breaker_open(2, "another", before_first_reply=True)
    assert [record.getMessage() for record in caplog.records] == [f"degraded: checks fail open: {why}"]
    for partition in (0, 1, 2):
        bench.mode.on_breaker_closed(partition)
    bench.settle()
    assert "normal again" in caplog.text


def bench_in(state: ModeState) -> Bench:
    """A bench in *state*; partition 0 made it degraded."""
    bench = Bench()
    if state is not ModeState.NORMAL:
        bench.mode.on_breaker_open(0, "no replies")
    if state is ModeState.SETTLING:
        bench.mode.on_breaker_closed(0)
    assert bench.mode.state is state
    return bench


def tick_early(bench: Bench) -> None:
    bench.settle(SETTLE_S / 2)


def tick_late(bench: Bench) -> None:
    bench.settle(2 * MAX_SETTLE_S)


def open_another(bench: Bench) -> None:
    bench.mode.on_breaker_open(1, "no replies")


def close_one_of_two(bench: Bench) -> None:
    bench.mode.on_breaker_open(1, "no replies")
    bench.mode.on_breaker_closed(1)


def close_last(bench: Bench) -> None:
    bench.mode.on_breaker_closed(0)


NORMAL, DEGRADED, SETTLING = ModeState.NORMAL, ModeState.DEGRADED, ModeState.SETTLING


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        (NORMAL, open_another, DEGRADED),
        (NORMAL, tick_early, NORMAL),
        (NORMAL, tick_late, NORMAL),
        (DEGRADED, open_another, DEGRADED),
        (DEGRADED, close_one_of_two, DEGRADED),
        (DEGRADED, close_last, SETTLING),
        (DEGRADED, tick_early, DEGRADED),
        (DEGRADED, tick_late, DEGRADED),
        (SETTLING, open_another, DEGRADED),
        (SETTLING, tick_early, SETTLING),
        (SETTLING, tick_late, NORMAL),
    ],
)
def test_mode_on_every_edge_enters_its_state(
    before: ModeState, event: Callable[[Bench], None], after: ModeState
) -> None:
    bench = bench_in(before)
    event(bench)
    assert bench.mode.state is after
    assert bench.mode.degraded == (after is not NORMAL)
    assert (bench.mode.why is None) == (after is NORMAL)
