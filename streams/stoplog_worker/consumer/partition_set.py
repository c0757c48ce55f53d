"""The partitions that this worker processes, each in one phase."""

from __future__ import annotations

from collections.abc import Iterable

from stoplog_worker.partition.partition import Partition
from stoplog_worker.partition.phase import TRANSITIONS, PartitionPhase

_ACTIVE = PartitionPhase.ACTIVE
_REVOKING = PartitionPhase.REVOKING
_HANDING_OVER = PartitionPhase.HANDING_OVER


class PartitionSet:
    """Partitions by number. Only this class changes a partition's phase.

    The moves follow the table of :class:`~stoplog_worker.partition.phase.PartitionPhase`. A move of several
    partitions skips those in another phase, because a command may arrive after its partition was dropped.
    """

    def __init__(self) -> None:
        self.by_number: dict[int, Partition] = {}
        self.active: tuple[Partition, ...] = ()
        """Those in ACTIVE; every turn of the consumer thread needs them."""
        self.handing_over: tuple[Partition, ...] = ()
        """Those in HANDING_OVER."""

    def all(self) -> list[Partition]:
        """Return every partition; safe in every thread."""
        return list(self.by_number.values())

    def in_phase(self, *phases: PartitionPhase) -> list[Partition]:
        """Return the partitions in one of *phases*; safe in every thread."""
        return [partition for partition in self.all() if partition.phase in phases]

    def add(self, partition: Partition, now: float) -> None:
        """Begin to process a restored partition (absent to ACTIVE) at *now*, monotonic seconds."""
        if partition.number in self.by_number:
            raise ValueError(f"partition {partition.number} is already processed")
        self.by_number[partition.number] = partition
        self._move([partition], _ACTIVE)
        partition.schedule.start(now)

    def revoke(self) -> dict[int, int]:
        """Revoke every active partition (ACTIVE to REVOKING).

        Returns:
            The goal of each one's last checkpoint: the offset before which every record is judged.
        """
        revoked = self.active
        self._move(revoked, _REVOKING)
        return {partition.number: partition.ledger.next_offset for partition in revoked}

    def resume(self, numbers: Iterable[int], now: float) -> set[int]:
        """Make revoked partitions active again (REVOKING to ACTIVE); return their numbers."""
        resumed = self._select(numbers, _REVOKING)
        self._move(resumed, _ACTIVE)
        for partition in resumed:
            partition.schedule.start(now)
        return {partition.number for partition in resumed}

    def hand_over(self, numbers: Iterable[int], until: float) -> None:
        """Answer revoked partitions for their new owner (REVOKING to HANDING_OVER), until *until* at most."""
        moved = self._select(numbers, _REVOKING)
        for partition in moved:
            partition.answer_until = until
        self._move(moved, _HANDING_OVER)

    def handed_over(self, numbers: Iterable[int]) -> list[Partition]:
        """Return those of *numbers* that are in HANDING_OVER."""
        return self._select(numbers, _HANDING_OVER)

    def remove(self, partition: Partition) -> None:
        """Stop to process a partition (to absent)."""
        self._move([partition], None)

    def _select(self, numbers: Iterable[int], phase: PartitionPhase) -> list[Partition]:
        found = (self.by_number.get(number) for number in numbers)
        return [partition for partition in found if partition is not None and partition.phase is phase]

    def _move(self, partitions: Iterable[Partition], phase: PartitionPhase | None) -> None:
        for partition in partitions:
            if (partition.phase, phase) not in TRANSITIONS:
                raise ValueError(f"partition {partition.number} cannot go from {partition.phase} to {phase}")
            partition.phase = phase
            if phase is None:
                del self.by_number[partition.number]
        self.active = tuple(self.in_phase(_ACTIVE))
        self.handing_over = tuple(self.in_phase(_HANDING_OVER))
