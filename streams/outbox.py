"""What the owner thread sends: replies and dead letters at once, changelogs and relayed updates for sure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaException

from streams import kafka
from streams.contract.topics import CHECKS, DEAD_LETTERS, REPLIES
from streams.metrics import Metrics

_log = logging.getLogger("sluice.outbox")

Delivered = Callable[[Any, Any], None]
"""Called from :meth:`Outbox.poll` with an error and ``None``, or ``None`` and a message with its offset."""

_MAX_REASON: Final = 2_000
"""Characters of a dead letter's reason: it may quote the record."""


class Outbox:
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
        self._quick = kafka.reply_producer(bootstrap, send_timeout_ms)

    def poll(self, timeout_s: float = 0) -> None:
        """Call back for what has been delivered; waits up to *timeout_s* for a changelog write."""
        self._quick.poll(0)
        self._sure.poll(timeout_s)

    def close(self) -> None:
        """Give replies that are under way a second."""
        self._quick.flush(1.0)

    def reply(self, partition: int, value: bytes) -> None:
        """Answer to *partition* of ``replies``, which the asker named: it may not exist."""
        try:
            self._quick.produce(REPLIES, value, partition=partition)
        except (BufferError, KafkaException, OverflowError) as exc:
            _log.warning("a reply to partition %s was not sent (%s); the checks were counted", partition, exc)

    def dead_letter(self, message: Any, reason: str) -> None:
        """Set *message* aside, with where it came from and the reason in its headers."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        self._metrics.dead_letters.labels(topic).inc()
        _log.warning("%s[%s]@%s goes to %s: %.500s", topic, partition, offset, DEAD_LETTERS, reason)
        headers = {
            "reason": reason[:_MAX_REASON].encode(errors="replace"),
            "topic": topic.encode(),
            "partition": str(partition).encode(),
            "offset": str(offset).encode(),
        }
        try:
            self._quick.produce(DEAD_LETTERS, message.value(), message.key(), headers=headers)
        except (BufferError, KafkaException) as exc:
            _log.error("a dead letter was not sent: %s; the record is still at its place", exc)

    def changelog(self, partition: int, table: str, key: bytes, value: bytes, delivered: Delivered) -> None:
        """Write to *partition* of a table's changelog."""
        self._surely(self.changelogs[table], partition, key, value, delivered)

    def update(self, partition: int, value: bytes, delivered: Delivered) -> None:
        """Relay a limit update into *partition* of ``checks``."""
        self._surely(CHECKS, partition, None, value, delivered)

    def _surely(
        self, topic: str, partition: int, key: bytes | None, value: bytes, delivered: Delivered
    ) -> None:
        while True:
            try:
                self._sure.produce(topic, value, key, partition=partition, on_delivery=delivered)
                return
            except BufferError:
                # The queue is full; what is in it is sent or given up within the send timeout.
                self._sure.poll(0.01)
