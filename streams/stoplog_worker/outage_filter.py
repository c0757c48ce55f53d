"""Keep aiokafka's lines about brokers that cannot be reached out of a worker's log.

While a broker is away, aiokafka logs errors in its own terms, many times a second. The worker itself logs why
Kafka cannot be used, with a remedy (:mod:`stoplog_worker.kafka.connection_watch`), and what follows from it.
aiokafka's other errors pass: only it knows why the group refuses this worker.
"""

from __future__ import annotations

import logging
from typing import Final

_UNREACHABLE: Final = (
    "Unable connect to node",
    "Unable to update metadata",
    "NodeNotReadyError",
    "KafkaConnectionError",
    "RequestTimedOutError",
    "Heartbeat session expired",
)


def outage_filter(record: logging.LogRecord) -> bool:
    """Return whether a handler should write *record*."""
    if record.name != "aiokafka" and not record.name.startswith("aiokafka."):
        return True
    text = record.getMessage()
    return not any(fragment in text for fragment in _UNREACHABLE)
