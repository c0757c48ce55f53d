"""One worker a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stoplog_worker import instance_lock as folder

from stoplog.errors import SettingsError


def test_a_second_claim_is_refused_and_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_PATIENCE_S", 0.1)
    home = tmp_path / "worker-1"
    held = folder.lock_instance(home)
    with pytest.raises(SettingsError, match=rf"process {os.getpid()}\) already uses .*STOPLOG_INSTANCE_ID"):
        folder.lock_instance(home)
    held.close()
    folder.lock_instance(home).close()
