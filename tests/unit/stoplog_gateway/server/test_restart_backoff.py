from __future__ import annotations

import pytest
from stoplog_gateway.server.restart_backoff import RestartBackoff


def test_delay_doubles_with_each_end_in_a_row_up_to_30_s() -> None:
    backoff = RestartBackoff()
    backoff.on_start()
    assert [backoff.next_delay() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_delay_restarts_at_half_a_second_after_a_stable_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("stoplog_gateway.server.restart_backoff.time.monotonic", lambda: now)
    backoff = RestartBackoff()
    backoff.on_start()
    assert (backoff.next_delay(), backoff.next_delay()) == (0.5, 1.0)
    now += 61
    assert backoff.next_delay() == 0.5
