"""The physical line: records to the broker and back, with nothing decided on the way.

Two processes on topics of their own: ``call``, in a gateway's place, keeps one record in flight in each of
some partitions; ``serve``, in a worker's, sends every record of ``echo-out`` back on ``echo-in``. Each has
the producer and the consumer of the part that it stands for. No Faust, no HTTP. A record that stands for a
batch carries as many bytes as the batch would.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import stoplog.kafka.clients
from stoplog.client.settings import Settings
from stoplog.kafka.batch_skipper import drain
from tests.benchmarks.orders import Stopwatch, say, serve

PARTITIONS: Final = 4
_OUT: Final = "echo-out"
_IN: Final = "echo-in"
_BYTES: Final = 14
"""A check's share of a batch record: an id of nine bytes, cost and framing."""

_DRAIN: Final = 1_000
"""Records taken at once when there are several."""

_TIMEOUT_MS: Final = Settings.model_fields["publish_timeout_ms"].default


def create_echo_topics(bootstrap: str) -> None:
    """Make both topics."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = [NewTopic(name, PARTITIONS, 1) for name in (_OUT, _IN)]
    for future in admin.create_topics(topics).values():
        future.result()


def _read(consumer: Consumer, topic: str) -> None:
    """Have *consumer* read what comes to all partitions from now on."""
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    for place in places:
        _, place.offset = consumer.get_watermark_offsets(place, 10)
    consumer.assign(places)


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None  # it was consumed
    return partition


def _failed(error: KafkaError) -> None:
    print(error.str(), file=sys.stderr)


def echo(bootstrap: str) -> None:
    """Send back whatever comes, until stopped."""
    consumer = stoplog.kafka.clients.worker_consumer(bootstrap, "echo")
    producer = stoplog.kafka.clients.reply_producer(bootstrap, _TIMEOUT_MS)
    _read(consumer, _OUT)
    say("ready")
    while True:
        for message in drain(consumer, _DRAIN, 1.0):
            if message.error() is None:
                producer.produce(_IN, message.value(), partition=_partition(message))
        producer.poll(0)


def call(bootstrap: str) -> None:
    """Carry out orders: ``partitions`` in flight, ``size`` checks in each record."""
    consumer = stoplog.kafka.clients.sdk_consumer(bootstrap)
    producer = stoplog.kafka.clients.check_producer(bootstrap, _TIMEOUT_MS, _failed)
    _read(consumer, _IN)

    def run(order: dict[str, Any]) -> dict[str, Any]:
        watch = Stopwatch(order["warmup_s"], order["seconds"])
        size = order["size"]
        value = b"x" * (_BYTES * size)
        asked = [0.0] * PARTITIONS

        def ask(partition: int) -> None:
            asked[partition] = perf_counter()
            producer.produce(_OUT, value, partition=partition)

        for partition in range(order["partitions"]):
            ask(partition)
        flying = order["partitions"]
        while flying:
            for message in drain(consumer, _DRAIN, 10.0):
                partition = _partition(message)
                if watch.done(size, asked[partition]):
                    ask(partition)
                else:
                    flying -= 1
            producer.poll(0)
        return watch.figures()

    serve(run)


if __name__ == "__main__":
    {"serve": echo, "call": call}[sys.argv[1]](sys.argv[2])
