"""Read stored limits from ``limit-updates``, without delaying checks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from time import sleep
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from stoplog.errors import Unavailable, UndecodableRecord
from stoplog.kafka import clients
from stoplog.kafka.batch_skipper import BatchSkipper, drain, is_unreadable
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import UPDATES
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import Update, decode_update

MAX_RECORDS: Final = 100
"""Records taken at once. Decoding them keeps the interpreter from the event loop for less than 1 ms."""

REST_S: Final = 0.001
"""Seconds of rest between two reads, in which the event loop runs. Without a rest it would wait for the
interpreter's switch interval of 5 ms each time."""

FETCH_WAIT_MS: Final = 10
"""Milliseconds that the broker may wait for more records."""

TIMEOUT_S: Final = 10.0
"""Seconds without a record after which a read fails."""


def read_updates(
    connection: KafkaConnection, partition: int, start: int | None
) -> Generator[Update, None, None]:
    """Yield the updates of one partition of ``limit-updates``. Blocks: use it in a thread of its own.

    Records that cannot be decoded are skipped.

    Args:
        connection: How to reach Kafka.
        partition: The partition.
        start: Offset of the first record; ``None`` for the beginning. The read stops at the present end.

    Raises:
        Unavailable: The broker did not answer.
    """
    consumer = clients.sdk_consumer(connection, report_end=True, fetch_wait_ms=FETCH_WAIT_MS)
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(UPDATES, partition), TIMEOUT_S)
        # A plain offset: librdkafka looks up a logical one (beginning) only after half a second.
        start = low if start is None else max(low, start)
        if start >= high:
            return
        consumer.assign([TopicPartition(UPDATES, partition, start)])
        skipper = BatchSkipper(consumer)
        while messages := drain(consumer, MAX_RECORDS, TIMEOUT_S):
            for message in skipper.keep(messages):
                error = message.error()
                if error is None:
                    with suppress(UndecodableRecord):
                        yield _update_of(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif not is_unreadable(message):
                    raise Unavailable(f"{UPDATES} cannot be read: {error.str()}")
            sleep(REST_S)
        raise Unavailable(f"{connection.bootstrap} returned no record of {UPDATES} for {TIMEOUT_S:g} s")
    except KafkaException as exc:
        raise Unavailable(f"{UPDATES} cannot be read: {exc.args[0].str()}") from exc
    finally:
        consumer.close()


def _update_of(message: Message) -> Update:
    offset = message.offset()
    assert offset is not None  # a consumed record has one
    return decode_update(offset, message.key(), message.value(), headers_of(message))
