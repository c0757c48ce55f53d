"""The physical line: records to the broker and back, with nothing decided on the way.

Two processes on topics of their own: ``serve`` sends every record of ``echo-out`` back on ``echo-in``;
``call`` keeps one record in flight in each of some partitions. Both ways are as a gateway publishes checks:
idempotent, on all replicas (Sluice's replies ask for less). No Faust, no HTTP. A record that stands for a
batch carries as many bytes as the batch would.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any, Final

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.benchmarks.orders import Stopwatch, say, serve

PARTITIONS: Final = 4
_OUT: Final = "echo-out"
_IN: Final = "echo-in"
_BYTES: Final = 14
"""A check's share of a batch record: an id of nine bytes, cost and framing."""


def create_echo_topics(bootstrap: str) -> None:
    """Make both topics."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = [NewTopic(name, PARTITIONS, 1) for name in (_OUT, _IN)]
    for future in admin.create_topics(topics).values():
        future.result()


def _clients(bootstrap: str, topic: str) -> tuple[Consumer, Producer]:
    common = {"bootstrap.servers": bootstrap, "socket.nagle.disable": True}
    consumer = Consumer(
        {
            **common,
            "group.id": topic,
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
        }
    )
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    for place in places:
        _, place.offset = consumer.get_watermark_offsets(place, 10)
    consumer.assign(places)
    producer = Producer({**common, "linger.ms": 0, "acks": "all", "enable.idempotence": True})
    return consumer, producer


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None  # it was consumed
    return partition


def echo(bootstrap: str) -> None:
    """Send back whatever comes, until stopped."""
    consumer, producer = _clients(bootstrap, _OUT)
    say("ready")
    while True:
        first = consumer.poll(1.0)
        for message in [] if first is None else [first, *consumer.consume(1_000, 0)]:
            if message.error() is None:
                producer.produce(_IN, message.value(), partition=_partition(message))
        producer.poll(0)


def call(bootstrap: str) -> None:
    """Carry out orders: ``partitions`` in flight, ``size`` checks in each record."""
    consumer, producer = _clients(bootstrap, _IN)

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
            first = consumer.poll(10)
            for message in [] if first is None else [first, *consumer.consume(1_000, 0)]:
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
