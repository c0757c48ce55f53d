from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from tests.benchmarks.samples import Result, Run, Sample, Skipped
from tests.benchmarks.table import COLUMNS, markdown, rich_table
from tests.benchmarks.targets import Target, targets


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


def test_a_row_has_its_figures_its_targets_and_its_ratio_to_the_peer() -> None:
    text = markdown(run(result("http-128", 0.05), result("limits-128", 0.35)))
    cells = dict(zip(COLUMNS, row(text, "the way http-128"), strict=True))
    assert cells["callers"] == "128"
    assert cells["checks/s"] == "1,000"
    assert (cells["gateway µs"], cells["worker µs"], cells["together µs"]) == ("50", "20", "70")
    assert cells["p50 ms"] == ""
    assert cells["RSS MB"] == "90 + 110"
    assert "µs together ≤ 85: 70, met" in cells[COLUMNS[-1]]
    assert "µs gateway ≤ 55: 50, met" in cells[COLUMNS[-1]]
    assert "CPU 0.2 x limits + FastAPI + Redis" in cells[COLUMNS[-1]]


def test_what_was_missed_let_through_or_not_measured_is_said() -> None:
    skipped = [Skipped("throttlecrab", "peer: throttlecrab", "cargo is not on the PATH")]
    text = markdown(run(result("http-128", 0.2, let_through=10), skipped=skipped))
    assert "µs together ≤ 85: 220, MISSED" in text
    assert "1 % let through undecided" in text
    assert "Not measured: peer: throttlecrab: cargo is not on the PATH" in text


def test_a_terminal_shows_the_same_rows() -> None:
    out = StringIO()
    shown = run(result("http-128", 0.05), disk_bytes={"1000000": 31.4})
    Console(file=out, width=220).print(rich_table(shown))
    for part in ("two cores", "by callers", "the way http-128", "1,000,000 clients: 31 bytes each on disk"):
        assert part in out.getvalue()


def test_targets_are_bounds_from_below_or_above() -> None:
    least = Target(key="sdk-512", what="checks/s", bound=100_000, at_least=True)
    assert least.met is None
    assert "not measured" in str(least)
    found = {(t.key, t.what): t for t in targets(run(result("sdk-512", 0.1, p99_ms=12.5)))}
    assert found["sdk-512", "checks/s"].met is False
    assert found["sdk-512", "p99 ms"].met is False
    assert found["http-32", "µs together"].met is None


def test_two_workers_are_compared_with_one_less_what_standbys_take() -> None:
    def workers(key: str, seconds: float) -> Result:
        return result(key, 0.0, cpu_s={"gateway": 0.5, "worker": seconds})

    measured = run(workers("workers-1", 0.010), workers("workers-2", 0.014), workers("standby", 0.003))
    (flat,) = (target for target in targets(measured) if target.key == "workers-2")
    assert flat.measured is not None
    assert abs(flat.measured - 1.1) < 1e-9


def test_a_worker_is_to_cost_a_third_of_the_pipelined_script() -> None:
    def met(worker_s: float) -> bool | None:
        measured = run(
            result("published", 0.0, cpu_s={"gateway": 0.1, "worker": worker_s}),
            result("redis-50", 0.0, cpu_s={"server": 0.009}),
        )
        (target,) = (t for t in targets(measured) if t.what == "x Redis script pipelined")
        return target.met

    assert met(0.0029)
    assert met(0.006) is False
