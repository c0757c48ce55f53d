"""Write records, and wait until all of them are on all replicas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import KafkaException

from stoplog.errors import Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import UPDATES

_SEND_TIMEOUT_MS: Final = 60_000
_POLL_S: Final = 0.02

Headers = list[tuple[str, bytes]]


class Writer:
    """A producer that remembers the offsets of limits, and whether a record failed.

    Args:
        connection: How to reach Kafka.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._producer = kafka.changelog_producer(connection, _SEND_TIMEOUT_MS)
        self._error: Any = None
        self._offsets: dict[bytes, int] = {}

    def fetch_metadata(self, topics: Iterable[str]) -> None:
        """Look up *topics* again, after partitions were added to them."""
        kafka.fetch_metadata(self._producer, topics)

    def write(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
    ) -> None:
        """Write a record. It is on its way afterwards.

        Raises:
            Unavailable: The broker refuses it.
        """

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self._error = error
            elif key is not None and topic == UPDATES:
                self._offsets[key] = message.offset()

        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition, on_delivery=delivered, headers=[*(headers or ())]
                )
                return
            except BufferError:
                self._producer.poll(_POLL_S)
            except KafkaException as exc:
                raise self._unavailable(exc.args[0]) from exc

    def flush(self) -> dict[bytes, int]:
        """Wait for all records; return the last offset of each key in ``limit-updates`` since the last call.

        Raises:
            Unavailable: A record could not be written.
        """
        self._producer.flush()
        if self._error is not None:
            raise self._unavailable(self._error)
        offsets, self._offsets = self._offsets, {}
        return offsets

    def _unavailable(self, error: Any) -> Unavailable:
        return Unavailable(
            f"a record could not be written ({self._connection.explain(error)}): check the brokers, then run "
            f"the command again"
        )
