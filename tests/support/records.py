"""Kafka records for tests, as confluent-kafka delivers them, without Kafka."""

from __future__ import annotations

from typing import Any

from tests.support.partition_log import START


class Message:
    """A consumed record, of ``checks`` unless the test names another topic."""

    def __init__(
        self,
        offset: int,
        value: bytes | None,
        key: bytes | None = None,
        *,
        headers: Any = None,
        topic: str = "checks",
        partition: int = 0,
        stamp_ms: int = START,
    ) -> None:
        self._offset, self._value, self._key, self._headers = offset, value, key, headers
        self._topic, self._partition, self._stamp_ms = topic, partition, stamp_ms

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 2, self._stamp_ms
