"""Read ``audit``, the newest records first, without delaying checks."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from stoplog.client.transport.update_reader import MAX_RECORDS, REST_S
from stoplog.errors import Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_reader import PartitionReader
from stoplog.topics import AUDIT

CHUNK: Final = 5_000
"""Records read forwards before they are handed out backwards: 2 MB of memory, and few requests."""

_MISSING: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class RawAudit(NamedTuple):
    """A record of ``audit`` that is not decoded."""

    offset: int
    key: bytes | None
    value: bytes | None


def read_audit(
    connection: KafkaConnection, partition: int, before: int | None
) -> Generator[RawAudit, None, None]:
    """Yield the records of one partition, the newest first. Blocks: use it in a thread of its own.

    Args:
        connection: How to reach Kafka.
        partition: The partition.
        before: Only records before this offset; ``None`` for all up to the present end.

    Raises:
        Unavailable: The broker did not answer, or the topic does not exist.
    """
    with PartitionReader(connection, most=MAX_RECORDS, rest_s=REST_S) as reader:
        try:
            reader.fetch_metadata([AUDIT])
            low, high = reader.offset_range(AUDIT, partition)
            end = high if before is None else min(before, high)
            while end > low:
                start = max(low, end - CHUNK)
                chunk = [
                    RawAudit(message.offset(), message.key(), message.value())
                    for message in reader.read(AUDIT, partition, start, end)
                ]
                yield from reversed(chunk)
                end = start
        except KafkaException as exc:
            if exc.args[0].code() in _MISSING:
                raise Unavailable(
                    f"topic {AUDIT} lacks partition {partition}, so no change was recorded: run `stoplog "
                    f"topics create` and start the workers again"
                ) from exc
            raise Unavailable(f"{AUDIT} cannot be read: {connection.explain(exc.args[0])}") from exc
