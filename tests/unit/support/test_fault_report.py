"""The report of the fault tests: what is judged on which machine."""

from __future__ import annotations

import pytest

from tests.support.faults import report
from tests.support.faults.report import CONTROL, Row, Targets


def row(fault: str = "some fault", *, moved_s: float = 1.0, per_s: float = 640, p99_ms: float = 50.0) -> Row:
    return Row(fault, moved_s, 0.0, Targets(moved_s=2.0), per_s, p99_ms, 0, 1_000, 0, None)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    rows: list[Row] = []
    monkeypatch.setattr(report, "ROWS", rows)
    monkeypatch.setattr(report, "_judging", True)
    return rows


def test_machine_without_a_control_is_not_judged(rows: list[Row]) -> None:
    rows.append(row())
    assert not report.machine_is_fast()
    assert "reported and not judged" in report.table()


@pytest.mark.parametrize(("per_s", "p99_ms", "fast"), [(640, 50, True), (640, 250, False), (450, 50, False)])
def test_machine_is_fast_if_its_control_is(rows: list[Row], per_s: float, p99_ms: float, fast: bool) -> None:
    rows += [row(CONTROL, per_s=per_s, p99_ms=p99_ms), row(p99_ms=1_000)]
    assert report.machine_is_fast() is fast
    assert ("not judged" in report.table()) is not fast


def test_run_that_only_reports_judges_no_seconds(rows: list[Row]) -> None:
    rows.append(row(CONTROL, per_s=640, p99_ms=50))
    assert report.machine_is_fast()
    report.report_only()
    assert not report.machine_is_fast()
    assert "reported and not judged" in report.table()


def test_row_far_above_its_target_fails() -> None:
    row(moved_s=6.9).check(20.0)
    with pytest.raises(AssertionError, match="failed open for more than 7 s"):
        row(moved_s=7.1).check(20.0)


def test_row_with_too_little_load_fails() -> None:
    with pytest.raises(AssertionError, match="not answered fast enough"):
        row(per_s=400).check(20.0)


def test_table_shows_target_and_miss(rows: list[Row]) -> None:
    rows += [row(CONTROL), row(moved_s=2.5)]
    assert "| some fault | 2.5 (≤ 2: missed) |" in report.table()
