"""Children that end when their parent is killed."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from stoplog_gateway.local.end_with_parent import ending_with_parent

PARENT = """
import subprocess, sys
from stoplog_gateway.local.end_with_parent import ending_with_parent
child = subprocess.Popen(
    ending_with_parent([sys.executable, "-c", "import time; time.sleep(60)"]), start_new_session=True
)
print(child.pid, flush=True)
child.wait()
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")


@linux_only
def test_child_of_a_killed_parent_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    # The init of a container may not collect its status.
    gone, alive = psutil.wait_procs([child], timeout=30)
    assert gone or alive[0].status() == psutil.STATUS_ZOMBIE


@linux_only
def test_child_keeps_its_arguments_environment_and_status() -> None:
    program = "import os, sys; print(sys.argv[1:], os.environ['WHO']); sys.exit(7)"
    done = subprocess.run(
        ending_with_parent([sys.executable, "-c", program, "a b", "-I"]),
        env={**os.environ, "WHO": "me"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("['a b', '-I'] me\n", 7)


@linux_only
def test_child_whose_parent_has_ended_already_does_not_start() -> None:
    command = ending_with_parent([sys.executable, "-c", "print('started')"])
    command[command.index(str(os.getpid()))] = "1" if os.getpid() != 1 else "2"
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 1)


def test_command_on_other_systems_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ending_with_parent(["program"]) == ["program"]
