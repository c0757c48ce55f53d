"""Publish records exactly once, and replace a producer that can no longer be used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, Final, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stoplog.errors import Unavailable
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.log_throttle import LogThrottle
from stoplog.topics import CHECKS

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 0.5
"""Seconds to wait for the metadata of ``checks``."""

WARM_UP_S: Final = 0.1
"""Seconds to wait for the producer's id, which takes about 10 ms once it is connected."""

REPLACE_S: Final = 1.0
"""Seconds between two replacements of producers that failed for good."""

SAME_TEXT_S: Final = 60.0
"""Seconds between two log lines about producers that failed for the same reason."""

PURGE_S: Final = 0.5
"""Seconds to wait for the reports of purged records, which come from other threads."""

DeliveryReport = Callable[[KafkaError | None, Message], None]
"""Called with the error, or ``None``, and the record."""


class ReplaceableProducer:
    """A producer that drops a record after the publish timeout, and never publishes one twice.

    The producer is replaced in two cases. It has failed for good (a fatal error). Or a record was not
    delivered within the publish timeout: librdkafka would drop that record itself (``message.timeout.ms``),
    but then send the others again under a new epoch. No broker can compare that epoch with the old one, so a
    batch that was stored before would be stored, and counted, twice.

    Args:
        connection: How to reach Kafka.
        publish_timeout_ms: Milliseconds until a record that was not delivered is dropped.
        stopping: Ends waits early.
    """

    def __init__(
        self, connection: KafkaConnection, publish_timeout_ms: int, stopping: threading.Event
    ) -> None:
        self._connection = connection
        self._publish_timeout_ms = publish_timeout_ms
        self._stopping = stopping
        self._broker_down: str | None = None
        self._fatal: str | None = None
        self._replaced_at = float("-inf")
        self._throttle = LogThrottle(SAME_TEXT_S)
        self._lock = threading.Lock()
        self._tokens = count()
        self._unreported: dict[int, float] = {}  # when each record was given to the producer, oldest first
        # A producer that needs a token waits for it. The caller is an event loop, which must not.
        self._producer = (
            cast(Producer, _NoProducer("the producer is not connected yet"))
            if connection.tokens is not None
            else self._new_producer_if_possible()
        )

    def send(
        self,
        topic: str,
        value: bytes | None,
        on_delivery: DeliveryReport | None = None,
        **options: Any,
    ) -> None:
        """Publish a record without blocking.

        Args:
            topic: The topic.
            value: The value; ``None`` for a tombstone.
            on_delivery: Called, in another thread, once the record is delivered or dropped.
            options: Further arguments of ``Producer.produce``.

        Raises:
            Unavailable: The record will not be published.
        """
        token = next(self._tokens)

        def report(error: KafkaError | None, message: Message) -> None:
            self._forget(token)
            if on_delivery is not None:
                on_delivery(error, message)

        try:
            with self._lock:
                self._unreported[token] = monotonic()
                self._producer.produce(topic, value, on_delivery=report, **options)
        except BufferError as exc:
            self._forget(token)
            raise Unavailable("the producer's queue is full: the broker takes records too slowly") from exc
        except KafkaException as exc:
            self._forget(token)
            raise Unavailable(f"the producer refused a record: {exc.args[0].str()}") from exc

    def _forget(self, token: int) -> None:
        with self._lock:  # a flush reports in a thread of its own, while another looks for the oldest record
            self._unreported.pop(token, None)

    def connect(self) -> None:
        """Connect, so that the first record need not wait. Blocks.

        Without an id, an idempotent producer takes half a second for its first record.

        Raises:
            KafkaException: The broker did not answer.
        """
        if isinstance(self._producer, _NoProducer):
            self._replace_failed()
        self._warm_up(self._producer)

    def _warm_up(self, producer: Producer) -> None:
        producer.list_topics(CHECKS, CONNECT_TIMEOUT_S)
        self._stopping.wait(WARM_UP_S)

    def poll(self) -> None:
        """Run the delivery reports that are due."""
        try:
            self._producer.poll(0)
        # The client raises a fatal error from here. If a report was due as well, Python adds a SystemError.
        except (KafkaException, SystemError) as exc:
            cause = exc.args[0] if isinstance(exc, KafkaException) else None
            self._fatal = self._connection.known_problem or (cause.str() if cause else repr(exc))

    def take_broker_down(self) -> str | None:
        """Return the error if no broker can be reached, once for each time that librdkafka reports it."""
        why, self._broker_down = self._broker_down, None
        return why

    def replace_if_needed(self) -> None:
        """Replace the producer if it has failed for good, or if a record is overdue. Blocks if it does."""
        if self._fatal is not None or isinstance(self._producer, _NoProducer):
            self._replace_failed()
        elif self._has_overdue_record():
            self._replace()

    def _replace_failed(self) -> None:
        """Replace a producer that is of no use, unless that was tried a moment ago: it may fail again."""
        if monotonic() - self._replaced_at < REPLACE_S:
            return
        if self._fatal is not None and (suppressed := self._throttle.admit(self._fatal)) is not None:
            log.error("the producer failed for good and is replaced: %s%s", self._fatal, suppressed)
        self._replace()

    def _has_overdue_record(self) -> bool:
        with self._lock:
            oldest = next(iter(self._unreported.values()), None)
        return oldest is not None and monotonic() - oldest > self._publish_timeout_ms / 1_000

    def _replace(self) -> None:
        """Replace the producer. Records of the old one are reported as undelivered and not sent again."""
        new = self._new_producer_if_possible()
        with suppress(KafkaException):
            self._warm_up(new)
        self._fatal, self._replaced_at = None, monotonic()
        with self._lock:  # a concurrent send() uses the old producer before its purge, or the new one
            old, self._producer = self._producer, new
            self._unreported.clear()
        _drop_records(old)

    def _new_producer_if_possible(self) -> Producer:
        try:
            return clients.check_producer(self._connection, self._publish_timeout_ms, self._on_error)
        except Unavailable as exc:  # no token for OAUTHBEARER
            self._broker_down = str(exc)
            return cast(Producer, _NoProducer(str(exc)))

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            why = self._connection.known_problem
            self._broker_down = f"the broker at {self._connection.bootstrap} cannot be reached" + (
                f": {why}" if why else ""
            )

    def flush(self) -> None:
        """Wait until every record is delivered, up to the publish timeout."""
        with suppress(KafkaException, SystemError):  # the producer has failed for good
            self._producer.flush(self._publish_timeout_ms / 1_000)

    def close(self) -> None:
        """Drop the records that were not delivered, and report them."""
        _drop_records(self._producer)


class _NoProducer:
    """Stands for a producer that cannot be created yet. It refuses every record.

    Args:
        reason: Why it cannot be created.
    """

    def __init__(self, reason: str) -> None:
        self._error = KafkaException(KafkaError(KafkaError._AUTHENTICATION, reason))

    def produce(self, *_: Any, **__: Any) -> None:
        raise self._error

    def list_topics(self, *_: Any) -> None:
        raise self._error

    def poll(self, _timeout_s: float) -> None:
        """Report nothing."""

    def flush(self, _timeout_s: float) -> None:
        """Wait for nothing."""

    def purge(self) -> None:
        """Drop nothing."""


def _drop_records(producer: Producer) -> None:
    """Have every record that *producer* still holds reported as undelivered."""
    with suppress(KafkaException, SystemError):  # the producer has failed for good
        producer.purge()
        producer.flush(PURGE_S)
