"""One partition's breaker: after some deadlines missed in a row, its checks are not waited for.

Open, it is no wall: checks are still published, and any timely reply closes it. There is no half-open
state, because every batch published while it is open is a trial.
"""

from __future__ import annotations

from stoplog.client.fail_open import BREAKER_OPEN


class Breaker:
    """Closed while ``reason`` is ``None``; open, it is the reason that degraded answers give.

    ``missed`` counts the deadlines missed since the last answer; ``proven`` tells whether there ever was one.
    """

    __slots__ = ("_limit", "missed", "proven", "reason")

    def __init__(self, misses: int) -> None:
        self._limit = misses
        self.missed = 0
        self.proven = False
        self.reason: str | None = None

    def miss(self) -> bool:
        """A deadline passed without a reply; returns whether that opened the breaker."""
        self.missed += 1
        return self.missed >= self._limit and self.trip(BREAKER_OPEN)

    def trip(self, reason: str) -> bool:
        """Open at once, for *reason*; returns whether it was closed."""
        if self.reason is not None:
            return False
        self.reason = reason
        return True

    def hit(self) -> bool:
        """A timely reply came; returns whether that closed the breaker."""
        self.missed = 0
        self.proven = True
        if self.reason is None:
            return False
        self.reason = None
        return True
