"""Whether a Kafka answers, for commands that cannot do without one."""

from __future__ import annotations

from confluent_kafka import KafkaException

from stoplog.errors import StoplogError
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection


class KafkaUnreachable(StoplogError):
    """No Kafka answers; the text states where it was expected, and what to do."""


def ensure_reachable(connection: KafkaConnection, timeout_s: float = 8.0) -> None:
    """Return when a Kafka answers.

    Raises:
        KafkaUnreachable: none did within *timeout_s*.
    """
    admin = silent_admin(connection)
    try:
        admin.list_topics(timeout=timeout_s)
    except KafkaException as exc:
        raise KafkaUnreachable(
            f"no Kafka answers at {connection.bootstrap}: {admin.explain(exc.args[0])}"
        ) from exc
