"""The log of a child process: bounded in size, read for warnings, and written by a process that goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from stoplog_gateway.local import log_file
from stoplog_gateway.local.log_file import LogFile

WRITER = """
import sys
for line in sys.stdin:
    print(line, end="", flush=True)
    sys.stderr.write("written\\n")
    sys.stderr.flush()
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(log_file, "MAX_BYTES", 1_000)
    return 1_000


def test_log_of_a_process_that_goes_on_is_rotated(tmp_path: Path, small: int) -> None:
    log = LogFile(tmp_path / "child.log")
    with (
        log.open() as file,
        subprocess.Popen(
            [sys.executable, "-c", WRITER],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stderr is not None

        def write(line: str) -> None:
            assert child.stdin is not None
            assert child.stderr is not None
            child.stdin.write(f"{line}\n")
            child.stdin.flush()
            child.stderr.readline()

        for number in range(50):
            write(f"12:00 WARNING a: {number:04} {'.' * 100}")
            assert [line.split()[3] for line in log.new_warnings()] == [f"{number:04}"]
            log.rotate_if_large()
        child.stdin.close()
    before = tmp_path / "child.log.1"
    assert log.path.stat().st_size + before.stat().st_size <= 2 * small + 200
    kept = (before.read_text() + log.path.read_text()).splitlines()
    numbers = [int(line.split()[3]) for line in kept]
    assert numbers == list(range(numbers[0], 50))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child.log", "child.log.1"]


def test_rotation_on_a_full_disk_keeps_the_bound(
    tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, copy: Path) -> NoReturn:
        copy.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    log = LogFile(tmp_path / "child.log")
    log.path.write_bytes(b"x" * (small + 1))
    log.rotate_if_large()
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("child.log", 0)]


def test_new_warnings_of_an_emptied_file_begin_at_its_start(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "child.log")
    log.path.write_text("12:00 ERROR a: first, and long\n")
    assert log.new_warnings() == ["12:00 ERROR a: first, and long"]
    os.truncate(log.path, 0)
    log.path.write_text("12:00 ERROR a: new\n")
    assert log.new_warnings() == []  # nothing is said twice about a file that someone else has emptied
    with log.path.open("a") as file:
        file.write("12:01 ERROR a: newer\n")
    assert log.new_warnings() == ["12:01 ERROR a: newer"]


def test_tail_reads_the_end_of_a_large_file_only(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "child.log")
    assert log.tail() == "(no log)"
    log.path.write_text("".join(f"{number}\n" for number in range(200_000)))
    assert log.tail(3) == "199997\n199998\n199999"
