"""Warm-up and window of a stopwatch, with a clock that the test sets."""

from __future__ import annotations

import pytest

from tests.benchmarks import orders
from tests.benchmarks.orders import Pace, Stopwatch, latency_figures, percentile


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(orders, "perf_counter", lambda: now[0])
    monkeypatch.setattr(orders, "process_time", lambda: now[0] / 2)
    return now


def test_load_in_warm_up_is_not_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    watch = Stopwatch(warmup_s=1.0, seconds=2.0)
    assert watch.done(10, sent_at=99.0)
    assert capsys.readouterr().out == ""
    clock[0] = 101.0
    assert watch.done(10, sent_at=100.5)
    assert capsys.readouterr().out == "begin\n"
    clock[0] = 102.0
    assert watch.done(3, sent_at=101.5)
    clock[0] = 103.0
    assert not watch.done(4, sent_at=102.0)
    assert capsys.readouterr().out == "end\n"
    assert not watch.done(5, sent_at=102.0)  # the answer to another caller, after the window
    figures = watch.figures()
    assert (figures["checks"], figures["seconds"], figures["load_cpu_s"]) == (7, 2.0, 1.0)
    assert (figures["p50_ms"], figures["p99_ms"]) == (500.0, 1000.0)


def test_load_ends_after_a_number_of_checks(clock: list[float]) -> None:
    watch = Stopwatch(warmup_s=0.0, seconds=0.0, checks=10)
    assert watch.done(5)
    assert watch.done(9)
    clock[0] = 500.0
    assert not watch.done(1)
    assert watch.figures()["checks"] == 10
    assert "p50_ms" not in watch.figures()


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == expected


@pytest.fixture
def sleeping(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(orders, "sleep", sleep)
    return clock


def test_pace_waits_until_the_next_is_due(sleeping: list[float]) -> None:
    pace = Pace(10)
    assert [pace.wait(), pace.wait()] == pytest.approx([100.1, 100.2])


def test_latency_of_a_late_sender_begins_when_it_was_due(sleeping: list[float]) -> None:
    pace = Pace(10)
    sleeping[0] = 100.25
    assert [pace.wait(), pace.wait()] == pytest.approx([100.1, 100.2])
    assert sleeping[0] == 100.25


def test_pace_of_no_rate_never_waits(sleeping: list[float]) -> None:
    pace = Pace(0)
    assert pace.wait() == sleeping[0] == 100.0
    sleeping[0] = 107.0
    assert pace.wait() == sleeping[0] == 107.0


def test_latency_figures_are_percentiles_in_milliseconds() -> None:
    assert latency_figures([]) == {}
    seconds = [n / 1_000 for n in range(1_000, 0, -1)]
    assert latency_figures(seconds) == pytest.approx({"p50_ms": 500, "p99_ms": 990, "p999_ms": 999})
