"""Messages of commands, when nobody reads them any more."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
from stoplog_gateway.cli.output import err
err.print("first")
err.print("second")
print("goes on")
"""


def test_command_whose_messages_nobody_reads_goes_on() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=write, text=True
        )
    finally:
        os.close(write)
    assert (done.stdout, done.returncode) == ("goes on\n", 0)
