"""The floor of any check through Kafka: records to the broker and back, without a decision.

Two processes use topics of their own. ``caller`` stands in the gateway's place and keeps one record in flight
in each of some partitions. ``server`` stands in the worker's place and sends every record of ``echo-out``
back on ``echo-in``. Each has the producer and the consumer of the part in whose place it stands. There is no
Faust and no HTTP. A record that stands for a batch has as many bytes as the batch.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from confluent_kafka import KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import stoplog.kafka.clients
from stoplog.client.settings import Settings
from stoplog.kafka.batch_skipper import drain
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.lasting_consumer import LastingConsumer
from tests.benchmarks.orders import Pace, Stopwatch, carry_out_orders, say

PARTITIONS: Final = 4
_OUT: Final = "echo-out"
_IN: Final = "echo-in"
_BYTES: Final = 14
"""Bytes of a check in a batch record: an id of nine bytes, cost and framing."""

_DRAIN: Final = 1_000
"""Most records that are consumed at once."""

_TIMEOUT_MS: Final = Settings.model_fields["publish_timeout_ms"].default


def create_echo_topics(bootstrap: str) -> None:
    """Create both topics."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = [NewTopic(name, PARTITIONS, 1) for name in (_OUT, _IN)]
    for future in admin.create_topics(topics).values():
        future.result()


def _read_from_end(consumer: LastingConsumer, topic: str) -> None:
    """Assign all partitions of *topic* to *consumer*, from their present ends."""
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    for place in places:
        _, place.offset = consumer.get_watermark_offsets(place, 10)
    consumer.assign(places)


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None  # consumed messages have one
    return partition


def _failed(error: KafkaError) -> None:
    print(error.str(), file=sys.stderr)


def run_echo_server(bootstrap: str) -> None:
    """Send every record back, until stopped."""
    consumer = stoplog.kafka.clients.worker_consumer(KafkaConnection(bootstrap), "echo")
    producer = stoplog.kafka.clients.reply_producer(KafkaConnection(bootstrap), _TIMEOUT_MS)
    _read_from_end(consumer, _OUT)
    say("ready")
    while True:
        for message in drain(consumer, _DRAIN, 1.0):
            if message.error() is None:
                producer.produce(_IN, message.value(), partition=_partition(message))
        producer.poll(0)


def run_echo_caller(bootstrap: str) -> None:
    """Carry out orders: a record of ``size`` checks in flight in each of ``partitions``.

    Each is sent as soon as the one before it is back. With ``rate``, it is sent at this pace.
    """
    consumer = stoplog.kafka.clients.sdk_consumer(KafkaConnection(bootstrap))
    producer = stoplog.kafka.clients.check_producer(KafkaConnection(bootstrap), _TIMEOUT_MS, _failed)
    _read_from_end(consumer, _IN)

    def run(order: dict[str, Any]) -> dict[str, Any]:
        watch = Stopwatch(order["warmup_s"], order["seconds"])
        size, pace = order["size"], Pace(order.get("rate", 0))
        value = b"x" * (_BYTES * size)
        sent_at = [0.0] * PARTITIONS

        def send(partition: int) -> None:
            sent_at[partition] = pace.wait()
            producer.produce(_OUT, value, partition=partition)

        for partition in range(order["partitions"]):
            send(partition)
        in_flight = order["partitions"]
        while in_flight:
            for message in drain(consumer, _DRAIN, 10.0):
                partition = _partition(message)
                if watch.done(size, sent_at[partition]):
                    send(partition)
                else:
                    in_flight -= 1
            producer.poll(0)
        return watch.figures()

    carry_out_orders(run)


if __name__ == "__main__":
    {"server": run_echo_server, "caller": run_echo_caller}[sys.argv[1]](sys.argv[2])
