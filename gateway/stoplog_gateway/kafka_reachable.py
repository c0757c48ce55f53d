"""Whether a Kafka answers, for commands that cannot do without one."""

from __future__ import annotations

from confluent_kafka import KafkaException

from stoplog.errors import StoplogError
from stoplog.kafka.clients import silent_admin


class KafkaUnreachable(StoplogError):
    """No Kafka answers; the text states where it was expected, and what to do."""


def ensure_reachable(bootstrap: str, timeout_s: float = 10.0) -> None:
    """Return when a Kafka answers at *bootstrap*.

    Raises:
        KafkaUnreachable: none did within *timeout_s*.
    """
    try:
        silent_admin(bootstrap).list_topics(timeout=timeout_s)
    except KafkaException as exc:
        raise KafkaUnreachable(
            f"no Kafka answers at {bootstrap} ({exc.args[0].str()}): start it (`stoplog broker`), or set "
            f"STOPLOG_KAFKA=host:port to where it is"
        ) from exc
