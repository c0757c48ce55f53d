"""Refuse to run under gevent and eventlet when they have replaced threads by green ones."""

from __future__ import annotations

import sys
from typing import Any

from stoplog.errors import GreenThreads


def refuse_green_threads() -> None:
    """Return if threads are real.

    The Kafka client calls back from its own threads, and a limiter waits in others. A green thread that waits
    for one of them never ends: no other green thread of the process would run in the meantime.

    Raises:
        GreenThreads: gevent or eventlet has replaced the module ``threading``.
    """
    library = _patched_by()
    if library is not None:
        raise GreenThreads(
            f"{library} has replaced the threads of this process, and a limiter needs real ones: use another "
            f"worker class (gunicorn: gthread), leave threads unpatched, or ask a gateway over HTTP"
        )


def _patched_by() -> str | None:
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None
