"""Signals as processes of a test find them: not ignored, however the test run itself was started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_OFTEN_IGNORED: Final = (signal.SIGHUP, signal.SIGINT)
"""``nohup make test`` ignores the first, and a script that starts it with ``&`` the second."""


@contextmanager
def default_signals_for_children() -> Iterator[None]:
    """Start every child process with SIGHUP and SIGINT at their defaults.

    A child inherits an ignored signal, but not a handler: the system resets that to the default. So a handler
    that does nothing takes the place of "ignored". This process itself goes on to ignore the signal.
    """
    ignored = [number for number in _OFTEN_IGNORED if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, _do_nothing)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(_: int, __: FrameType | None) -> None:
    """Ignore the signal."""
