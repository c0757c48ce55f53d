"""Kafka records for tests, without Kafka."""

from __future__ import annotations

from tests.support.partition_log import START


class Message:
    """A record as confluent-kafka delivers it, at a fixed time."""

    def __init__(self, offset: int, value: bytes, key: bytes | None = None) -> None:
        self._offset, self._value, self._key = offset, value, key

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def key(self) -> bytes | None:
        return self._key

    def timestamp(self) -> tuple[int, int]:
        return 2, START

    def headers(self) -> None:
        return None
