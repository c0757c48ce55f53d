"""Keep lines about retries that soon succeed out of a worker's log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

GRACE_S: Final = 5.0
"""Seconds for which retries are normal. A broker that starts needs about one second."""

_FORGET_S: Final = 60.0
"""Seconds without a retry after which the next one counts as the first."""


class TransientFilter(logging.Filter):
    """Drops the lines of one kind until the same text has been repeated for some seconds.

    On a new cluster, the broker cannot assign a producer id at once. librdkafka logs a warning and retries.
    Retries that continue are a failure, and the filter admits their lines.

    Args:
        fragment: Text that every line of this kind contains. All other lines pass.
        clock: Returns monotonic seconds.
    """

    def __init__(self, fragment: str, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._fragment = fragment
        self._clock = clock
        self._first_at = self._last_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the handler shall write *record*."""
        if self._fragment not in record.getMessage():
            return True
        now = self._clock()
        if now - self._last_at > _FORGET_S:
            self._first_at = now
        self._last_at = now
        return now - self._first_at >= GRACE_S
