"""The last checkpoints of the partitions that a rebalance has revoked."""

from __future__ import annotations

from concurrent.futures import Future

from stoplog_worker.consumer.partition_set import PartitionSet
from stoplog_worker.lease import Lease
from stoplog_worker.partition.phase import PartitionPhase


class Revocation:
    """One rebalance, from the revocation of the partitions to their next assignment.

    Args:
        done: Completed once nothing more is written.
        goals: The offset before which each partition's records must be in a checkpoint.
        write_until: When to give up writing, monotonic seconds.
        drop_at: When to drop the partitions if the rebalance has not ended, monotonic seconds. State
            that is judged and not written takes memory.
    """

    def __init__(
        self, done: Future[None], goals: dict[int, int], *, write_until: float, drop_at: float
    ) -> None:
        self._done = done
        self._goals = goals
        self._write_until = write_until
        self._drop_at = drop_at

    @property
    def writing(self) -> bool:
        """Whether a last checkpoint may still be written."""
        return not self._done.done()

    def end(self) -> None:
        """Write nothing more."""
        if not self._done.done():
            self._done.set_result(None)

    def unfinished_goals(self) -> dict[int, int]:
        """Return the goals that a following rebalance takes over."""
        return self._goals if self.writing else {}

    def overdue(self, now: float) -> bool:
        """Return whether the rebalance has lasted so long that its partitions are dropped."""
        return not self.writing and now >= self._drop_at

    def advance(self, partitions: PartitionSet, lease: Lease, now: float, until: float) -> bool:
        """Advance the last checkpoints; return whether one of them can go on without an acknowledgment."""
        ready = False
        for number, goal in tuple(self._goals.items()):
            partition = partitions.by_number.get(number)
            if partition is None or partition.phase is not PartitionPhase.REVOKING:
                del self._goals[number]
            elif lease.holds():
                if partition.checkpoint_to(goal, now, until):
                    del self._goals[number]
                else:
                    ready |= partition.busy
        if not self._goals or now >= self._write_until or not lease.holds():
            self.end()
        return ready
