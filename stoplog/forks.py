"""What becomes of objects in a process that was forked, and at the end of a process.

A forked process has the objects of its parent, but only the thread that forked. Threads of Python and of
librdkafka are missing, and a lock that one of them held is never released. So each object that relies on
threads says what to do in the child.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakMethod, WeakSet


class Inherited(Protocol):
    """An object that must not be used in a forked process as it is."""

    def after_fork(self) -> None:
        """Make the object usable in this process, which was forked. Called before any other code runs."""


_inherited: WeakSet[Inherited] = WeakSet()


def call_after_fork(thing: Inherited) -> None:
    """Have ``thing.after_fork()`` called in each process that is forked from now on, while *thing* exists."""
    _inherited.add(thing)


def leak(thing: Any) -> None:
    """Keep *thing*, and all that it refers to, until the process ends, and do not destroy it even then.

    A client of librdkafka waits for its threads when it is destroyed. In a forked process there are none, so
    the process would hang or abort, at the end of the interpreter too.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def call_at_exit(method: Callable[[], None]) -> None:
    """Have *method* called at the end of this process, if its object still exists then.

    Children of multiprocessing and billiard, and the processes of a Celery pool, end without the functions of
    :mod:`atexit`. *method* may be called more than once.
    """
    kept = WeakMethod(method)

    def call(**_: Any) -> None:
        if (found := kept()) is not None:
            found()

    atexit.register(call)
    for name in ("multiprocessing.util", "billiard.util"):
        if (util := sys.modules.get(name)) is not None:
            util.Finalize(None, call, exitpriority=0)
    if (signals := sys.modules.get("celery.signals")) is not None:
        signals.worker_process_shutdown.connect(call, weak=False)


def _after_fork() -> None:
    for thing in list(_inherited):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
