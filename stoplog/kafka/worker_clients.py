"""librdkafka as this worker uses it: its consumers and producers, made here with their reasons."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from stoplog.kafka.batch_skipper import BOUNDS

_log = logging.getLogger("stoplog.kafka")

_ACQUAINT_S: Final = 1.0
"""Seconds that a broker may take to say where a topic is."""


def consumer(
    bootstrap: str,
    group: str,
    *,
    on_missing: str = "error",
    on_commit: Callable[[Any, list[TopicPartition]], None] | None = None,
) -> Consumer:
    """A consumer that is told what to read (it joins no group).

    Args:
        bootstrap: Servers.
        group: Under which offsets are committed, for lag monitors; nothing reads them back but a partition
            that has no marker.
        on_missing: What to do where an offset is gone: ``error``, or ``earliest``.
        on_commit: Called, while polling, with an error or ``None`` and the offsets of a commit.
    """
    return Consumer(
        {
            **_common(bootstrap),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            **({"on_commit": on_commit} if on_commit else {}),
            "enable.partition.eof": True,
            "auto.offset.reset": on_missing,
            # One record to come waits for no other.
            "fetch.min.bytes": 1,
            # A broker answers a connection's requests in turn, so a fetch that waits makes an assignment
            # wait; 100 ms of it are ten empty fetches a second when idle.
            "fetch.wait.max.ms": 100,
            # After an error that stays, as of a batch that cannot be unpacked, which is searched for its end.
            "fetch.error.backoff.ms": 20,
            "fetch.queue.backoff.ms": 10,
            **BOUNDS,
            # What is read ahead and not yet judged, per consumer.
            "queued.max.messages.kbytes": 32 * 1024,
        }
    )


def acquaint(client: Consumer | Producer, topics: Iterable[str]) -> None:
    """Have *client* know where *topics* are before it needs them; blocks for a moment.

    A topic that a consumer first hears of when it is told to read it is looked up at the next tick of a timer
    of librdkafka's, up to a second later. What it knows it keeps up to date. Without a broker nothing is
    gained, and nothing lost.
    """
    with suppress(KafkaException):
        for topic in topics:
            client.list_topics(topic, _ACQUAINT_S)


def admin(bootstrap: str) -> AdminClient:
    """For offsets and topic descriptions; what fails is raised, so librdkafka need not log it too."""
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def changelog_producer(bootstrap: str, send_timeout_ms: int) -> Producer:
    """For changelogs, relayed updates, dead letters: in order, once, on all replicas; nothing late."""
    return Producer(
        {
            **_common(bootstrap),
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 2,
            "message.timeout.ms": send_timeout_ms,
            "queue.buffering.max.messages": 1_000_000,
            "compression.type": "lz4",
            # A dead letter is a record of up to 1 MiB with headers.
            "message.max.bytes": 2 * 1024 * 1024,
        }
    )


def reply_producer(
    bootstrap: str, send_timeout_ms: int, failed: Callable[[Any, Any], None] | None = None
) -> Producer:
    """For replies and beats: at once, and not again; a late answer is of no use.

    Args:
        bootstrap: Servers.
        send_timeout_ms: After which a record is given up.
        failed: Called with error and message of one that was.
    """
    return Producer(
        {
            **_common(bootstrap),
            "acks": 1,
            "linger.ms": 0,
            "message.timeout.ms": send_timeout_ms,
            "delivery.report.only.error": True,
            **({"on_delivery": failed} if failed else {}),
        }
    )


def _common(bootstrap: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap,
        "client.id": "stoplog-worker",
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        # A partition's new leader is found again quickly.
        "topic.metadata.refresh.interval.ms": 30_000,
        "logger": _log,
    }
