from __future__ import annotations

from typing import Any

import pytest
from stoplog_worker.verify import report
from stoplog_worker.verify.compare import Finding

from stoplog.errors import Unavailable


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([Finding(0, 1, 9, decisions=8), Finding(1, 3, 3)], 0),
        ([Finding(0, 1, 9, decisions=8), Finding(1, 1, 9, differ=1)], 1),
        ([Finding(0, 1, 1), Finding(1, 3, 3)], 3),
        ([Finding(0, 1, 9), Finding(1, 3, 3)], 3),
        (Unavailable("no broker answered"), 3),
    ],
)
def test_main_returns_exit_status_of_findings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[Finding] | Unavailable,
    status: int,
) -> None:
    def verify(*_: Any) -> list[Finding]:
        if isinstance(found, Unavailable):
            raise found
        return found

    monkeypatch.setattr(report, "verify", verify)
    assert report.main(["--json"]) == status
    output = capsys.readouterr()
    expected = "no broker answered" if isinstance(found, Unavailable) else "nothing was verified, because"
    assert (expected in output.err) == (status == 3)
    assert ('"differ":1' in output.out) == (status == 1)


def test_main_with_invalid_settings_is_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STOPLOG_FLUSH_INTERVAL_MS", "soon")
    assert report.main([]) == 2
    assert "flush_interval_ms" in capsys.readouterr().err.lower()
