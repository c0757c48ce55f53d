from __future__ import annotations

import pytest
from stoplog_gateway.server.restart_backoff import Backoff


def test_the_delay_doubles_while_it_keeps_ending() -> None:
    backoff = Backoff()
    backoff.started()
    assert [backoff.delay() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_delay_begins_anew_after_a_steady_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("stoplog_gateway.server.restart_backoff.time.monotonic", lambda: now)
    backoff = Backoff()
    backoff.started()
    assert (backoff.delay(), backoff.delay()) == (0.5, 1.0)
    now += 61
    assert backoff.delay() == 0.5
