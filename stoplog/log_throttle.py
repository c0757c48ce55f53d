"""Once in a while: for the log, of what may happen with every request."""

from __future__ import annotations

from collections.abc import Callable


class Quiet:
    """Says when it is time for another line.

    Args:
        pause_s: Seconds between two.
        clock: Seconds, monotonic.
    """

    __slots__ = ("_clock", "_pause_s", "_silent_until", "_unsaid")

    def __init__(self, pause_s: float, clock: Callable[[], float]) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._silent_until = float("-inf")
        self._unsaid = 0

    def unsaid(self) -> str | None:
        """What the line ends with: how often nothing was said since the last; ``None``: not now.

        >>> quiet = Quiet(60, iter([0, 1, 2, 60]).__next__)
        >>> [quiet.unsaid() for _ in range(4)]
        ['', None, None, ' (2 more since this was last said)']
        """
        now = self._clock()
        if now < self._silent_until:
            self._unsaid += 1
            return None
        more = f" ({self._unsaid:,} more since this was last said)" if self._unsaid else ""
        self._silent_until = now + self._pause_s
        self._unsaid = 0
        return more
