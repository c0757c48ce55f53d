"""Where several processes cannot be had; all else is in tests/e2e/test_gateway_processes.py."""

from __future__ import annotations

import sys
from typing import NoReturn

import pytest

import gateway.prefork
from gateway.prefork import serve_forked
from gateway.settings import Settings
from streams.contract.errors import SettingsError


def test_another_system_than_linux_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match=r"SLUICE_PROCESSES=2: only Linux .* start several gateways"):
        serve_forked(Settings(processes=2))


def test_without_a_folder_for_metrics_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(prefix: str) -> NoReturn:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(gateway.prefork, "TemporaryDirectory", nowhere)
    with pytest.raises(SettingsError, match="set TMPDIR to a writable one"):
        serve_forked(Settings(processes=2))
