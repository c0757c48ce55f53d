"""One partition between the changelogs and its owner: the phases of its restore."""

from __future__ import annotations

from enum import Enum, auto
from functools import partial
from typing import Final

from stoplog_worker.restore.lane_bootstrap import LaneCopier
from stoplog_worker.state.expiry import PASS_S, StateExpirer
from stoplog_worker.state.store import COUNTERS, PartitionStore


class RestorePhase(Enum):
    """The phase of a partition's restore. The restorer reads the changelogs in every phase.

    =================  ==================================================================================
    phase              meaning
    =================  ==================================================================================
    STANDBY            the partition is kept up to date for another owner
    FINDING_ENDS       the partition is to become active; the ends of its changelogs are requested
    CATCHING_UP        the changelogs are read up to these ends
    AWAITING_COPY      the lane is new here; the copier is busy with another partition
    FINDING_LEFTOVERS  the ends again: an interrupted copy may have written entries
    READING_LEFTOVERS  the changelogs are read up to these ends
    COPYING            the default lane's state is copied into this lane's changelogs
    FINDING_COPY       the ends again, behind what was copied
    READING_COPY       the changelogs are read up to these ends
    READY              the store holds everything; it is handed over once its topics' ids are known
    =================  ==================================================================================

    =================  =================  =================================================================
    from               to                 when
    =================  =================  =================================================================
    any                FINDING_ENDS       ``activate`` with a generation
    any                STANDBY            ``activate`` without one; a copy in progress is dropped
    FINDING_ENDS       CATCHING_UP        the ends are known
    CATCHING_UP        READY              at the ends; the store has a marker, or the lane is the default one
    CATCHING_UP        AWAITING_COPY      at the ends; the lane is new in this partition
    AWAITING_COPY      FINDING_LEFTOVERS  the copier is free
    AWAITING_COPY      COPYING            the copier has this partition already, from an earlier generation
    FINDING_LEFTOVERS  READING_LEFTOVERS  the ends are known
    READING_LEFTOVERS  READY              at the ends; an interrupted copy had been complete
    READING_LEFTOVERS  COPYING            at the ends; the copier is free
    READING_LEFTOVERS  AWAITING_COPY      at the ends; the copier has taken another partition meanwhile
    COPYING            FINDING_COPY       the copy is complete
    COPYING            AWAITING_COPY      the copy was interrupted: no lease, or no answer from the broker
    FINDING_COPY       READING_COPY       the ends are known
    READING_COPY       READY              at the ends
    READY              CATCHING_UP        a changelog has lost its beginning and is read again
    =================  =================  =================================================================

    READY ends with the hand-over: the restorer then forgets the partition.
    """

    STANDBY = auto()
    FINDING_ENDS = auto()
    CATCHING_UP = auto()
    AWAITING_COPY = auto()
    FINDING_LEFTOVERS = auto()
    READING_LEFTOVERS = auto()
    COPYING = auto()
    FINDING_COPY = auto()
    READING_COPY = auto()
    READY = auto()


_READING_AFTER: Final = {
    RestorePhase.FINDING_ENDS: RestorePhase.CATCHING_UP,
    RestorePhase.FINDING_LEFTOVERS: RestorePhase.READING_LEFTOVERS,
    RestorePhase.FINDING_COPY: RestorePhase.READING_COPY,
}


class PartitionRestore:
    """A partition whose changelogs are read, and the phase of its restore.

    Args:
        store: The partition's tables.
        copier: Copies the default lane's state; ``None`` in the default lane.
        expiry_pass_s: Seconds between two passes over the states, which remove expired ones.
    """

    def __init__(
        self, store: PartitionStore, copier: LaneCopier | None, *, expiry_pass_s: float = PASS_S
    ) -> None:
        self.store = store
        self.expirer = StateExpirer(store, pass_s=expiry_pass_s)
        self.phase = RestorePhase.STANDBY
        self.generation: int | None = None
        """The generation for which the partition is to become active; ``None`` for a standby."""
        self.retry_at = 0.0
        """No request is sent to the broker before this time, monotonic seconds."""
        self._copier = copier
        self._ends: dict[str, int] = {}

    @property
    def finding_ends(self) -> bool:
        """Whether the next step needs the ends of the changelogs (:meth:`found_ends`)."""
        return self.phase in _READING_AFTER

    @property
    def at_ends(self) -> bool:
        """Whether the changelogs have been read up to their ends, which are known.

        They have not while a marker of a newer format, which came after these ends, may still be overridden.
        """
        return (
            bool(self._ends)
            and self.store.newer.offset is None
            and all(self.store.next_offset[table] >= end for table, end in self._ends.items())
        )

    def activate(self, generation: int | None) -> None:
        """Restore the partition for *generation*; ``None`` makes it a standby."""
        self.generation = generation
        if generation is None:
            self._enter(RestorePhase.STANDBY)
            if self._copier is not None:
                # Otherwise no other partition could be copied.
                self._copier.drop(self.store.partition)
        else:
            self._enter(RestorePhase.FINDING_ENDS)

    def found_ends(self, ends: dict[str, int]) -> None:
        """Read on to *ends*, by table."""
        self.phase = _READING_AFTER[self.phase]
        self._ends = ends

    def advance(self) -> None:
        """Move on as far as possible without asking the broker for offsets.

        Raises:
            Unavailable: the copy was interrupted, because the broker does not answer.
        """
        phases = RestorePhase
        if not self.at_ends:
            if self.phase is phases.READY:
                self.phase = phases.CATCHING_UP
            return
        if self.phase is phases.CATCHING_UP:
            self.phase = phases.READY if self._is_complete() else phases.AWAITING_COPY
        elif self.phase is phases.READING_COPY:
            self.phase = phases.READY
        elif self.phase is phases.READING_LEFTOVERS:
            if self._is_complete():
                self.phase = phases.READY
            else:
                self.phase = phases.AWAITING_COPY if self._copier_is_busy() else phases.COPYING
        if self.phase is phases.AWAITING_COPY:
            self._await_copier()
        if self.phase is phases.COPYING:
            self._copy()

    def _is_complete(self) -> bool:
        """Return whether nothing is to be copied: the marker is the last entry of a copy."""
        return self._copier is None or self.store.marker() is not None

    def _copier_is_busy(self) -> bool:
        assert self._copier is not None
        return self._copier.partition not in (None, self.store.partition)

    def _await_copier(self) -> None:
        assert self._copier is not None
        if self._copier.partition == self.store.partition:
            self.phase = RestorePhase.COPYING
        elif self._copier.partition is None:
            self._enter(RestorePhase.FINDING_LEFTOVERS)

    def _copy(self) -> None:
        assert self._copier is not None
        # If the copier raises, the copy was interrupted as well.
        self.phase = RestorePhase.AWAITING_COPY
        if self._copier.advance(self.store.partition, partial(self.store.items, COUNTERS)):
            self._enter(RestorePhase.FINDING_COPY)
        elif self._copier.partition == self.store.partition:
            self.phase = RestorePhase.COPYING

    def _enter(self, phase: RestorePhase) -> None:
        """Enter a phase in which the ends of the changelogs are not known."""
        self.phase, self._ends = phase, {}
