"""Ask the broker for metadata, so that a missing broker is noticed without any check.

The number of partitions in force is read once. Until a worker has recorded it, each round looks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from confluent_kafka import KafkaException

from stoplog.client.transport.broker_view import BrokerView
from stoplog.errors import TopicError, Unavailable
from stoplog.kafka import clients
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.topics import CHECKS

INTERVAL_S: Final = 5.0
"""Seconds between two requests for metadata while the broker answers."""

RETRY_S: Final = 1.0
"""Seconds between two requests while the broker does not answer, or has no topics yet."""

TIMEOUT_S: Final = 2.0
"""Seconds to wait for the broker's answer."""


class BrokerMonitor:
    """Asks the broker at regular intervals, in a thread of its own.

    Args:
        bootstrap: Bootstrap servers.
        stopping: Ends :meth:`run`; call :meth:`wake` after setting it.
        report: Called with each view.
    """

    def __init__(
        self, bootstrap: str, stopping: threading.Event, report: Callable[[BrokerView], None]
    ) -> None:
        self._bootstrap = bootstrap
        self._stopping = stopping
        self._report = report
        self._wake = threading.Event()

    def run(self) -> None:
        """Ask until stopped."""
        admin = clients.sdk_admin(self._bootstrap)
        reader = PartitionCountReader(self._bootstrap)
        recorded: int | None = None
        while not self._stopping.is_set():
            try:
                partitions = admin.list_topics(CHECKS, TIMEOUT_S).topics[CHECKS].partitions
                lacking = (number for number, p in partitions.items() if len(p.isrs) < len(p.replicas))
                if recorded is None and partitions:
                    with suppress(Unavailable):  # read again in the next round
                        recorded = reader.read()
                view = BrokerView(len(partitions), recorded, tuple(lacking))
            except KafkaException as exc:
                view = BrokerView(error=f"{self._bootstrap} does not answer: {exc.args[0].str()}")
            except TopicError as exc:
                view = BrokerView(error=str(exc))
            self._report(view)
            self._wake.wait(INTERVAL_S if view.partitions else RETRY_S)
            self._wake.clear()

    def wake(self) -> None:
        """Ask now instead of at the end of the interval. Any thread."""
        self._wake.set()
