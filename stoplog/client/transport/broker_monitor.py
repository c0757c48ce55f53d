"""Ask the broker for metadata, so that a missing broker is noticed without any check.

The number of partitions in force is read at the start. Until a worker has recorded it, each round looks for
it. From then on its record is followed, because the number may grow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import StoplogError, TopicError, Unavailable
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.count_follower import follow_partition_count
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.log_throttle import LogThrottle
from stoplog.topics import CHECKS
from stoplog.wire.partition_count import CountRecord

log = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0
"""Seconds between two requests for metadata while the broker answers."""

RETRY_S: Final = 1.0
"""Seconds between two requests while the broker does not answer, or has no topics yet."""

TIMEOUT_S: Final = 2.0
"""Seconds to wait for the broker's answer."""

SAME_TEXT_S: Final = 600.0
"""Seconds between two log lines with the same cause."""


class BrokerMonitor:
    """Asks the broker at regular intervals, in a thread of its own.

    Args:
        connection: How to reach Kafka.
        stopping: Ends :meth:`run`; call :meth:`wake` after setting it.
        report: Called with each view.
    """

    def __init__(
        self, connection: KafkaConnection, stopping: threading.Event, report: Callable[[BrokerView], None]
    ) -> None:
        self._connection = connection
        self._stopping = stopping
        self._report = report
        self._wake = threading.Event()
        self._admin: clients.ExplainingAdmin | None = None
        self._reader = PartitionCountReader(connection)
        self._recorded: CountRecord | None = None
        self._undecodable: StoplogError | None = None
        self._has_record = threading.Event()
        self._has_read = False
        self._partitions = 0
        self._throttle = LogThrottle(SAME_TEXT_S)
        self._failures = 0

    def run(self) -> None:
        """Ask until stopped."""
        while not self._stopping.is_set():
            view = self._look()
            if self._stopping.is_set():
                return
            self._report(view)
            self._wake.wait(INTERVAL_S if view.partitions else RETRY_S)
            self._wake.clear()

    def follow(self) -> None:
        """Follow the record of the number, once there is one, until stopped. In a thread of its own."""
        while not self._has_record.wait(RETRY_S):
            if self._stopping.is_set():
                return
        follow_partition_count(
            self._connection, self._reader.next_offset, self._stopping, self._on_record, self._on_undecodable
        )

    def _on_record(self, record: CountRecord) -> None:
        self._recorded, self._undecodable = record, None
        self._report(BrokerView(self._partitions, record.count, step=record.step))

    def _on_undecodable(self, error: StoplogError) -> None:
        self._undecodable = error
        self.wake()

    def _look(self) -> BrokerView:
        """Return what the broker answers, or why it does not."""
        try:
            if self._admin is None:
                self._admin = clients.sdk_admin(self._connection)
            topic = self._admin.list_topics(CHECKS, TIMEOUT_S).topics[CHECKS]
            if topic.error is not None and topic.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(topic.error)
            if self._recorded is None and topic.partitions:
                self._read_partition_count()
        except KafkaException as exc:
            assert self._admin is not None  # its request has failed
            return self._failed(self._admin.explain(exc.args[0]))
        except Unavailable as exc:  # no token for OAUTHBEARER, or the number of partitions cannot be read
            return self._failed(str(exc))
        except TopicError as exc:
            return BrokerView(error=str(exc))
        if self._undecodable is not None:
            return BrokerView(error=str(self._undecodable))
        self._failures = 0
        lacking = (number for number, p in topic.partitions.items() if len(p.isrs) < len(p.replicas))
        self._partitions = len(topic.partitions)
        recorded = self._recorded
        if recorded is None:
            return BrokerView(self._partitions, None, tuple(lacking))
        return BrokerView(self._partitions, recorded.count, tuple(lacking), step=recorded.step)

    def _read_partition_count(self) -> None:
        try:
            self._recorded = self._reader.read_record()
        except Unavailable:
            if not self._has_read:  # clients might be hashed over a wrong number
                raise
        self._has_read = True
        if self._recorded is not None:
            self._has_record.set()

    def _failed(self, why: str) -> BrokerView:
        error = f"Kafka at {self._connection.bootstrap} cannot be used: {why}"
        self._failures += 1
        # The first request on a busy machine may take longer than its timeout.
        if self._failures > 1 and (suppressed := self._throttle.admit(why)) is not None:
            log.warning("%s%s", error, suppressed)
        return BrokerView(error=error)

    def wake(self) -> None:
        """Ask now instead of at the end of the interval. Any thread."""
        self._wake.set()
