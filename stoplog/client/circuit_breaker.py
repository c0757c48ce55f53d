"""Decide whether the checks of one partition wait for replies."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from stoplog.client.fail_open import BREAKER_OPEN, BROKER


class BreakerState(StrEnum):
    """Whether checks wait, and if not, why. An open state is itself the reason in degraded answers.

    ==============  =====================================  ==============  ==============  ============
    state           deadline missed                        broker down     worker starts   timely reply
    ==============  =====================================  ==============  ==============  ============
    ``CLOSED``      ``NO_REPLIES`` at the last of several  ``NO_BROKER``   ``NO_REPLIES``  ``CLOSED``
                    in a row, else ``CLOSED``
    ``NO_REPLIES``  ``NO_REPLIES``                         ``NO_REPLIES``  ``NO_REPLIES``  ``CLOSED``
    ``NO_BROKER``   ``NO_BROKER``                          ``NO_BROKER``   ``NO_BROKER``   ``CLOSED``
    ==============  =====================================  ==============  ==============  ============

    There is no half-open state: every batch published while the breaker is open is a trial.
    """

    CLOSED = "closed"
    """Checks wait for the reply to their batch."""

    NO_REPLIES = BREAKER_OPEN
    """Checks are answered at once and published. Several deadlines in a row were missed, or the number of
    partitions has grown and the partition's worker has not replied since."""

    NO_BROKER = BROKER
    """Checks are answered at once and published, because no broker can be reached."""


CLOSED: Final = BreakerState.CLOSED
"""The state that the hot path tests for, without an attribute lookup."""


class CircuitBreaker:
    """The circuit breaker of one partition; :class:`BreakerState` has its table.

    Args:
        max_misses: Deadlines missed in a row that open the breaker.

    Attributes:
        state: The current state.
        misses: Deadlines missed since the last timely reply.
        has_replied: Whether there has ever been a timely reply.
    """

    __slots__ = ("_max_misses", "has_replied", "misses", "state")

    def __init__(self, max_misses: int) -> None:
        self._max_misses = max_misses
        self.state = CLOSED
        self.misses = 0
        self.has_replied = False

    def on_miss(self) -> bool:
        """Count a missed deadline. Return whether it opened the breaker."""
        self.misses += 1
        return self.misses >= self._max_misses and self._open(BreakerState.NO_REPLIES)

    def on_broker_down(self) -> bool:
        """Open, because no broker can be reached. Return whether the breaker was closed."""
        return self._open(BreakerState.NO_BROKER)

    def on_worker_start(self) -> bool:
        """Open, because the partition's worker is known to start. Return whether the breaker was closed."""
        return self._open(BreakerState.NO_REPLIES)

    def on_reply(self) -> bool:
        """Close after a timely reply. Return whether the breaker was open."""
        self.misses = 0
        self.has_replied = True
        was_open = self.state is not CLOSED
        self.state = CLOSED
        return was_open

    def _open(self, state: BreakerState) -> bool:
        if self.state is not CLOSED:
            return False
        self.state = state
        return True
