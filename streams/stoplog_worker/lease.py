"""How long this worker may assume that it owns its partitions, and write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stoplog.clock import now

_CLOCK_MARGIN: Final = 0.1
"""Share of the session timeout subtracted for clocks that run at different speeds."""


class Lease:
    """The time until which the group cannot have assigned this member's partitions to another one.

    The group waits ``session_timeout`` after the last heartbeat that it received. It received a confirmed
    heartbeat no earlier than the worker *sent* it. A record written under the lease may travel for another
    ``send_timeout``. A heartbeat sent at t therefore keeps the lease until
    ``t + 0.9 * session_timeout - send_timeout``.

    The consumer thread reads the lease, and the thread of Faust's consumer extends it. It is one float, which
    is assigned as a whole.

    Args:
        session_timeout_ms: The group's session timeout, milliseconds.
        send_timeout_ms: Milliseconds after which the producers give up an unsent record.
        clock: Returns seconds; it never goes back.
    """

    def __init__(
        self, session_timeout_ms: int, send_timeout_ms: int, clock: Callable[[], float] = now
    ) -> None:
        self._lasts_s = (session_timeout_ms * (1 - _CLOCK_MARGIN) - send_timeout_ms) / 1_000
        self._clock = clock
        self._until = float("-inf")

    def extend(self, sent_at: float) -> None:
        """Extend the lease: the group confirmed a heartbeat or a sync sent at *sent_at*, in clock seconds."""
        self._until = max(self._until, sent_at + self._lasts_s)

    def end(self) -> None:
        """End the lease: the group no longer knows this member."""
        self._until = float("-inf")

    def over_for_s(self) -> float:
        """Return the seconds since the lease ran out; infinity if the group ended it or never granted it."""
        return max(0.0, self._clock() - self._until)

    def holds(self) -> bool:
        """Return whether a record sent now arrives while this worker still owns its partitions."""
        return self._clock() < self._until
