"""The lock of a data folder, and the processes that a killed `stoplog up` left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stoplog_gateway.local.data_dir import DataDir, DataDirInUse


@pytest.fixture
def left() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_data_dir_in_use_names_its_process_and_url(tmp_path: Path) -> None:
    first = DataDir(tmp_path, "http://here")
    first.record([])
    with pytest.raises(DataDirInUse, match=rf"process {os.getpid()}, http://here.*STOPLOG_HOME"):
        DataDir(tmp_path, "http://there")

    first.release()
    DataDir(tmp_path, "http://there").release()


def test_stop_leftovers_stops_recorded_processes(tmp_path: Path, left: subprocess.Popen[bytes]) -> None:
    killed = DataDir(tmp_path, "http://here")
    killed.record([left.pid, None])
    killed._file.close()

    home = DataDir(tmp_path, "http://here")
    assert home.stop_leftovers() == 1
    assert left.wait(10) != 0
    home.record([])
    assert home.stop_leftovers() == 0
    home.release()


def test_stop_leftovers_spares_a_process_with_a_reused_id(
    tmp_path: Path, left: subprocess.Popen[bytes]
) -> None:
    earlier = psutil.Process(left.pid).create_time() - 3600
    (tmp_path / "up.json").write_text(json.dumps({"children": [[left.pid, earlier]]}))

    home = DataDir(tmp_path, "http://here")
    assert home.stop_leftovers() == 0
    assert left.poll() is None
    home.release()


def test_stop_leftovers_with_an_incomplete_record_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text('{"children": [[1')
    home = DataDir(tmp_path, "http://here")
    assert home.stop_leftovers() == 0
    home.release()
