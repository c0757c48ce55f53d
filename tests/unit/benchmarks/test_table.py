from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from tests.benchmarks.samples import Result, Run, Sample, Skipped
from tests.benchmarks.table import COLUMNS, markdown, rich_table


def result(key: str, gateway_s: float, callers: int = 128, **fields: Any) -> Result:
    cpu_s = {"server": gateway_s} if key.startswith("limits") else {"gateway": gateway_s, "worker": 0.02}
    given = {"checks": 1_000, "seconds": 1.0, "cpu_s": cpu_s, "rss_mb": {"gateway": 90.0, "worker": 110.4}}
    samples = [Sample(**{**given, **fields})]
    return Result(key=key, stage="callers", what=f"the way {key}", callers=callers, samples=samples)


def run(*results: Result, **fields: Any) -> Run:
    given = {"rounds": 3, "seconds": 1, "skipped": [], "disk_bytes": {}, **fields}
    return Run(facts={"cpu": "two cores"}, results=list(results), **given)


def row(text: str, what: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {what} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_row_with_a_peer_has_its_figures_targets_and_ratio() -> None:
    text = markdown(run(result("http-128", 0.05), result("limits-128", 0.35)))
    cells = dict(zip(COLUMNS, row(text, "the way http-128"), strict=True))
    assert cells["callers"] == "128"
    assert cells["checks/s"] == "1,000"
    assert (cells["gateway µs"], cells["worker µs"], cells["total µs"]) == ("50", "20", "70")
    assert cells["p50 ms"] == ""
    assert cells["RSS MB"] == "gateway 90, worker 110"
    assert "µs total ≤ 85: 70, met (stretch 75: met)" in cells[COLUMNS[-1]]
    assert "µs gateway ≤ 55: 50, met" in cells[COLUMNS[-1]]
    assert "CPU 0.2 x limits + FastAPI + Redis" in cells[COLUMNS[-1]]


def test_markdown_of_a_bad_run_names_missed_targets_failed_open_checks_and_skipped_cases() -> None:
    skipped = [Skipped("throttlecrab", "peer: throttlecrab", "cargo is not on the PATH")]
    text = markdown(run(result("http-128", 0.2, failed_open=10), skipped=skipped))
    assert "µs total ≤ 85: 220, MISSED" in text
    assert "1 % failed open" in text
    assert "Not measured: peer: throttlecrab: cargo is not on the PATH" in text


def test_rich_table_in_a_terminal_shows_the_same_rows() -> None:
    out = StringIO()
    shown = run(result("http-128", 0.05), disk_bytes={"1000000": 31.4})
    Console(file=out, width=220).print(rich_table(shown))
    for part in (
        "two cores",
        "by callers",
        "the way http-128",
        "1,000,000 clients: 31.4 bytes each on a worker",
    ):
        assert part in out.getvalue()


def test_markdown_of_hot_and_standby_rows_has_their_notes() -> None:
    hot = result("hot-cached", 0.05, allowed=100, denied=900, denied_by_worker=9, times_limit=10.2)
    standby = result("standby", 0.0, cpu_s={"worker": 0.03}, idle_cpu_s=0.01)
    text = markdown(run(hot, standby))
    assert "the load is 10.2 x the limit; the worker judged 10.9 % of all checks" in text
    assert "following costs 20 µs; an idle standby takes 1 % of a core" in text


def test_memory_of_several_samples_is_the_median_by_part() -> None:
    samples = [
        Sample(checks=1, seconds=1.0, cpu_s={}, rss_mb={"worker": megabytes})
        for megabytes in (90.0, 100.0, 300.0)
    ]
    measured = run(Result(key="sdk-1", stage="callers", what="it", callers=1, samples=samples))
    assert dict(zip(COLUMNS, row(markdown(measured), "it"), strict=True))["RSS MB"] == "worker 100"


def test_row_with_leases_says_how_many_checks_they_answered() -> None:
    text = markdown(run(result("leases-zipf-32", 0.05, lease_hits=550, leases=40_000)))
    assert "leases answered 55 %; 40,000 leases are open at the end" in text
    assert "leases" not in row(markdown(run(result("http-128", 0.05, lease_hits=0))), "the way http-128")[-1]


def test_row_behind_a_proxy_says_what_the_proxy_takes() -> None:
    text = markdown(run(result("nginx-zipf", 0.0, cpu_s={"proxy": 0.03, "gateway": 0.02})))
    assert row(text, "the way nginx-zipf")[9] == "50"
    assert "the proxy takes 30 µs of the total" in text
