"""Wait for a group's coordinator before a worker joins the group.

A broker creates the topic of the groups' offsets when the first client requests a coordinator. Until the
topic exists, no coordinator is available. On a new cluster that takes a moment, in which aiokafka would log
errors.
"""

from __future__ import annotations

import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from stoplog.errors import Unavailable

_TIMEOUT_S: Final = 15.0
_REQUEST_S: Final = 2.0
"""Seconds that one request may take. A coordinator that has just died never answers."""
_RETRY_S: Final = 0.1
_NOT_YET: Final = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)


def wait_for_coordinator(admin: AdminClient, group: str, timeout_s: float = _TIMEOUT_S) -> None:
    """Return when a broker coordinates *group*.

    A broker that refuses to describe the group coordinates it as well. Joining the group then reports why.

    Args:
        admin: A client for any of the brokers.
        group: The group's id.
        timeout_s: Seconds to wait.

    Raises:
        Unavailable: no broker answered, or none coordinates the group.
    """
    give_up_at = time.monotonic() + timeout_s
    while (error := _describe(admin, group)) is not None:
        if time.monotonic() >= give_up_at:
            raise Unavailable(
                f"no broker coordinates the group {group} ({error.str()}): check that Kafka is running and "
                f"can create the topic __consumer_offsets"
            )
        time.sleep(_RETRY_S)


def _describe(admin: AdminClient, group: str) -> KafkaError | None:
    """Return ``None`` if a coordinator of *group* answered, else why none did."""
    try:
        admin.describe_consumer_groups([group], request_timeout=_REQUEST_S)[group].result()
    except KafkaException as exc:
        error: KafkaError = exc.args[0]
        if error.code() in _NOT_YET or error.code() < 0:  # negative: of the client, without an answer
            return error
    return None
