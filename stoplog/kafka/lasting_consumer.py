"""A consumer that is replaced when librdkafka has lost all brokers for good.

A broker that starts may answer a request for metadata with an empty list of brokers. librdkafka 2.16 then
forgets those that it knows (https://github.com/confluentinc/librdkafka/issues/5301). It should begin again
with its bootstrap servers. A consumer that has just found the coordinator of its group knows two brokers. If
their threads end in the wrong order, it never connects again, and reports nothing. Producers know one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException, TopicPartition

from stoplog.errors import Unavailable
from stoplog.kafka.native_clients import Consumer

_log = logging.getLogger(__name__)

STATISTICS_S: Final = 3.0
"""Seconds between two looks at the brokers that the client knows."""

_LOOKS: Final = 2
"""Looks in a row that find no broker before the client is replaced. A client that begins again knows its
bootstrap servers at once."""

_KNOWN: Final = ("configured", "learned")
"""Sources of brokers to which a client connects. The others stand for a coordinator, or for no broker."""

_Place = tuple[str, int]
"""A topic and a partition."""


class _Broker(msgspec.Struct):
    source: str


class _Statistics(msgspec.Struct):
    brokers: dict[str, _Broker]


_decode = msgspec.json.Decoder(_Statistics).decode


class LastingConsumer:
    """A consumer with manual assignment. Use it from one thread, and poll it at least every few seconds.

    It has those methods of :class:`confluent_kafka.Consumer` that Stoplog uses. A consumer that replaces
    another one has the same partitions assigned and paused, and continues where the other one has stopped.

    Args:
        config: Returns the settings of the client.
        statistics_s: Seconds between two looks at the brokers that the client knows.

    Raises:
        Unavailable: There is no token for OAUTHBEARER.
    """

    def __init__(self, config: Callable[[], dict[str, Any]], *, statistics_s: float = STATISTICS_S) -> None:
        self._config = config
        self._statistics_ms = round(statistics_s * 1_000)
        self._number = 0
        self._without_brokers = 0
        self._starts: dict[_Place, int] = {}
        """For each partition that is assigned: where the client began, or to which offset it was moved."""
        self._paused: set[_Place] = set()
        self._consumer = self._new()

    def _new(self) -> Consumer:
        number = self._number + 1
        consumer = Consumer(
            {
                **self._config(),
                "statistics.interval.ms": self._statistics_ms,
                "stats_cb": partial(self._on_statistics, number),
            }
        )
        self._number = number
        return consumer

    def _on_statistics(self, number: int, text: str) -> None:
        if number != self._number:  # of a consumer that was replaced
            return
        known = any(broker.source in _KNOWN for broker in _decode(text).brokers.values())
        self._without_brokers = 0 if known else self._without_brokers + 1

    def _replace_if_lost(self) -> None:
        if self._without_brokers < _LOOKS:
            return
        self._without_brokers = 0
        places = self._positions()
        try:
            new = self._new()
        except (Unavailable, KafkaException) as exc:
            _log.warning(
                "the Kafka client that reads %s lost all brokers and could not be replaced: %s. It is tried "
                "again in a few seconds. If this line repeats, check the brokers and STOPLOG_KAFKA",
                _topics_of(places),
                exc,
            )
            return
        old, self._consumer = self._consumer, new
        self.incremental_assign(places)
        if paused := [TopicPartition(*place) for place in self._paused]:
            new.pause(paused)
        # It waits for a coordinator that it cannot find.
        threading.Thread(target=old.close, name="lost-client", daemon=True).start()
        _log.warning(
            "the Kafka client that reads %s lost all brokers, so it was replaced and continues where it "
            "stopped. This can happen while a broker starts; no action is needed",
            _topics_of(places),
        )

    def _positions(self) -> list[TopicPartition]:
        """Return the next offset to read of each partition that is assigned."""
        found = []
        for (topic, number), start in self._starts.items():
            # It is negative until a record has been returned since the assignment or the last seek.
            [place] = self._consumer.position([TopicPartition(topic, number)])
            found.append(TopicPartition(topic, number, place.offset if place.offset >= 0 else start))
        return found

    # --- assignment ---

    def assign(self, places: list[TopicPartition]) -> None:
        """Consume *places* from their offsets, and nothing else."""
        self._consumer.assign(places)
        self._starts.clear()
        self._paused.clear()
        self._note(places)

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        """Consume *places* from their offsets, in addition to the others."""
        self._consumer.incremental_assign(places)
        self._note(places)

    def _note(self, places: Iterable[TopicPartition]) -> None:
        self._starts |= {(place.topic, place.partition): place.offset for place in places}

    def incremental_unassign(self, places: list[TopicPartition]) -> None:
        """Stop consuming *places*."""
        self._consumer.incremental_unassign(places)
        for place in places:
            self._starts.pop((place.topic, place.partition), None)

    def assignment(self) -> list[TopicPartition]:
        """Return the partitions that are assigned."""
        return self._consumer.assignment()

    def seek(self, place: TopicPartition) -> None:
        """Continue at the offset of *place*.

        Raises:
            KafkaException: It is not assigned.
        """
        self._consumer.seek(place)
        self._starts[place.topic, place.partition] = place.offset

    def pause(self, places: list[TopicPartition]) -> None:
        """Return no records of *places* until they are resumed."""
        self._consumer.pause(places)
        self._paused |= {(place.topic, place.partition) for place in places}

    def resume(self, places: list[TopicPartition]) -> None:
        """Return records of *places* again."""
        self._consumer.resume(places)
        self._paused -= {(place.topic, place.partition) for place in places}

    # --- records and requests ---

    def poll(self, timeout_s: float) -> Any:
        """Return a message, or ``None`` if there is none within *timeout_s*."""
        self._replace_if_lost()
        return self._consumer.poll(timeout_s)

    def consume(self, most: int, timeout_s: float) -> list[Any]:
        """Return up to *most* messages; wait until there are as many, for *timeout_s* at most."""
        return self._consumer.consume(most, timeout_s)

    def commit(self, offsets: list[TopicPartition]) -> None:
        """Commit *offsets* without waiting."""
        self._consumer.commit(offsets=offsets, asynchronous=True)

    def list_topics(self, topic: str, timeout_s: float) -> Any:
        """Return the metadata of *topic*.

        Raises:
            KafkaException: No broker answered.
        """
        self._serve_unassigned()
        return self._consumer.list_topics(topic, timeout_s)

    def get_watermark_offsets(
        self, place: TopicPartition, timeout_s: float = 0.0, *, cached: bool = False
    ) -> tuple[int, int]:
        """Return a partition's first offset and the one after its last.

        Args:
            place: The partition.
            timeout_s: Seconds to wait for the answer of the broker.
            cached: Ask no broker: the offsets as of the last fetch, negative if they are unknown.

        Raises:
            KafkaException: No broker answered.
        """
        if cached:
            low, high = self._consumer.get_watermark_offsets(place, cached=True)
        else:
            self._serve_unassigned()
            low, high = self._consumer.get_watermark_offsets(place, timeout_s)
        return low, high

    def offsets_for_times(self, places: list[TopicPartition], timeout_s: float) -> list[TopicPartition]:
        """Return the offset of the first record at or after the time in each of *places*.

        Raises:
            KafkaException: No broker answered.
        """
        self._serve_unassigned()
        return self._consumer.offsets_for_times(places, timeout_s)

    def _serve_unassigned(self) -> None:
        """Poll a consumer that may only make requests. It has no records that this could return."""
        if not self._starts:
            self.poll(0)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def _topics_of(places: Iterable[TopicPartition]) -> str:
    return ", ".join(sorted({place.topic for place in places})) or "no topic yet"
