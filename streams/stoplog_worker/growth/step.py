"""One step of growing in a system that runs: its state in the record, the pause, and its end.

::

    done ──> growing ──> draining ──> done, with the new number
      ^         │            │
      └─────────┴────────────┴──────> done, with the old number

A step becomes draining once all gateways have paused and all workers have decided what is in the log. The
partitions are copied once all workers have paused as well.
:class:`stoplog.wire.partition_count.GrowthStep` tells what gateways and workers do in each state.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import msgspec

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.wire.partition_count import CountRecord, GrowthStep, PartitionCount
from stoplog_worker.growth.members import Member, Members, refuse_old
from stoplog_worker.growth.owned_record import OwnedRecord

GATEWAYS_S: Final = 30.0
"""Seconds until every gateway has paused. It waits for ``deadline_ms``, and until its records are stored."""

WORKERS_S: Final = 60.0
"""Seconds until every worker has decided what is in the log, and then until each has written its checkpoints
and become a new process."""

ANSWERS_S: Final = 60.0
"""Seconds to wait at the end until all checks are answered again."""


class Outcome(Enum):
    """What a command has changed."""

    UNCHANGED = auto()
    """Nothing."""
    WAITING = auto()
    """Gateways and workers wait."""
    GIVEN_UP = auto()
    """The old number is in force, and the system continues."""
    IN_FORCE = auto()
    """The new number is in force."""
    UNKNOWN = auto()
    """The record cannot be read after an attempt to put the new number in force."""


class Step:
    """One step.

    Args:
        record: The record of the number of partitions, with the number before and the step before.
        members: The nodes that are alive.
        after: The number afterwards.
    """

    def __init__(self, record: OwnedRecord, members: Members, after: PartitionCount) -> None:
        self._record = record
        self._members = members
        self._before = record.last.count
        self._after = after
        self._lanes: set[str] = set()
        """The lanes that had workers at the beginning."""
        self.epoch = record.last.step.epoch + 1

    @property
    def outcome(self) -> Outcome:
        """What this command has changed until now."""
        record = self._record
        if not record.wrote:
            return Outcome.UNCHANGED
        if record.unknown is not None and record.unknown.count != self._before:
            return Outcome.UNKNOWN
        if record.last.count != self._before:
            return Outcome.IN_FORCE
        return Outcome.WAITING if record.last.step.under_way or record.unknown else Outcome.GIVEN_UP

    @property
    def consequence(self) -> str:
        """What the outcome means for the operator, for an error."""
        before, after = self._before.partitions, self._after.partitions
        return {
            Outcome.UNCHANGED: "nothing has changed",
            Outcome.WAITING: (
                "gateways and workers still wait: run the command again, or run `stoplog topics grow --abort`"
            ),
            Outcome.GIVEN_UP: (
                f"clients are still hashed over {before} partitions, and the system continues. The command "
                f"can be run again"
            ),
            Outcome.IN_FORCE: (
                f"clients are now hashed over {after} partitions: run the same command again, to tidy up"
            ),
            Outcome.UNKNOWN: (
                f"it is unknown whether {before} or {after} partitions are in force. Once Kafka can be "
                f"reached, run the same command again: it does what is left to do"
            ),
        }[self.outcome]

    def begin(self) -> None:
        """Have all members pause, once everything in the log is decided.

        Raises:
            Superseded: Another command has changed the record.
            TopicError: A member does not know the steps, or does not confirm in time.
            Unavailable: The broker does not answer.
        """
        members, epoch = self._members, self.epoch
        refuse_old(members.poll())
        self._lanes = members.lanes()
        self._record.replace(self._before, GrowthStep(epoch, self._after.partitions))
        members.wait(
            "waiting for the gateways to pause", lambda one: one.works or self._paused(one), GATEWAYS_S
        )
        since = members.next_offset

        def drained(one: Member) -> bool:
            growth = one.growth
            return not one.works or (one.offset >= since and growth.epoch == epoch and growth.drained)

        members.wait("waiting for the workers to decide what is in the log", drained, WORKERS_S)
        self._record.replace(self._before, GrowthStep(epoch, self._after.partitions, draining=True))
        members.wait("waiting for the workers to pause", self._paused, WORKERS_S)

    def _paused(self, one: Member) -> bool:
        return one.growth.epoch == self.epoch and one.growth.paused

    def look_again(self) -> None:
        """Make sure that every member that is alive has paused, and that this command still owns the step.

        Raises:
            Superseded: Another command has changed the record.
            TopicError: A member that is alive has not paused.
            Unavailable: The broker does not answer.
        """
        refuse_old(self._members.poll())
        self._members.wait("looking once more whether all have paused", self._paused, WORKERS_S)
        self._record.check()

    def finish(self, copied: tuple[int, ...]) -> None:
        """Put the new number in force.

        Args:
            copied: The ends of the old partitions of ``limit-updates``, up to which updates were copied.

        Raises:
            Superseded: Another command has changed the record.
            Unavailable: The broker does not answer. The new number may be in force.
        """
        self._record.replace(msgspec.structs.replace(self._after, copied=copied), GrowthStep(self.epoch))

    def wait_for_answers(self) -> bool:
        """Wait until all checks are answered again; return whether they are."""
        return self._members.wait_for_answers(self.epoch, self._after.partitions, self._lanes, ANSWERS_S)

    def give_up(self) -> None:
        """Have the system continue with the old number, if it waits because of this command.

        Raises:
            PermissionError: This program may not write to ``limit-updates``.
            Superseded: Another command has changed the record.
            Unavailable: The broker does not answer.
        """
        if self._record.unknown is not None:
            self._record.check()
        if self._record.wrote and self._record.last.count == self._before:
            self._record.replace(self._before, GrowthStep(self.epoch))


def abort(connection: KafkaConnection) -> CountRecord | None:
    """Have the system continue with the old number, if a step is under way; return what was aborted.

    Raises:
        Superseded: Another command has changed the record meanwhile.
        TopicError: The record cannot be decoded.
        Unavailable: The broker does not answer.
    """
    reader = PartitionCountReader(connection)
    record = reader.read_record()
    if record is None or not record.step.under_way:
        return None
    OwnedRecord(connection, reader, record).replace(record.count, GrowthStep(record.step.epoch))
    return record
