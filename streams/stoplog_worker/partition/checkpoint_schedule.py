"""When the checkpoints of one partition begin. Pure: the caller passes the time, in monotonic seconds."""

from __future__ import annotations

from typing import Final

URGENT_INTERVAL_S: Final = 1.0
"""Seconds between the beginnings of two checkpoints at least: a client charged often is written once."""

RETRY_S: Final = 0.5
"""Seconds from the beginning of a revoked partition's last checkpoint to the next attempt, if it fails."""


class CheckpointSchedule:
    """Decides when a checkpoint is due.

    ===========  ==============================================  ======================================
    checkpoint   is due                                          reason
    ===========  ==============================================  ======================================
    regular      an interval after the one before began          what a crash has to replay is bounded
    urgent       a second after the one before began             much is dirty, or a write failed
    last         at once; after a failure, half a second later   the partition is being revoked
    ===========  ==============================================  ======================================

    Args:
        interval_s: Seconds between two regular checkpoints. Below a second it also holds for urgent ones.
        stagger: 0 to 1: the share of a second by which the first checkpoint is delayed, so that partitions
            take turns.
    """

    def __init__(self, interval_s: float, stagger: float = 0.0) -> None:
        self._interval_s = interval_s
        self._urgent_interval_s = min(URGENT_INTERVAL_S, interval_s)
        self._stagger = stagger
        self._due_at = self._urgent_due_at = self._last_due_at = 0.0

    def start(self, now: float) -> None:
        """Schedule the first checkpoint of a partition that is active from *now* on."""
        self._due_at = self._urgent_due_at = now + (1 + self._stagger) * self._urgent_interval_s

    def is_due(self, now: float, *, urgent: bool) -> bool:
        """Return whether a checkpoint should begin."""
        return now >= (self._urgent_due_at if urgent else self._due_at)

    def begun(self, now: float) -> None:
        """Schedule the checkpoint after the one that begins *now*."""
        self._due_at = now + self._interval_s
        self._urgent_due_at = now + self._urgent_interval_s

    def expedite(self) -> None:
        """Make the next checkpoint due as early as an urgent one."""
        self._due_at = self._urgent_due_at

    def last_is_due(self, now: float, *, failed: bool) -> bool:
        """Return whether the last checkpoint should begin; *failed*: the checkpoint before it failed."""
        return not failed or now >= self._last_due_at

    def last_begun(self, now: float) -> None:
        """Delay the next attempt at a last checkpoint, should the one that begins *now* fail."""
        self._last_due_at = now + RETRY_S
