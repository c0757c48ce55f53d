"""A process that is kept running: real ones, of a few lines."""

from __future__ import annotations

import sys
from pathlib import Path

from stoplog_gateway.local.child_process import Child


def child(tmp_path: Path, program: str) -> Child:
    return Child("it", [sys.executable, "-c", program], env={"WHO": "me"}, log=tmp_path / "it.log")


def test_its_output_and_environment(tmp_path: Path) -> None:
    it = child(tmp_path, "import os, sys; print(os.environ['WHO']); sys.exit(78)")
    it.start()
    it.join(30)
    assert it.status == 78
    assert it.tail() == "me"


def test_only_what_an_operator_should_see_is_shown_and_once(tmp_path: Path) -> None:
    lines = ["12:00 INFO a: fine", "12:00 WARNING a: careful", "12:00 ERROR a: bad"]
    it = child(tmp_path, "\n".join(f"print({line!r})" for line in lines) + "\nprint('x WARNING', end='')")
    it.log.write_text("12:00 ERROR a: of an earlier run\n")
    it.start()
    it.join(30)
    assert it.warnings() == lines[1:]
    assert it.warnings() == []


def test_one_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    it = child(
        tmp_path,
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
    )
    it.start()
    while it.tail() != "ready":
        assert it.status is None
    it.terminate()
    it.join(0.2)
    assert it.status == -9


def test_a_long_log_makes_room(tmp_path: Path) -> None:
    it = child(tmp_path, "print('new')")
    it.log.write_bytes(b"old\n" * (3 * 1024**2))
    it.start()
    it.join(30)
    assert it.log.read_text() == "new\n"
    assert (tmp_path / "it.log.1").stat().st_size > 10 * 1024**2


def test_killed_after_its_end_nothing_happens(tmp_path: Path) -> None:
    it = child(tmp_path, "")
    it.start()
    it.join(30)
    it.kill()
    assert it.status == 0
