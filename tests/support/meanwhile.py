"""Work that goes on while a test does something else, such as a load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meanwhile(step: Callable[[int], object]) -> Iterator[None]:
    """Call *step* repeatedly in another thread, with 0, 1, 2, …; raise its exception after the block."""
    stopping, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        number = 0
        try:
            while not stopping.is_set():
                step(number)
                number += 1
        except BaseException as exc:  # noqa: BLE001 - raised in the test's thread
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        for failure in failures:
            raise failure
