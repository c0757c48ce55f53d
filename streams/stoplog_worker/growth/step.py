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

from typing import Final

import msgspec

from stoplog.errors import TopicError
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader, write_partition_count
from stoplog.wire.partition_count import CountRecord, GrowthStep, PartitionCount
from stoplog_worker.growth.members import Member, Members, refuse_old

GATEWAYS_S: Final = 30.0
"""Seconds until every gateway has paused. It waits for ``deadline_ms``, and until its records are stored."""

WORKERS_S: Final = 60.0
"""Seconds until every worker has decided what is in the log, and then until each has written its checkpoints
and become a new process."""

ANSWERS_S: Final = 60.0
"""Seconds to wait at the end until all checks are answered again."""


class Superseded(TopicError):
    """Another command has changed the record meanwhile."""


class Step:
    """One step.

    Args:
        connection: How to reach Kafka.
        members: The nodes that are alive.
        before: The number of partitions before, and the step before.
        after: The number afterwards.
    """

    def __init__(
        self, connection: KafkaConnection, members: Members, before: CountRecord, after: PartitionCount
    ) -> None:
        self._connection = connection
        self._members = members
        self._before = before.count
        self._after = after
        self.epoch = before.step.epoch + 1

    def begin(self) -> None:
        """Have all members pause, once everything in the log is decided.

        Raises:
            TopicError: A member does not know the steps, or does not confirm in time.
            Unavailable: The broker does not answer.
        """
        members, epoch = self._members, self.epoch
        refuse_old(members.poll())
        self._write(self._before, GrowthStep(epoch, self._after.partitions))
        members.wait(
            "waiting for the gateways to pause", lambda one: one.works or self._paused(one), GATEWAYS_S
        )
        since = members.next_offset

        def drained(one: Member) -> bool:
            growth = one.growth
            return not one.works or (one.offset >= since and growth.epoch == epoch and growth.drained)

        members.wait("waiting for the workers to decide what is in the log", drained, WORKERS_S)
        self._write(self._before, GrowthStep(epoch, self._after.partitions, draining=True))
        members.wait("waiting for the workers to pause", self._paused, WORKERS_S)

    def _paused(self, one: Member) -> bool:
        return one.growth.epoch == self.epoch and one.growth.paused

    def finish(self, copied: tuple[int, ...]) -> None:
        """Put the new number in force.

        Args:
            copied: The ends of the old partitions of ``limit-updates``, up to which updates were copied.

        Raises:
            Superseded: Another command has taken over.
            TopicError: A member that is alive has not paused.
        """
        own = CountRecord(self._before, GrowthStep(self.epoch, self._after.partitions, draining=True))
        if PartitionCountReader(self._connection).read_record() != own:
            raise Superseded("another `stoplog topics grow` has begun or aborted a step meanwhile")
        refuse_old(self._members.poll())
        self._members.wait("looking once more whether all have paused", self._paused, WORKERS_S)
        self._write(msgspec.structs.replace(self._after, copied=copied), GrowthStep(self.epoch))

    def wait_for_answers(self) -> bool:
        """Wait until all checks are answered again; return whether they are."""
        return self._members.wait_for_answers(self.epoch, self._after.partitions, ANSWERS_S)

    def give_up(self) -> None:
        """Have the system continue with the old number.

        Raises:
            Unavailable: The broker does not answer.
        """
        self._write(self._before, GrowthStep(self.epoch))

    def _write(self, count: PartitionCount, step: GrowthStep) -> None:
        write_partition_count(self._connection, count, step)


def abort(connection: KafkaConnection) -> CountRecord | None:
    """Have the system continue with the old number, if a step is under way; return what was aborted.

    Raises:
        TopicError: The record cannot be decoded.
        Unavailable: The broker does not answer.
    """
    record = PartitionCountReader(connection).read_record()
    if record is None or not record.step.under_way:
        return None
    write_partition_count(connection, record.count, GrowthStep(record.step.epoch))
    return record
