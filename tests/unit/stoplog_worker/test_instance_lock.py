"""Only one worker uses a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stoplog_worker import instance_lock

from stoplog.errors import SettingsError


def test_second_lock_of_a_directory_is_refused_and_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_lock, "_WAIT_S", 0.1)
    home = tmp_path / "worker-1"
    held = instance_lock.lock_instance(home)
    with pytest.raises(SettingsError, match=rf"process {os.getpid()}\) already uses .*STOPLOG_INSTANCE_ID"):
        instance_lock.lock_instance(home)
    held.close()
    instance_lock.lock_instance(home).close()
