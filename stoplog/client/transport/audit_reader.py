"""Read ``audit``, the newest records first, without delaying checks."""

from __future__ import annotations

from collections.abc import Generator
from time import sleep
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from stoplog.client.transport.update_reader import FETCH_WAIT_MS, MAX_RECORDS, REST_S, TIMEOUT_S
from stoplog.errors import Unavailable
from stoplog.kafka import clients
from stoplog.kafka.batch_skipper import BatchSkipper, drain, is_unreadable
from stoplog.kafka.connection import KafkaConnection
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
    consumer = clients.sdk_consumer(connection, report_end=True, fetch_wait_ms=FETCH_WAIT_MS)
    try:
        clients.fetch_metadata(consumer, [AUDIT])
        low, high = consumer.get_watermark_offsets(TopicPartition(AUDIT, partition), TIMEOUT_S)
        end = high if before is None else min(before, high)
        while end > low:
            start = max(low, end - CHUNK)
            yield from reversed(_read(consumer, partition, start, end))
            end = start
    except KafkaException as exc:
        if exc.args[0].code() in _MISSING:
            raise Unavailable(
                f"topic {AUDIT} lacks partition {partition}, so no change was recorded: run `stoplog topics "
                f"create` and start the workers again"
            ) from exc
        raise Unavailable(f"{AUDIT} cannot be read: {connection.explain(exc.args[0])}") from exc
    finally:
        consumer.close()


def _read(consumer: Consumer, partition: int, start: int, end: int) -> list[RawAudit]:
    """Return the records from offset *start* to before *end*."""
    consumer.assign([TopicPartition(AUDIT, partition, start)])
    skipper = BatchSkipper(consumer)
    found: list[RawAudit] = []
    while messages := drain(consumer, MAX_RECORDS, TIMEOUT_S):
        for message in skipper.keep(messages):
            error, offset = message.error(), message.offset()
            if error is None and offset < end:
                found.append(RawAudit(offset, message.key(), message.value()))
            if error is not None and not is_unreadable(message):
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                return found
            if offset >= end - 1 and error is None:
                return found
        sleep(REST_S)
    raise Unavailable(f"the broker returned no record of {AUDIT} for {TIMEOUT_S:g} s")
