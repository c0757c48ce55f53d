"""librdkafka as a gateway uses it: its producer and consumers, made here with their reasons."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient

from stoplog.kafka.batch_skipper import BOUNDS

_log = logging.getLogger(__name__)


class _Quiet:
    """librdkafka repeats itself while a broker is away; the gateway says it once, in its own words."""

    def log(self, level: int, text: str, *args: Any) -> None:
        _log.debug(text, *args)


def producer(bootstrap: str, publish_timeout_ms: int, on_error: Callable[[KafkaError], None]) -> Producer:
    """For checks and updates: at once, in order, once, on all replicas.

    Args:
        bootstrap: Servers.
        publish_timeout_ms: Milliseconds after which whoever publishes gives a record up himself.
        on_error: Called, while polling, with what concerns no single record.
    """
    return Producer(
        {
            **_common(bootstrap),
            "enable.idempotence": True,  # a retry never counts twice
            "acks": "all",
            "linger.ms": 0,  # the batcher has batched already
            # Not the publish timeout, which the transport sees to, but never before it.
            "message.timeout.ms": 10 * publish_timeout_ms,
            "queue.buffering.max.kbytes": 64 * 1024,
            "error_cb": on_error,
        },
        logger=_Quiet(),
    )


def consumer(bootstrap: str, **more: Any) -> Consumer:
    """A consumer that is told what to read, with settings of *more*."""
    return Consumer(
        {
            **_common(bootstrap),
            "group.id": "stoplog-gateway",  # demanded by the client; nothing joins or commits
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "fetch.error.backoff.ms": 50,
            **BOUNDS,
            **more,
        },
        logger=_Quiet(),
    )


def admin(bootstrap: str) -> AdminClient:
    """For metadata."""
    return AdminClient(_common(bootstrap), logger=_Quiet())


def _common(bootstrap: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap,
        "client.id": "stoplog-gateway",
        "allow.auto.create.topics": False,
        "socket.nagle.disable": True,
        "socket.connection.setup.timeout.ms": 5_000,
        "reconnect.backoff.max.ms": 1_000,
    }
