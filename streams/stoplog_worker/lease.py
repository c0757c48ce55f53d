"""How long this worker may still believe that its partitions are its own, and write."""

from __future__ import annotations

from collections.abc import Callable

from stoplog.clock import now


class Lease:
    """Time until which the group cannot have given this member's partitions to another.

    The group waits ``session_timeout`` after the last heartbeat it received. A heartbeat that was
    answered was received no earlier than it was *sent*; what is written under the lease may travel for
    ``send_timeout`` more. So a heartbeat sent at t is worth ``session_timeout - send_timeout`` from t,
    less a margin of a tenth for clocks that do not run alike.

    Read by the owner thread, extended by the consumer's: one float, assigned whole.

    Args:
        session_timeout_ms: The group's.
        send_timeout_ms: After which the producers give an unsent record up.
        clock: Seconds; never set back.
    """

    def __init__(
        self, session_timeout_ms: int, send_timeout_ms: int, clock: Callable[[], float] = now
    ) -> None:
        self._worth = (session_timeout_ms * 0.9 - send_timeout_ms) / 1_000
        self._clock = clock
        self._until = float("-inf")

    def extend(self, sent_at: float) -> None:
        """A heartbeat or sync sent at *sent_at* (seconds of the clock) was answered without error."""
        self._until = max(self._until, sent_at + self._worth)

    def end(self) -> None:
        """The group has said that it no longer knows this member."""
        self._until = float("-inf")

    def holds(self) -> bool:
        """Whether what is sent now arrives while the partitions are still ours."""
        return self._clock() < self._until
