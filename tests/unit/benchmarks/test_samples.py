from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.samples import Result, Run, Sample, ratio


def sample(**fields: Any) -> Sample:
    given = {"checks": 1_000, "seconds": 2.0, "cpu_s": {"gateway": 0.04, "worker": 0.01}, "rss_mb": {}}
    return Sample(**{**given, **fields})


def result(key: str, *samples: Sample) -> Result:
    return Result(key=key, stage="callers", what=key, callers=1, samples=list(samples))


def test_cpu_is_per_check_by_part_and_total() -> None:
    one = sample()
    assert one.rate == 500
    assert one.cpu_us("gateway") == pytest.approx(40)
    assert one.cpu_us("total") == pytest.approx(50)
    assert one.cpu_us("broker") is None
    assert one.load_us is None
    assert sample(load_cpu_s=0.003).load_us == pytest.approx(3)
    assert one.rate_per_core == pytest.approx(25_000)


def test_denial_share_counts_the_workers_denials() -> None:
    assert sample().worker_share is None
    assert sample(denied=200, denied_by_worker=1).worker_share == pytest.approx(0.5)


def test_judged_share_counts_the_workers_checks() -> None:
    assert sample().reached_worker is None
    assert sample(allowed=100, denied=900).reached_worker is None
    assert sample(allowed=100, denied=900, denied_by_worker=9).reached_worker == pytest.approx(10.9)


def test_following_cost_is_standby_minus_idle() -> None:
    assert sample().following_us is None
    assert sample(idle_cpu_s=0.004).following_us == pytest.approx(6)


def test_median_ignores_one_bad_round() -> None:
    runs = result("a", sample(p50_ms=1.0), sample(p50_ms=90.0), sample(p50_ms=2.0))
    assert runs.median(lambda s: s.p50_ms) == 2.0
    assert runs.median(lambda s: s.p99_ms) is None


def test_ratio_pairs_figures_of_the_same_round() -> None:
    # The machine is ten times slower in the second round; the medians alone would say 1.5.
    mine = result("a", sample(p50_ms=2.0), sample(p50_ms=20.0), sample(p50_ms=3.0))
    peer = result("b", sample(p50_ms=1.0), sample(p50_ms=10.0), sample(p50_ms=2.0))
    assert ratio(mine, peer, lambda s: s.p50_ms) == 2.0
    assert ratio(mine, None, lambda s: s.p50_ms) is None
    assert ratio(mine, result("c", sample()), lambda s: s.p50_ms) is None


def test_case_is_found_by_its_key() -> None:
    run = Run(facts={}, rounds=1, seconds=1, results=[result("a")], skipped=[], disk_bytes={})
    assert run.find("a") is run.results[0]
    assert run.find("b") is None


def test_admitted_share_is_relative_to_what_the_limit_allows() -> None:
    assert sample().admitted_share is None
    assert sample(allowed=660, times_limit=1.5).admitted_share == pytest.approx(0.99)
    assert sample(busiest_window=101, limit=100).busiest_share == pytest.approx(1.01)
    assert sample().busiest_share is None


def test_records_are_counted_per_check() -> None:
    assert sample().records_per_check is None
    assert sample(records=180).records_per_check == pytest.approx(0.18)
