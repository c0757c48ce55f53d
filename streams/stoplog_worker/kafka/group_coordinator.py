"""Wait for a group's coordinator before a worker joins the group.

A broker creates the topic of the groups' offsets when the first client asks for a coordinator. Until the
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
_RETRY_S: Final = 0.1
_NOT_YET: Final = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)


def wait_for_coordinator(admin: AdminClient, group: str, timeout_s: float = _TIMEOUT_S) -> None:
    """Return when a broker coordinates *group*.

    A coordinator that refuses to describe the group is one as well. Joining the group then reports why.

    Args:
        admin: A client for any of the brokers.
        group: The group's id.
        timeout_s: Seconds to wait.

    Raises:
        Unavailable: no broker answered, or none coordinates the group.
    """
    give_up_at = time.monotonic() + timeout_s
    while True:
        left_s = give_up_at - time.monotonic()
        try:
            admin.describe_consumer_groups([group], request_timeout=max(left_s, _RETRY_S))[group].result()
        except KafkaException as exc:
            error = exc.args[0]
            if error.code() in _NOT_YET and left_s > 0:
                time.sleep(_RETRY_S)
                continue
            if error.code() in _NOT_YET or error.code() < 0:  # negative: of the client, without an answer
                raise Unavailable(
                    f"no broker coordinates the group {group} ({error.str()}): check that Kafka is running "
                    f"and can create the topic __consumer_offsets"
                ) from exc
        return
