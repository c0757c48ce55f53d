"""Failures to start and to stop several processes; tests/e2e/test_gateway_processes.py covers the rest."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn, cast

import pytest
import stoplog_gateway.server.prefork
from stoplog_gateway.server.prefork import _stop, _SupervisedProcess, serve_forked
from stoplog_gateway.settings import GatewaySettings

from stoplog.errors import SettingsError


def test_serve_forked_outside_linux_raises_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match=r"STOPLOG_PROCESSES=2: only Linux .* start several gateways"):
        serve_forked(GatewaySettings(processes=2))


def test_serve_forked_without_a_temporary_folder_raises_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(prefix: str) -> NoReturn:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(stoplog_gateway.server.prefork, "TemporaryDirectory", nowhere)
    with pytest.raises(SettingsError, match="set TMPDIR to a writable one"):
        serve_forked(GatewaySettings(processes=2))


def test_stop_kills_a_process_that_outlives_the_stop_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        running = True

        def terminate(self) -> None: ...

        def kill(self) -> None:
            self.running = False

    waits: list[float] = []
    monkeypatch.setattr(signal, "sigtimedwait", lambda _, seconds: waits.append(seconds))
    stuck = Stuck()
    _stop(
        [cast(_SupervisedProcess, stuck)],
        [],
        GatewaySettings(deadline_ms=60_000, publish_timeout_ms=30_000, apply_timeout_ms=40_000).stop_s,
    )
    assert not stuck.running
    assert [100 < seconds < 105 for seconds in waits] == [True]
