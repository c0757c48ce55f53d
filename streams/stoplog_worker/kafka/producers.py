"""What the owner thread sends: replies at once; changelogs, relayed updates and dead letters for sure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.errors import TopicError
from stoplog.kafka import clients as kafka
from stoplog.log_throttle import LogThrottle
from stoplog.topics import CHECKS, DEAD_LETTERS, REPLIES
from stoplog_worker.metrics import Metrics
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG

_log = logging.getLogger("stoplog.outbox")

_NO_SUCH: Final = (KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)

Delivered = Callable[[Any, Any], None]
"""Called from :meth:`Producers.poll` with an error and ``None``, or ``None`` and a message with its offset."""

_MAX_REASON: Final = 2_000
"""Characters of a dead letter's reason: it may quote the record."""
_MAX_PART: Final = 256 * 1024
"""Bytes of a dead letter's key and value: what was unpacked may be larger than any record may be."""
_PAUSE_S: Final = 1.0
"""Seconds between two log lines of one kind: a flood of bad records must not flood the log."""


class Producers:
    """Both producers; used by the owner thread only.

    Args:
        bootstrap: Servers.
        send_timeout_ms: After which a record that could not be sent is given up.
        changelogs: The changelog topic of each table.
        metrics: Counts dead letters.
    """

    def __init__(
        self, bootstrap: str, send_timeout_ms: int, changelogs: dict[str, str], metrics: Metrics
    ) -> None:
        self.changelogs = changelogs
        self._metrics = metrics
        self._sure = kafka.changelog_producer(bootstrap, send_timeout_ms)
        self._quick = kafka.reply_producer(bootstrap, send_timeout_ms, self._failed)
        self._admin = kafka.worker_admin(bootstrap)
        self._throttle = LogThrottle(_PAUSE_S)

    def acquaint(self) -> None:
        """Have both know where they will send; blocks for a moment."""
        kafka.fetch_metadata(self._quick, [REPLIES])
        kafka.fetch_metadata(self._sure, [CHECKS, *self.changelogs.values()])

    def poll(self, timeout_s: float = 0) -> None:
        """Call back for what has been delivered; waits up to *timeout_s* for a changelog write."""
        self._quick.poll(0)
        self._sure.poll(timeout_s)

    def close(self) -> None:
        """Give replies that are under way a second."""
        self._quick.flush(1.0)

    def _failed(self, error: Any, message: Any) -> None:
        """A reply was given up: its gateway lets the checks through, and they are counted all the same."""
        self._metrics.reply_failures.inc()
        if (suppressed := self._throttle.admit("reply")) is not None:
            topic, partition = message.topic(), message.partition()
            _log.warning("a reply to %s[%s] was not sent: %s%s", topic, partition, error, suppressed)

    def reply(self, partition: int, value: bytes) -> None:
        """Answer to *partition* of ``replies``, which the asker named: it may not exist."""
        try:
            self._quick.produce(REPLIES, value, partition=partition)
        except (BufferError, KafkaException, OverflowError) as exc:
            self._metrics.reply_failures.inc()
            if (suppressed := self._throttle.admit("reply")) is not None:
                _log.warning("a reply to partition %s was not sent: %s%s", partition, exc, suppressed)

    def dead_letter(self, message: Any, reason: str) -> None:
        """Set *message* aside, with where it came from and the reason in its headers.

        Of a large one the beginning, and how large it was: the whole of it is still at its place.
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
                _log.error("the dead letter of %s[%s]@%s was lost: %s", topic, partition, offset, error)

        try:
            self._surely(DEAD_LETTERS, None, _cut(key), _cut(value), delivered, headers)
        except KafkaException as exc:  # the topic is gone, or is being made again
            delivered(exc.args[0], None)

    def changelog(self, partition: int, table: str, key: bytes, value: bytes, delivered: Delivered) -> None:
        """Write to *partition* of a table's changelog.

        Raises:
            TopicError: it is gone.
        """
        self._existing(self.changelogs[table], partition, key, value, delivered)

    def update(self, partition: int, value: bytes, delivered: Delivered) -> None:
        """UpdateRelay a limit update into *partition* of ``checks``.

        Raises:
            TopicError: it is gone.
        """
        self._existing(CHECKS, partition, None, value, delivered)

    def shorten(self, table: str, partition: int, offset: int) -> None:
        """Have *partition* of a table's changelog begin at *offset*, if it does not yet; waits for nobody."""
        place = TopicPartition(self.changelogs[table], partition, offset)

        def done(future: Future[Any]) -> None:
            error = future.exception()
            if error is not None:
                _log.warning(
                    "%s[%s] still holds clients that are gone, before offset %s (%s): it will be tried "
                    "again; if it is always refused, allow the worker to delete records of that topic",
                    place.topic,
                    partition,
                    offset,
                    error,
                )

        for future in self._admin.delete_records([place]).values():
            future.add_done_callback(done)

    def _existing(
        self, topic: str, partition: int, key: bytes | None, value: bytes, delivered: Delivered
    ) -> None:
        try:
            self._surely(topic, partition, key, value, delivered)
        except KafkaException as exc:
            if exc.args[0].code() not in _NO_SUCH:
                raise
            raise TopicError(
                f"nothing can be written to topic {topic} any more ({exc.args[0].str()}): it was deleted. "
                f"If that was meant: {REBUILD_FROM_LOG}"
            ) from exc

    def _surely(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        delivered: Delivered,
        headers: dict[str, str | bytes | None] | None = None,
    ) -> None:
        # -1: wherever librdkafka's partitioner puts it.
        where = -1 if partition is None else partition
        # Headers, be it an empty dict, double what producing a record costs.
        produce = partial(self._sure.produce, headers=headers) if headers else self._sure.produce
        while True:
            try:
                produce(topic, value, key, where, delivered)
                return
            except BufferError:
                # The queue is full; what is in it is sent or given up within the send timeout.
                self._sure.poll(0.01)


def _cut(part: bytes | None) -> bytes | None:
    return part if part is None or len(part) <= _MAX_PART else part[:_MAX_PART]
