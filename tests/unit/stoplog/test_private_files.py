"""Data folders are 0700 and files 0600, also those of earlier releases."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stoplog.private_files import make_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data folder as an earlier release left it."""
    home = tmp_path / "home"
    (home / "kafka" / "data").mkdir(parents=True)
    (home / "other").mkdir()
    for file in ("kafka/data/log", "up.json", "other/file"):
        (home / file).write_text("x")
        (home / file).chmod(0o644)
    for folder in (home, home / "kafka", home / "kafka" / "data", home / "other"):
        folder.chmod(0o755)
    return home


def test_make_private_narrows_the_data_once_and_nothing_else(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (home / "kafka" / "jars").symlink_to(outside)

    problem = make_private(home, "kafka", "up.json", "missing")
    told = f"{home} was open to other users (5 of its files and folders): it is private from now on"
    assert problem == told
    assert [mode(home / name) for name in (".", "kafka", "kafka/data")] == [0o700] * 3
    assert [mode(home / name) for name in ("kafka/data/log", "up.json")] == [0o600] * 2
    assert [mode(home / "other"), mode(home / "other/file"), mode(outside)] == [0o755, 0o644, 0o755]
    assert make_private(home, "kafka", "up.json") is None


def test_make_private_leaves_a_shared_folder_with_a_sticky_bit_alone(home: Path) -> None:
    home.chmod(0o1777)
    make_private(home, "kafka")
    assert mode(home) == 0o1777
    assert mode(home / "kafka") == 0o700


def test_make_private_of_a_folder_of_another_user_names_the_remedy_and_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chmod = Path.chmod

    def refuse(path: Path, mode: int) -> None:
        if path == home:
            raise PermissionError(1, "Operation not permitted", str(path))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", refuse)
    problem = make_private(home, "kafka")
    assert problem is not None
    assert f"read {home} (Operation not permitted): make its owner the user that runs Stoplog" in problem
    assert mode(home / "kafka" / "data" / "log") == 0o600


def test_write_private_files_covers_child_processes(tmp_path: Path) -> None:
    program = f"""
import os, subprocess, sys
from stoplog.private_files import write_private_files
os.umask(0o022)
write_private_files()
os.mkdir({str(tmp_path / "folder")!r})
subprocess.run([sys.executable, "-c", "open({str(tmp_path / "file")!r}, 'w')"], check=True)
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)
    assert (mode(tmp_path / "folder"), mode(tmp_path / "file")) == (0o700, 0o600)
