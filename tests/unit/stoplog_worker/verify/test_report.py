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


WHY = "the update is signed with the relay key '2026', which is not in STOPLOG_RELAY_KEYS"


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([Finding(0, 1, 9, decisions=8, differ=1, unverified=[WHY])], 3),
        ([Finding(0, 1, 9, decisions=8, unverified=[WHY])], 0),
        (
            [
                Finding(0, 1, 9, decisions=8, differ=1, unverified=[WHY]),
                Finding(1, 1, 9, decisions=8, differ=1),
            ],
            1,
        ),
    ],
    ids=["differs", "workers lack the key as well", "another partition differs"],
)
def test_missing_relay_key_is_named_if_it_explains_differences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: list[Finding], status: int
) -> None:
    monkeypatch.setattr(report, "verify", lambda *_: found)
    assert report.main(["--json"]) == status
    errors = " ".join(capsys.readouterr().err.split())
    assert ("partition 0 cannot be verified: the update is signed with the relay key '2026'" in errors) == (
        status != 0
    )


def test_main_with_malformed_relay_keys_is_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STOPLOG_RELAY_KEYS", "2026:short")
    assert report.main([]) == 2
    assert "relay_keys: entry 1 is malformed" in capsys.readouterr().err
