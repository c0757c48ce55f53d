"""Read and write the number of partitions in force, and explain how topics differ from it.

Clients are hashed over the number of partitions with which the log began. Kafka's own tools can add
partitions to a topic later, and topics.yaml can be edited. Neither changes where a client's checks are, so
every program reads the number from its record (:mod:`stoplog.wire.partition_count`) and continues with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from stoplog.errors import TopicError, Unavailable, UndecodableRecord
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_reader import PartitionReader
from stoplog.topics import UPDATES
from stoplog.wire.partition_count import (
    KEY,
    NO_STEP,
    PARTITION,
    CountRecord,
    GrowthStep,
    PartitionCount,
    decode_partition_count,
    encode_partition_count,
)

_WRITE_TIMEOUT_S: Final = 60.0
"""Seconds after which a write fails.

In a topic that was just created, the broker confirms a record when enough replicas have begun to copy it.
Three brokers that create a thousand replicas together take some ten seconds for that.
"""

_MAX_RECORDS: Final = 1_000
"""Records taken at once. Only their keys are compared, so a million records take a few seconds."""

_MISSING: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class PartitionCountReader:
    """Reads the record. A repeated read continues where the last one ended.

    Args:
        connection: How to reach Kafka.

    Attributes:
        next_offset: Where the next read begins.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self.next_offset = 0
        self._value: bytes | None = None

    def read(self) -> PartitionCount | None:
        """Return the number of partitions in force; otherwise as :meth:`read_record`."""
        record = self.read_record()
        return None if record is None else record.count

    def read_record(self) -> CountRecord | None:
        """Return the number of partitions and the step; ``None`` if there is no record or no topic. Blocks.

        Raises:
            TopicError: The record cannot be decoded.
            Unavailable: The broker did not answer.
        """
        with PartitionReader(self._connection, most=_MAX_RECORDS) as reader:
            if (error := self._attempt(reader)) is not None:
                raise Unavailable(f"{UPDATES} cannot be read: {self._connection.explain(error)}")
        return None if self._value is None else decode_record(self._value)

    def _attempt(self, reader: PartitionReader) -> KafkaError | None:
        """Read to the end of the partition, which may have no topic; return why that failed."""
        try:
            self._read(reader)
        except KafkaException as exc:
            error: KafkaError = exc.args[0]
            return None if error.code() in _MISSING else error
        return None

    def _read(self, reader: PartitionReader) -> None:
        reader.fetch_metadata([UPDATES])
        low, high = reader.offset_range(UPDATES, PARTITION)
        if self.next_offset > high:  # the topic was created again
            self.next_offset, self._value = 0, None
        start = max(low, self.next_offset)
        if start >= high:
            return
        for message in reader.read(UPDATES, PARTITION, start):
            if message.key() == KEY:
                self._value = message.value()
        self.next_offset = high


def decode_record(value: bytes) -> CountRecord:
    """Return the content of the record.

    Raises:
        TopicError: It cannot be decoded; names the remedy.
    """
    try:
        return decode_partition_count(value)
    except UndecodableRecord as exc:
        raise TopicError(
            f"the number of partitions in {UPDATES}[{PARTITION}] cannot be read ({exc.reason}): upgrade "
            f"Stoplog, or write a record with the key {KEY.decode()} and the number of partitions with "
            f"which the topics were created"
        ) from exc


def write_partition_count(
    connection: KafkaConnection, count: PartitionCount, step: GrowthStep = NO_STEP
) -> None:
    """Write the record, and wait until all replicas in sync have it. Blocks.

    Args:
        connection: How to reach Kafka.
        count: The number of partitions in force.
        step: The step of growing.

    Raises:
        PermissionError: This program may not write to ``limit-updates``.
        Unavailable: The broker did not answer.
    """
    producer = clients.single_record_producer(connection, round(_WRITE_TIMEOUT_S * 1_000))
    errors: list[Any] = []
    producer.produce(
        UPDATES,
        encode_partition_count(count, step),
        KEY,
        PARTITION,
        on_delivery=lambda error, _: errors.append(error),
    )
    producer.flush()  # ends with the timeout of the record at the latest
    error = errors[0]
    if error is not None:
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise PermissionError(error.str())
        raise Unavailable(
            f"the number of partitions was not written to {UPDATES} within {_WRITE_TIMEOUT_S:g} s "
            f"({connection.explain(error)}): check that the brokers run and that enough replicas of "
            f"{UPDATES}[{PARTITION}] are in sync, then try again"
        )


def explain_difference(count: PartitionCount, found: Mapping[str, int], in_file: int) -> str | None:
    """Return what differs from the number of partitions in force, and what to do; ``None`` if nothing does.

    Args:
        count: The number in force.
        found: The number of partitions of each copartitioned topic, as the broker reports it.
        in_file: The number in topics.yaml.

    >>> explain_difference(PartitionCount(4), {"checks": 8, "limit-updates": 4}, 4)
    'clients are hashed over the 4 partitions with which the log began, although checks has 8: partitions \
above 3 are not used. Have other producers of checks hash over 4 partitions, or run `stoplog topics grow 8`'
    """
    partitions = count.partitions
    if in_file == count.first:  # topics.yaml was not edited when the number grew
        in_file = partitions
    larger = [f"{name} has {count}" for name, count in found.items() if count > partitions]
    if not larger and in_file == partitions:
        return None
    began = "with which the log began" if count.first == partitions else "to which the log has grown"
    facts = larger + ([f"topics.yaml requires {in_file}"] if in_file != partitions else [])
    text = f"clients are hashed over the {partitions} partitions {began}, although {' and '.join(facts)}"
    if larger:
        text += (
            f": partitions above {partitions - 1} are not used. Have other producers of checks hash over "
            f"{partitions} partitions"
        )
        most = max(found.values())
        if most % partitions == 0:
            text += f", or run `stoplog topics grow {most}`"
    if in_file != partitions:
        text += f". Set partitions: {partitions} for these topics in topics.yaml"
    return text
