"""The test suite's own rules: skips for missing programs, and signals and stacks of child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.broker import CHECKOUT
from tests.support.programs import install_commands
from tests.support.signals import default_signals_for_children
from tests.support.system import STACKS, Process, eventually

CONFTEST: Final = """
from tests import conftest
from tests.conftest import *
from tests.support import programs

programs.PROGRAMS["nothing"] = programs.Program("nothing", "apt-get install --no-install-recommends naught")
"""
TESTS: Final = """
import pytest

@pytest.mark.needs("nothing")
def test_program_is_run() -> None:
    raise AssertionError("the program is not there")

def test_nothing_is_run() -> None:
    pass
"""


def run_pytest(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a folder that has the suite's conftest and one test that needs a missing program."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments, str(folder)],
        cwd=folder,
        env={**inherited, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "gateway")]), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("processes", [[], ["--numprocesses", "1"]], ids=["one process", "xdist"])
def test_needs_program_missing_skips_and_says_what_installs_it(tmp_path: Path, processes: list[str]) -> None:
    done = run_pytest(tmp_path, *processes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is not installed: apt-get install --no-install-recommends naught" in done.stdout
    assert "nothing: 1 test\nTo run them: apt-get install --no-install-recommends naught\n" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout


def test_needs_program_missing_in_ci_fails(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CI="1")
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout or "1 failed, 1 passed" in done.stdout


@pytest.mark.parametrize(
    ("options", "status"), [([], 5), (["--allow-no-tests"], 0)], ids=["default", "allowed"]
)
def test_no_test_selected_is_a_failure_unless_allowed(
    tmp_path: Path, options: list[str], status: int
) -> None:
    assert run_pytest(tmp_path, "-k", "nowhere", *options).returncode == status


def test_install_commands_join_packages_of_debian() -> None:
    assert install_commands(["promtool", "prometheus", "envoy", "nginx"]) == [
        "make .venv/envoy",
        "apt-get install --no-install-recommends nginx-light prometheus",
    ]


def test_child_processes_find_no_ignored_signals() -> None:
    program = "import signal; print(*map(signal.getsignal, (signal.SIGHUP, signal.SIGINT)))"
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with default_signals_for_children():
            shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert shown == f"{signal.SIG_DFL} {signal.default_int_handler}\n"


def test_process_says_what_its_threads_and_tasks_are_doing(tmp_path: Path) -> None:
    program = """
import asyncio, threading

def hang():
    print("hangs", flush=True)
    threading.Event().wait()

async def wait_for_godot():
    await asyncio.to_thread(hang)

asyncio.run(wait_for_godot())
"""
    command = [sys.executable, "-c", program]
    process = Process("it", command, env={"PYTHONPATH": str(STACKS)}, log=tmp_path / "log")
    process.start()
    try:
        eventually("it hangs", lambda: process.lines("hangs") != [])
        stacks = process.stacks()
        assert "in hang\n" in stacks
        assert "in wait_for_godot\n" in stacks
        assert process.status is None
    finally:
        process.kill()
    assert process.stacks() == ""
