"""Ask brokers where changelogs begin and end, and for the ids of their topics.

A client may keep asking a broker that has died. Or it asks with an old epoch of the partition's leader. So
after a failure the caller replaces the client (:meth:`ChangelogOffsets.reconnect`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from stoplog.errors import Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import describe
from stoplog.topics import CHECKS, UPDATES

_TIMEOUT_S: Final = 2.0
"""Seconds a broker may take for an answer."""


class Offsets(NamedTuple):
    """Offsets by place, as far as they are known; ``missing_because`` says why others are not."""

    found: dict[TopicPartition, int]
    missing_because: str


class ChangelogOffsets:
    """Asks brokers for offsets and topic ids.

    Args:
        connection: How to reach Kafka.
        topics: The changelog topic of each table.
    """

    def __init__(self, connection: KafkaConnection, topics: dict[str, str]) -> None:
        self._connection = connection
        self._topics = topics
        self._admin = kafka.silent_admin(connection)

    def reconnect(self) -> None:
        """Replace the client, which may ask a broker that is gone."""
        with suppress(Unavailable):  # no token for OAUTHBEARER
            self._admin = kafka.silent_admin(self._connection)

    def ends(self, partitions: Iterable[int]) -> tuple[dict[int, dict[str, int]], str]:
        """Return where the changelogs of *partitions* end.

        Returns:
            For each partition the next offset of each table's changelog, as far as known; and why others are
            not.
        """
        tables = {
            TopicPartition(topic, partition): (partition, table)
            for table, topic in self._topics.items()
            for partition in partitions
        }
        offsets = self.latest(tables)
        ends: dict[int, dict[str, int]] = {}
        for place, offset in offsets.found.items():
            partition, table = tables[place]
            ends.setdefault(partition, {})[table] = offset
        return ends, offsets.missing_because

    def earliest(self, places: Iterable[TopicPartition]) -> Offsets:
        """Return the first offset of each of *places*."""
        return self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def latest(self, places: Iterable[TopicPartition]) -> Offsets:
        """Return the next offset of each of *places*."""
        return self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def _offsets(self, places: Iterable[TopicPartition], which: OffsetSpec) -> Offsets:
        asked: dict[TopicPartition, Any] = dict.fromkeys(places, which)
        found: dict[TopicPartition, int] = {}
        reason = ""
        if not asked:
            return Offsets(found, reason)
        try:
            answers = self._admin.list_offsets(asked, request_timeout=_TIMEOUT_S)
        except KafkaException as exc:
            return Offsets(found, f"offsets cannot be read: {exc}")
        for place, future in answers.items():
            try:
                found[place] = future.result(timeout=_TIMEOUT_S * 2).offset
            except (KafkaException, TimeoutError) as exc:
                reason = f"offsets cannot be read: {exc}"
        # A partition without a leader has a negative offset, not an error.
        known = {place: offset for place, offset in found.items() if offset >= 0}
        return Offsets(known, reason or "a partition has no leader")

    def topic_ids(self) -> dict[str, str]:
        """Return the ids of ``checks``, ``limit-updates`` and the changelogs, by topic.

        Raises:
            Unavailable: no broker answered.
            TopicError: a topic does not exist.
        """
        names = [CHECKS, UPDATES, *self._topics.values()]
        return {
            name: str(topic.topic_id) for name, topic in describe(self._admin, names, _TIMEOUT_S * 2).items()
        }
