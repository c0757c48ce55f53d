"""Send what the consumer thread has to send: replies at once, everything else with certainty.

==================  =================================================  =====================================
producer            records                                            guarantee
==================  =================================================  =====================================
reply producer      replies                                            sent at once, never repeated
changelog producer  changelogs, updates, audit, dead letters           in order, once, on all replicas
==================  =================================================  =====================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.errors import TopicError
from stoplog.kafka import clients as kafka
from stoplog.kafka.connection import KafkaConnection
from stoplog.log_throttle import LogThrottle
from stoplog.topics import AUDIT, CHECKS, DEAD_LETTERS, REPLIES, UPDATES
from stoplog_worker.metrics import Metrics
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG

_log = logging.getLogger("stoplog.producers")

_MISSING_TOPIC: Final = (KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)

Delivered = Callable[[Any, Any], None]
"""Called from :meth:`Producers.poll` with an error and ``None``, or with ``None`` and a message."""

_MAX_REASON: Final = 2_000
"""Characters of a dead letter's reason, which may quote the record."""
_MAX_PART: Final = 256 * 1024
"""Bytes of a dead letter's key and of its value. A decompressed record may be too large to be sent again."""
_PAUSE_S: Final = 1.0
"""Seconds between two log lines of one kind: a flood of bad records must not flood the log."""
_FULL_QUEUE_WAIT_S: Final = 0.01
"""Seconds to wait for room in the producer's queue. Records leave it within the send timeout."""
_CLOSE_S: Final = 1.0
"""Seconds to wait for replies in flight when the worker stops."""


