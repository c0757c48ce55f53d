"""Child processes of `stoplog up`, with real processes of a few lines."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from stoplog_gateway.local.child_process import Child


def create(tmp_path: Path, program: str) -> Child:
    return Child("child", [sys.executable, "-c", program], env={"WHO": "me"}, log=tmp_path / "child.log")


def test_child_gets_its_environment_and_logs_its_output(tmp_path: Path) -> None:
    child = create(tmp_path, "import os, sys; print(os.environ['WHO']); sys.exit(78)")
    child.start()
    child.join(30)
    assert child.status == 78
    assert child.tail() == "me"


def test_warnings_returns_new_warnings_and_errors_once(tmp_path: Path) -> None:
    lines = ["12:00 INFO a: fine", "12:00 WARNING a: careful", "12:00 ERROR a: bad"]
    child = create(tmp_path, "\n".join(f"print({line!r})" for line in lines) + "\nprint('x WARNING', end='')")
    child.log.write_text("12:00 ERROR a: of an earlier run\n")
    child.start()
    child.join(30)
    assert child.warnings() == lines[1:]
    assert child.warnings() == []


def test_join_kills_a_child_that_does_not_end(tmp_path: Path) -> None:
    child = create(
        tmp_path,
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
    )
    child.start()
    while child.tail() != "ready":
        assert child.status is None
    child.terminate()
    child.join(0.2)
    assert child.status == -9


def test_start_with_a_large_log_rotates_it(tmp_path: Path) -> None:
    child = create(tmp_path, "print('new')")
    child.log.write_bytes(b"old\n" * (3 * 1024**2))
    child.start()
    child.join(30)
    assert child.log.read_text() == "new\n"
    assert (tmp_path / "child.log.1").stat().st_size > 10 * 1024**2


def test_child_inherits_the_sockets_that_it_is_given(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        program = f"import socket; print(socket.socket(fileno={sock.fileno()}).getsockname()[1])"
        child = Child(
            "child",
            [sys.executable, "-c", program],
            env={},
            log=tmp_path / "child.log",
            pass_fds=[sock.fileno()],
        )
        child.start()
        child.join(30)
        assert child.tail() == str(sock.getsockname()[1])


def test_kill_of_an_ended_child_keeps_its_status(tmp_path: Path) -> None:
    child = create(tmp_path, "")
    child.start()
    child.join(30)
    child.kill()
    assert child.status == 0
