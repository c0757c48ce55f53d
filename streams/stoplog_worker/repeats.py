"""What another library says again and again, said once in a while."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

_AGAIN_S: Final = 600.0
_MOST: Final = 1_000
"""Texts remembered; beyond it all are forgotten, and may be said again."""


class Repeats(logging.Filter):
    """Of a handler: lets a text of the logger *name* and those below it through once in ten minutes.

    Args:
        name: Whose texts; all others' pass.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(name)
        self._clock = clock
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether *record* is to be written."""
        if not super().filter(record):
            return True
        text, now = record.getMessage(), self._clock()
        if now - self._said.get(text, -_AGAIN_S) < _AGAIN_S:
            return False
        if len(self._said) >= _MOST:
            self._said.clear()
        self._said[text] = now
        return True
