"""The record of the number of partitions, as long as one command owns it.

Kafka has no compare-and-set. Each write is therefore preceded and followed by a read, and the record names
the command that wrote it (``GrowthStep.token``). Two commands that write within the time of one such exchange
both find at their next read which of them the record names.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from stoplog.errors import TopicError, Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader, write_partition_count
from stoplog.wire.partition_count import CountRecord, GrowthStep, PartitionCount

_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Superseded(TopicError):
    """Another command has changed the record meanwhile."""

    def __init__(self) -> None:
        super().__init__(
            "another `stoplog topics grow` has begun, ended or aborted an attempt meanwhile, so this one "
            "stops and leaves everything as it is. See `stoplog status`, and run one such command at a time"
        )


class OwnedRecord:
    """The record, and the writes of one command.

    Args:
        connection: How to reach Kafka.
        reader: Reads the record.
        last: The record as *reader* has read it.

    Attributes:
        last: What the record is, as far as this command knows.
        unknown: The record whose write may or may not have succeeded; ``None`` if there is none.
        wrote: Whether this command has tried to change the record.
        token: Names this command in the records that it writes.
    """

    def __init__(self, connection: KafkaConnection, reader: PartitionCountReader, last: CountRecord) -> None:
        self._connection = connection
        self._reader = reader
        self.last = last
        self.unknown: CountRecord | None = None
        self.wrote = False
        self.token = secrets.token_hex(8)

    def check(self) -> None:
        """Compare the record with what this command knows.

        Raises:
            Superseded: It differs.
            Unavailable: The broker does not answer.
        """
        found = self._reader.read_record()
        if self.unknown is not None and found in (self.last, self.unknown):
            self.last, self.unknown = found, None
        elif found != self.last:
            raise Superseded

    def replace(self, count: PartitionCount, step: GrowthStep) -> None:
        """Write the record unless another command has changed it. Signals wait until the outcome is known.

        Args:
            count: The number in force from now on.
            step: The step, without a token.

        Raises:
            PermissionError: This program may not write to ``limit-updates``.
            Superseded: Another command has changed it, just before or just afterwards.
            Unavailable: The broker does not answer. ``unknown`` tells whether the record may have changed.
        """
        step = GrowthStep(step.epoch, step.to, step.draining, self.token)
        new, failure = CountRecord(count, step), None
        with _deferred_interrupts():
            self.check()
            self.unknown = new
            try:
                write_partition_count(self._connection, count, step)
            except PermissionError:
                self.unknown = None
                raise
            except Unavailable as exc:  # the record may be stored, and only the confirmation lost
                failure = exc
            self.wrote = True
            self.check()
            if self.last != new:
                raise failure or Superseded()


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Handle signals that would end the command after the block. A signal that is ignored stays so."""
    received: list[int] = []
    handlers = {
        number: handler
        for number in _INTERRUPTS
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
