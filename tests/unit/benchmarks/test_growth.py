from __future__ import annotations

import msgspec

from tests.benchmarks.growth import growth_markdown
from tests.benchmarks.samples import Result, Run, Sample


def result(key: str, micros: float) -> Result:
    sample = Sample(
        checks=1_000, seconds=1.0, cpu_s={"worker": micros / 1e3}, rss_mb={"worker": 150.0}, p50_ms=2.5
    )
    return Result(key=key, stage="", what=key, callers=1, samples=[sample])


def test_growth_tables_show_each_figure_in_the_column_of_its_number() -> None:
    results = [
        result("sdk-1", 800.0),
        result("sdk-512", 15.0),
        result("http-512", 64.0),
        result("clients-1000000-uniform", 9.0),
        result("clients-10000000-uniform", 11.0),
        result("partitions-2-32", 60.0),
        result("workers-1", 2.0),
        result("workers-2", 3.0),
    ]
    run = Run(
        facts={},
        rounds=1,
        seconds=1,
        results=results,
        skipped=[],
        disk_bytes={"1000": 900.0, "1000000": 31.0},
    )
    lines = growth_markdown(run).splitlines()
    for line in (
        "| by callers: CPU µs per check, total | 1 | 32 | 128 | 512 |",
        "| SDK | 800 |  |  | 15 |",
        "| by clients | 1,000 | 1,000,000 | 10,000,000 |",
        "| published, uniform: µs worker |  | 9 | 11 |",
        "| bytes per client on disk | 900 | 31 |  |",
        "| by partitions | 1 | 2 | 4 | 16 |",
        "| SDK, 32 callers: µs total |  | 60 |  |  |",
        "| SDK, 32 callers: p50 ms |  | 2.5 |  |  |",
        "| published: µs worker, following included | 2 | 3 |",
    ):
        assert line in lines
    assert lines[-1].endswith(": HTTP, single checks 64, SDK 15.")


def test_growth_of_a_case_that_failed_open_is_left_out() -> None:
    failed_open = msgspec.structs.replace(result("sdk-512", 1.0).samples[0], failed_open=2)
    results = [result("sdk-1", 800.0), msgspec.structs.replace(result("sdk-512", 1.0), samples=[failed_open])]
    text = growth_markdown(Run(facts={}, rounds=1, seconds=1, results=results, skipped=[], disk_bytes={}))
    assert "| SDK | 800 |  |  |  |" in text
    assert text.endswith(": SDK 800.")


def test_growth_without_measurement_has_no_table() -> None:
    run = Run(facts={}, rounds=1, seconds=1, results=[result("sdk-1", 8.0)], skipped=[], disk_bytes={})
    text = growth_markdown(run)
    assert "| SDK | 8 |" in text
    assert "published" not in text
    assert "by clients" not in text
