"""Run a program that gets SIGTERM when its parent is gone, however the parent ended.

A killed `stoplog up` cannot stop its children. Linux does it for a process that asks for it, and a process
that becomes another program goes on to ask. This file is run as a script by an interpreter without packages,
so it costs 20 ms of a start::

    python -I -S end_with_parent.py PARENT PROGRAM [ARGUMENT ...]
"""

import contextlib
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def ending_with_parent(command: list[str]) -> list[str]:
    """Return *command*, started by this process, as a command that ends with this process.

    Start the command in the main thread: Linux sends the signal when the thread that started it ends. Other
    systems have no such signal. There the next `stoplog up` on the same data folder stops what is left.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _main(parent: int, program: list[str]) -> None:
    with contextlib.suppress(ImportError):  # a Python that was built without libffi
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
