"""Follow the record of the number of partitions, so that a step of growing is noticed at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

from confluent_kafka import TopicPartition

from stoplog.errors import StoplogError, TopicError, Unavailable
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import decode_record
from stoplog.topics import UPDATES
from stoplog.wire.partition_count import KEY, PARTITION, CountRecord

_POLL_S: Final = 0.5
"""Longest time until a stop is noticed."""

_RETRY_S: Final = 1.0

_FETCH_WAIT_MS: Final = 5_000
"""Milliseconds for which the broker waits for a record, so that waiting costs nearly nothing."""


def follow_partition_count(
    connection: KafkaConnection,
    start: int,
    stopping: threading.Event,
    on_record: Callable[[CountRecord], None],
    on_error: Callable[[StoplogError], None],
) -> None:
    """Report each new record until *stopping* is set. Blocks.

    Args:
        connection: How to reach Kafka.
        start: First offset of ``limit-updates[0]`` to read
            (:attr:`stoplog.kafka.partition_count.PartitionCountReader.next_offset`).
        stopping: Ends the call.
        on_record: Called with each record.
        on_error: Called with the reason if a record cannot be decoded.
    """
    while not stopping.is_set():
        try:
            consumer = clients.sdk_consumer(connection, fetch_wait_ms=_FETCH_WAIT_MS)
        except Unavailable:  # no token for OAUTHBEARER
            stopping.wait(_RETRY_S)
            continue
        with closing(consumer):
            consumer.assign([TopicPartition(UPDATES, PARTITION, start)])
            while not stopping.is_set():
                message = consumer.poll(_POLL_S)
                if message is None or message.error() is not None:  # the client tries again
                    continue
                value = message.value()
                if message.key() != KEY or value is None:
                    continue
                try:
                    record = decode_record(value)
                except TopicError as exc:
                    on_error(exc)
                else:
                    on_record(record)
