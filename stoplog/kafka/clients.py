"""Create every librdkafka client of the SDK, the gateway and the worker; each setting states its reason.

================================  ================  ==============================================
function                          used by           for
================================  ================  ==============================================
:func:`check_producer`            SDK               ``checks`` and ``limit-updates``
:func:`sdk_consumer`              SDK               ``replies``, ``nodes`` and ``limit-updates``
:func:`sdk_admin`                 SDK               metadata
:func:`changelog_producer`        worker            changelogs, relayed updates and dead letters
:func:`reply_producer`            worker            ``replies`` and ``nodes``
:func:`worker_consumer`           worker            every topic
:func:`single_record_producer`    worker, commands  the number of partitions
:func:`silent_admin`              worker, commands  topics: offsets, descriptions, creation
================================  ================  ==============================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.lasting_consumer import LastingConsumer
from stoplog.kafka.native_clients import AdminClient, Producer

_log = logging.getLogger(__name__)

_METADATA_TIMEOUT_S: Final = 1.0
"""Seconds to wait for one topic's metadata at a worker's start."""

_COMMON: Final[dict[str, Any]] = {
    "socket.nagle.disable": True,  # a small request goes out at once
    # Without any broker, librdkafka forgets the brokers and begins with those of the bootstrap servers, again
    # and again. Each time it also forgets how often it has failed, so the delay never grows beyond the first
    # one. With the default of 100 ms, each client connected ten times a second. A connection that has lasted
    # is replaced without delay.
    "reconnect.backoff.ms": 500,
    "reconnect.backoff.max.ms": 1_000,  # a broker that is back is found within a second
}
"""Settings of every client but that of :func:`silent_admin`."""

_CONSUMER: Final[dict[str, Any]] = {
    "enable.auto.commit": False,  # the positions that count are in the changelogs, or there are none
    "fetch.max.bytes": 8 * 1024 * 1024,  # memory for one answer of a broker, compressed
    "receive.message.max.bytes": 16 * 1024 * 1024,  # what zstd may decompress to; see batch_skipper.py
}
"""Settings of every consumer."""


class _DebugLogger:
    """Logs librdkafka's own lines at DEBUG: it repeats them while a broker is away.

    Gateway and worker log the same facts once, with their consequence and a remedy.
    """

    def log(self, _level: int, text: str, *args: Any) -> None:
        """Log one line of librdkafka."""
        _log.debug(text, *args)


class ExplainingAdmin(AdminClient):
    """An admin client that explains its failed requests by the errors of its connections.

    Args:
        connection: How to reach Kafka.
        config: The client's whole configuration.
    """

    def __init__(self, connection: KafkaConnection, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._connection = connection

    def explain(self, error: KafkaError) -> str:
        """Return why a request failed with *error*, and the remedy. Blocks for some seconds at most."""
        self.poll(0)  # the errors of connections are reported from here
        return self._connection.explain(error)


def check_producer(
    connection: KafkaConnection, publish_timeout_ms: int, on_error: Callable[[KafkaError], None]
) -> Producer:
    """Return the producer of checks and limit updates: at once, in order, exactly once, on all replicas.

    Args:
        connection: How to reach Kafka.
        publish_timeout_ms: Milliseconds after which the transport itself gives up a record.
        on_error: Called from ``poll`` with errors that concern no single record.
    """

    def report(error: KafkaError) -> None:
        connection.on_error(error)
        on_error(error)

    return Producer(
        {
            **_sdk(connection),
            "enable.idempotence": True,  # a retry never counts a check twice
            "acks": "all",
            "linger.ms": 0,  # the batcher has batched already
            # A backstop behind the publish timeout, which the transport keeps. It must never come first.
            "message.timeout.ms": 10 * publish_timeout_ms,
            "queue.buffering.max.kbytes": 64 * 1024,  # bounds memory while no broker is reachable
            "error_cb": report,
        },
        logger=_DebugLogger(),
    )


def single_record_producer(connection: KafkaConnection, send_timeout_ms: int) -> Producer:
    """Return a producer for a record of a command. It need not be idempotent.

    A program that may write to no topic gets an error for the record. An idempotent producer would fail as a
    whole.

    Args:
        connection: How to reach Kafka.
        send_timeout_ms: Milliseconds after which a record is given up.
    """
    return Producer(
        {**_sdk(connection), "acks": "all", "message.timeout.ms": send_timeout_ms}, logger=_DebugLogger()
    )


def sdk_consumer(
    connection: KafkaConnection, *, report_end: bool = False, fetch_wait_ms: int | None = None
) -> LastingConsumer:
    """Return a consumer with manual assignment; it joins no group and commits nothing.

    Args:
        connection: How to reach Kafka.
        report_end: Report the end of a partition (``_PARTITION_EOF``).
        fetch_wait_ms: Milliseconds that a broker may hold back an empty answer; ``None``: librdkafka's 500.
    """
    options: dict[str, Any] = {"enable.partition.eof": True} if report_end else {}
    if fetch_wait_ms is not None:
        options["fetch.wait.max.ms"] = fetch_wait_ms
    return LastingConsumer(
        lambda: {
            **_sdk(connection),
            **_CONSUMER,
            "group.id": "stoplog-gateway",  # librdkafka requires one
            "auto.offset.reset": "latest",
            "fetch.error.backoff.ms": 50,  # soon try again after a leader has moved
            "logger": _DebugLogger(),
            **options,
        }
    )


def sdk_admin(connection: KafkaConnection) -> ExplainingAdmin:
    """Return an admin client for metadata."""
    return ExplainingAdmin(connection, {**_sdk(connection), "logger": _DebugLogger()})


def changelog_producer(connection: KafkaConnection, send_timeout_ms: int) -> Producer:
    """Return the producer of changelogs, relayed updates and dead letters: in order, once, on all replicas.

    Args:
        connection: How to reach Kafka.
        send_timeout_ms: Milliseconds after which a record is given up, so that nothing is written late.
    """
    return Producer(
        {
            **_worker(connection),
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 2,  # a checkpoint writes many records at once
            "message.timeout.ms": send_timeout_ms,
            "queue.buffering.max.messages": 1_000_000,  # one checkpoint's records
            "compression.type": "lz4",
            "message.max.bytes": 2 * 1024 * 1024,  # a dead letter holds up to 1 MiB and its headers
        }
    )


def reply_producer(
    connection: KafkaConnection, send_timeout_ms: int, failed: Callable[[Any, Any], None] | None = None
) -> Producer:
    """Return the producer of replies and heartbeats: at once, and never again, for late ones are useless.

    Args:
        connection: How to reach Kafka.
        send_timeout_ms: Milliseconds after which a record is given up.
        failed: Called from ``poll`` with the error and the message of a record that was given up.
    """
    return Producer(
        {
            **_worker(connection),
            "acks": 1,
            "linger.ms": 0,
            "message.timeout.ms": send_timeout_ms,
            "delivery.report.only.error": True,  # a report for every reply would cost more than the reply
            **({"on_delivery": failed} if failed else {}),
        }
    )


def worker_consumer(
    connection: KafkaConnection,
    group: str,
    *,
    on_missing: str = "error",
    report_end: bool = True,
    on_commit: Callable[[Any, list[TopicPartition]], None] | None = None,
) -> LastingConsumer:
    """Return a consumer with manual assignment; it joins no group.

    Args:
        connection: How to reach Kafka.
        group: Group under which offsets are committed, for lag monitors. Only a partition without a marker
            reads them back.
        on_missing: Reaction to an offset that is gone: ``error`` or ``earliest``.
        report_end: Report the end of a partition (``_PARTITION_EOF``), as a restore needs it. It comes after
            each record that is the last one for the moment, which doubles the messages of a light load.
        on_commit: Called from ``poll`` with an error or ``None``, and the offsets of a commit.
    """
    return LastingConsumer(
        lambda: {
            **_worker(connection),
            **_CONSUMER,
            "group.id": group,
            "enable.auto.offset.store": False,
            **({"on_commit": on_commit} if on_commit else {}),
            "enable.partition.eof": report_end,
            "auto.offset.reset": on_missing,
            "fetch.min.bytes": 1,  # a record never waits for the next one
            # A broker answers the requests of one connection in turn: a waiting fetch delays an assignment.
            # 100 ms cost ten empty fetches a second when idle.
            "fetch.wait.max.ms": 100,
            # The search for the end of a batch that cannot be decompressed meets one error a step.
            "fetch.error.backoff.ms": 20,
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 32 * 1024,  # memory for records read ahead, per consumer
        }
    )


def silent_admin(connection: KafkaConnection) -> ExplainingAdmin:
    """Return an admin client that logs nothing: all its errors are raised."""
    return ExplainingAdmin(connection, {**connection.client_config(), "log_level": 0})


def fetch_metadata(client: LastingConsumer | Producer, topics: Iterable[str]) -> None:
    """Have *client* look up *topics* before it needs them. Blocks up to a second a topic.

    librdkafka looks up a topic that it meets first in an assignment at the next tick of a timer, up to a
    second later. It keeps metadata up to date that it already has. Without a broker nothing happens.
    """
    with suppress(KafkaException):
        for topic in topics:
            client.list_topics(topic, _METADATA_TIMEOUT_S)


def _sdk(connection: KafkaConnection) -> dict[str, Any]:
    """Return the settings of every client of the SDK."""
    return {
        **_COMMON,
        **connection.client_config(),
        "client.id": "stoplog-gateway",
        "allow.auto.create.topics": False,  # a topic made by accident would have the wrong partitions
        "socket.connection.setup.timeout.ms": 5_000,  # a silent host does not keep the others waiting
    }


def _worker(connection: KafkaConnection) -> dict[str, Any]:
    """Return the settings of the worker's producers and consumers."""
    return {
        **_COMMON,
        **connection.client_config(),
        "client.id": "stoplog-worker",
        "topic.metadata.refresh.interval.ms": 30_000,  # a partition's new leader is found again quickly
        "logger": _DebugLogger(),
    }