class Producers:
    """Both producers. Only the consumer thread uses them.

    Args:
        connection: How to reach Kafka.
        send_timeout_ms: Milliseconds after which an unsent record is given up.
        changelogs: The changelog topic of each table.
        metrics: Counts lost replies and dead letters.
    """

    def __init__(
        self, connection: KafkaConnection, send_timeout_ms: int, changelogs: dict[str, str], metrics: Metrics
    ) -> None:
        self.changelogs = changelogs
        self._metrics = metrics
        self._changelog_producer = kafka.changelog_producer(connection, send_timeout_ms)
        self._reply_producer = kafka.reply_producer(connection, send_timeout_ms, self._reply_failed)
        self._admin = kafka.silent_admin(connection)
        self._throttle = LogThrottle(_PAUSE_S)

    def fetch_metadata(self) -> None:
        """Look up all topics before the first record is sent. Blocks up to a second a topic."""
        kafka.fetch_metadata(self._reply_producer, [REPLIES])
        kafka.fetch_metadata(self._changelog_producer, [CHECKS, *self.changelogs.values()])

    def poll(self) -> None:
        """Run the callbacks of records that were delivered or given up."""
        self._reply_producer.poll(0)
        self._changelog_producer.poll(0)

    def close(self) -> None:
        """Wait for replies in flight, for a second at most."""
        self._reply_producer.flush(_CLOSE_S)

    def _reply_failed(self, error: Any, message: Any) -> None:
        """Count a lost reply: its gateway fails open, and the checks are charged all the same."""
        self._metrics.reply_failures.inc()
        if (suppressed := self._throttle.admit("reply")) is not None:
            topic, partition = message.topic(), message.partition()
            _log.warning("a reply to %s[%s] was not sent: %s%s", topic, partition, error.str(), suppressed)

    def reply(self, partition: int, value: bytes) -> None:
        """Send a reply to *partition* of ``replies``. The API caller named it, so it may not exist."""
        try:
            self._reply_producer.produce(REPLIES, value, partition=partition)
        except (BufferError, KafkaException, OverflowError) as exc:
            self._metrics.reply_failures.inc()
            if (suppressed := self._throttle.admit("reply")) is not None:
                _log.warning("a reply to partition %s was not sent: %s%s", partition, exc, suppressed)

    def dead_letter(self, message: Any, reason: str) -> None:
        """Copy *message* to the dead letters; the headers hold its topic, partition, offset and the reason.

        A large key or value is cut, and a header then holds its size. The original stays in its topic.
        """
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        self._metrics.dead_letters.labels(topic).inc()
        if (suppressed := self._throttle.admit("dead letter")) is not None:
            place = f"{topic}[{partition}]@{offset}"
            _log.warning("%s goes to %s: %.500s%s", place, DEAD_LETTERS, reason, suppressed)
        headers: dict[str, str | bytes | None] = {
            "reason": reason[:_MAX_REASON].encode(errors="replace"),
            "topic": topic.encode(),
            "partition": str(partition).encode(),
            "offset": str(offset).encode(),
        }
        key, value = message.key(), message.value()
        for name, part in (("key", key), ("value", value)):
            if part is not None and len(part) > _MAX_PART:
                headers[f"{name}-bytes"] = str(len(part)).encode()

        def delivered(error: Any, _message: Any) -> None:
            if error is not None:
                _log.error("the dead letter of %s[%s]@%s was lost: %s", topic, partition, offset, error.str())

        try:
            self._produce(DEAD_LETTERS, None, _cut(key), _cut(value), delivered, headers)
        except KafkaException as exc:  # the topic is missing, or is being created again
            delivered(exc.args[0], None)

    def write_changelog(
        self, partition: int, table: str, key: bytes, value: bytes, delivered: Delivered
    ) -> None:
        """Write a record to *partition* of a table's changelog.

        Raises:
            TopicError: the topic was deleted.
        """
        self._produce_to_existing(self.changelogs[table], partition, key, value, delivered)

    def relay_update(
        self, partition: int, value: bytes, headers: list[tuple[str, bytes]], delivered: Delivered
    ) -> None:
        """Write a limit update, with *headers* that name its source, to *partition* of ``checks``.

        Raises:
            TopicError: the topic was deleted.
        """
        self._produce_to_existing(CHECKS, partition, None, value, delivered, dict(headers))

    def write_audit(self, partition: int, key: bytes, value: bytes, delivered: Delivered) -> None:
        """Write a record to *partition* of ``audit``."""
        try:
            self._produce(AUDIT, partition, key, value, delivered)
        except KafkaException as exc:  # the topic was deleted
            delivered(exc.args[0], None)

    def publish_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        delivered: Delivered,
    ) -> None:
        """Write a record to *partition* of ``limit-updates``.

        Raises:
            TopicError: the topic was deleted.
        """
        self._produce_to_existing(UPDATES, partition, key, value, delivered, dict(headers))

    def truncate_changelog(self, table: str, partition: int, offset: int) -> None:
        """Have the broker delete the records before *offset* in a changelog partition. Does not block."""
        place = TopicPartition(self.changelogs[table], partition, offset)

        def done(future: Future[Any]) -> None:
            error = future.exception()
            if error is not None:
                _log.warning(
                    "the broker did not delete expired records of %s[%s] before offset %s (%s). The worker "
                    "will try again. If every attempt fails, allow it to delete records of that topic",
                    place.topic,
                    partition,
                    offset,
                    error,
                )

        for future in self._admin.delete_records([place]).values():
            future.add_done_callback(done)

    def _produce_to_existing(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        delivered: Delivered,
        headers: dict[str, str | bytes | None] | None = None,
    ) -> None:
        try:
            self._produce(topic, partition, key, value, delivered, headers)
        except KafkaException as exc:
            if exc.args[0].code() not in _MISSING_TOPIC:
                raise
            raise TopicError(
                f"cannot write to topic {topic} ({exc.args[0].str()}): it was deleted. "
                f"If that was intended: {REBUILD_FROM_LOG}"
            ) from exc

    def _produce(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        delivered: Delivered,
        headers: dict[str, str | bytes | None] | None = None,
    ) -> None:
        # -1: librdkafka's partitioner chooses.
        where = -1 if partition is None else partition
        # Headers, even an empty dict, double the cost of producing a record.
        producer = self._changelog_producer
        produce = partial(producer.produce, headers=headers) if headers else producer.produce
        while True:
            try:
                produce(topic, value, key, where, delivered)
                return
            except BufferError:
                producer.poll(_FULL_QUEUE_WAIT_S)


def _cut(part: bytes | None) -> bytes | None:
    return part if part is None or len(part) <= _MAX_PART else part[:_MAX_PART]
