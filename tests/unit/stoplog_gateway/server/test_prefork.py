"""Where several processes cannot be had, or do not stop; the rest is in e2e/test_gateway_processes.py."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn, cast

import pytest
import stoplog_gateway.server.prefork
from stoplog_gateway.server.prefork import _Place, _stop, serve_forked

from stoplog.client.settings import Settings
from stoplog.errors import SettingsError


def test_another_system_than_linux_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match=r"STOPLOG_PROCESSES=2: only Linux .* start several gateways"):
        serve_forked(Settings(processes=2))


def test_without_a_folder_for_metrics_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(prefix: str) -> NoReturn:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(stoplog_gateway.server.prefork, "TemporaryDirectory", nowhere)
    with pytest.raises(SettingsError, match="set TMPDIR to a writable one"):
        serve_forked(Settings(processes=2))


def test_what_does_not_stop_is_killed_when_settings_allow_it_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        running = True

        def terminate(self) -> None: ...

        def kill(self) -> None:
            self.running = False

    waits: list[float] = []
    monkeypatch.setattr(signal, "sigtimedwait", lambda _, seconds: waits.append(seconds))
    stuck = Stuck()
    _stop(
        [cast(_Place, stuck)],
        [],
        Settings(deadline_ms=60_000, publish_timeout_ms=30_000, apply_timeout_ms=40_000).stop_s,
    )
    assert not stuck.running
    assert [95 < seconds < 100 for seconds in waits] == [True]
