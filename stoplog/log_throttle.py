"""Limit how often the log repeats a line about something that may happen with every request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

MAX_KEYS: Final = 1_000
"""Keys remembered. One more makes the throttle forget all of them, so each may be logged again early."""


class LogThrottle:
    """Admits at most one line per key and pause, and counts the lines in between.

    Args:
        pause_s: Seconds between two lines with the same key.
        clock: Returns monotonic seconds.
    """

    __slots__ = ("_clock", "_entries", "_pause_s")

    def __init__(self, pause_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def admit(self, key: str = "") -> str | None:
        """Return the end of the line to log now, or ``None`` if this line has to be dropped.

        The end is empty, or states how many lines with this *key* were dropped since the last one.

        >>> throttle = LogThrottle(60, iter([0, 1, 2, 60]).__next__)
        >>> [throttle.admit() for _ in range(4)]
        ['', None, None, ' (similar lines suppressed: 2)']
        """
        now = self._clock()
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= MAX_KEYS:
                self._entries.clear()
            self._entries[key] = _Entry(now)
            return ""
        if now - entry.logged_at < self._pause_s:
            entry.suppressed += 1
            return None
        suppressed, entry.suppressed, entry.logged_at = entry.suppressed, 0, now
        return f" (similar lines suppressed: {suppressed:,})" if suppressed else ""


class _Entry:
    """The last line of one key: when it was logged, and how many were dropped since then."""

    __slots__ = ("logged_at", "suppressed")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.suppressed = 0


class ThrottleFilter(logging.Filter):
    """Drops repeated texts of one logger and its children. Attach it to a handler.

    Args:
        name: The logger's name. Records of other loggers pass.
        throttle: Admits each text; it may be shared by several filters.
    """

    def __init__(self, name: str, throttle: LogThrottle) -> None:
        super().__init__(name)
        self._throttle = throttle

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the handler shall write *record*."""
        return not super().filter(record) or self._throttle.admit(record.getMessage()) is not None
