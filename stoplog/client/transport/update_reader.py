"""Read stored limits from ``limit-updates``, without delaying checks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import Final

from confluent_kafka import KafkaException, Message

from stoplog.errors import Unavailable, UndecodableRecord
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_reader import PartitionReader
from stoplog.topics import UPDATES
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import Update, decode_update

MAX_RECORDS: Final = 100
"""Records taken at once. Decoding them keeps the interpreter from the event loop for less than 1 ms."""

REST_S: Final = 0.001
"""Seconds of rest between two reads, in which the event loop runs. Without a rest it would wait for the
interpreter's switch interval of 5 ms each time."""


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
    with PartitionReader(connection, most=MAX_RECORDS, rest_s=REST_S) as reader:
        try:
            low, high = reader.offset_range(UPDATES, partition)
            start = low if start is None else max(low, start)
            if start >= high:
                return
            for message in reader.read(UPDATES, partition, start):
                with suppress(UndecodableRecord):
                    yield _update_of(message)
        except KafkaException as exc:
            raise Unavailable(f"{UPDATES} cannot be read: {exc.args[0].str()}") from exc


def _update_of(message: Message) -> Update:
    offset = message.offset()
    assert offset is not None  # a consumed record has one
    return decode_update(offset, message.key(), message.value(), headers_of(message))
