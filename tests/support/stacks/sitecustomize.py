"""Have a process of a test print what it is doing when it gets SIGUSR1: each thread and each task.

Python imports a module of this name at its start. :class:`tests.support.system.Process` puts this folder on
the path.
"""

from __future__ import annotations

import asyncio.tasks
import faulthandler
import signal
import sys
from types import FrameType

END = "--- end of the stacks"


def _print_tasks(_signum: int, _frame: FrameType | None) -> None:
    for task in list(asyncio.tasks._all_tasks):  # type: ignore[attr-defined]  # of all event loops
        task.print_stack(limit=4, file=sys.stderr)
    print(END, file=sys.stderr, flush=True)


signal.signal(signal.SIGUSR1, _print_tasks)
faulthandler.register(signal.SIGUSR1, chain=True)  # the threads first, even if the main one hangs
