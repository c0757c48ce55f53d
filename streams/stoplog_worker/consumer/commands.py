"""Run what other threads want done in the thread that alone may do it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from stoplog.errors import Unavailable

T = TypeVar("T")


class CommandQueue:
    """Commands for one thread, each with a future for its result."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._closed = False

    def call(self, command: Callable[[], T]) -> Future[T]:
        """Have the thread run *command*; safe in every thread.

        The future raises ``Unavailable`` if the thread has ended.
        """
        future: Future[T] = Future()
        self._commands.put((command, future))
        if self._closed:
            self.close()
        return future

    def run_pending(self) -> None:
        """Run all commands that wait. A command's exception goes to its future and to the caller."""
        with suppress(queue.Empty):
            while True:
                command, future = self._commands.get_nowait()
                try:
                    future.set_result(command())
                except BaseException as exc:
                    future.set_exception(exc)
                    raise

    def close(self) -> None:
        """Refuse all commands that wait, and every later one."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                _, future = self._commands.get_nowait()
                future.set_exception(Unavailable("the consumer thread has ended"))
